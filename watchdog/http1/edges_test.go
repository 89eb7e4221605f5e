package http1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

const get = "GET / HTTP/1.1\r\nHost: f\r\n\r\n"

func TestAHeadMustComeInItsTime(t *testing.T) {
	const limit = 150 * time.Millisecond
	_, dial, _ := serve(t, "tcp", told, func(s *Server) { s.HeadTimeout, s.IdleTimeout = limit, time.Minute })
	for name, sends := range map[string]func(net.Conn){
		"nothing":     func(net.Conn) {},
		"one byte":    func(c net.Conn) { io.WriteString(c, "G") },
		"a drip":      func(c net.Conn) { go drip(c) },
		"after a one": func(c net.Conn) { io.WriteString(c, get); read(t, bufio.NewReader(c)); io.WriteString(c, "G") },
	} {
		c := dial()
		sends(c)
		began := time.Now()
		if _, err := io.ReadAll(c); err != nil { // net/http tells some of them why
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > 3*limit {
			t.Errorf("%s: held for %s", name, took)
		}
	}
	c := dial() // and a body may take longer
	io.WriteString(c, post[:len(post)-1])
	time.Sleep(2 * limit)
	io.WriteString(c, post[len(post)-1:])
	read(t, bufio.NewReader(c))
}

func drip(c net.Conn) {
	for i := range post {
		if _, err := io.WriteString(c, post[i:i+1]); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestShutdownWaitsForNobodyWhoSendsHalfARequest(t *testing.T) {
	s, dial, _ := serve(t, "tcp", told, func(s *Server) { s.HeadTimeout = 100 * time.Millisecond })
	first := dial()
	io.WriteString(first, get)
	read(t, bufio.NewReader(first))
	for _, text := range []string{"G", post[:len(post)-1]} {
		io.WriteString(dial(), text)
	}
	dial() // and who sends nothing
	time.Sleep(20 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

func TestShutdownWaitsForNoConnectionWithoutLimits(t *testing.T) {
	s, dial, _ := serve(t, "tcp", told, nil)
	dial()
	time.Sleep(20 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

func TestShutdownEndsTheConnectionsOfNetHTTPToo(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	s, dial, rest := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(started)
			<-release
		}
	}, nil)
	slow, other := dial(), dial()
	io.WriteString(slow, "GET /slow HTTP/1.1\r\nHost: f\r\n\r\n")
	<-started
	const head = "HEAD / HTTP/1.1\r\nHost: f\r\n\r\n" // net/http's
	in := bufio.NewReader(other)
	io.WriteString(other, head)
	if _, err := http.ReadResponse(in, &http.Request{Method: http.MethodHead}); err != nil || rest.Load() != 1 {
		t.Fatal(err, rest.Load())
	}
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	ended(t, in) // while the slow one is still in
	close(release)
	read(t, bufio.NewReader(slow))
	if err := <-down; err != nil {
		t.Error(err)
	}
}

func TestServeAfterShutdownDoesNotServe(t *testing.T) {
	s := &Server{Handler: http.NotFoundHandler(), Rest: &http.Server{}}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func TestACallerThatSendsNoMoreStillGetsItsAnswers(t *testing.T) {
	_, dial, rest := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		cancelled := false
		select {
		case <-time.After(5 * watchEvery):
		case <-r.Context().Done():
			cancelled = true
		}
		fmt.Fprint(w, r.URL.Path, " ", cancelled)
	}, nil)
	for _, apart := range []time.Duration{0, 2 * watchEvery} {
		c := dial()
		in := bufio.NewReader(c)
		io.WriteString(c, "GET /1 HTTP/1.1\r\nHost: f\r\n\r\n")
		time.Sleep(apart)
		io.WriteString(c, "GET /2 HTTP/1.1\r\nHost: f\r\n\r\n")
		_ = c.(*net.TCPConn).CloseWrite()
		// The first is not at the end of what the caller sent, the second is.
		for _, want := range []string{"/1 false", "/2 true"} {
			if _, body := read(t, in); body != want {
				t.Errorf("%q, want %q", body, want)
			}
		}
		ended(t, in)
	}
	if rest.Load() != 0 {
		t.Error("net/http was asked")
	}
}

func TestACallLeavesNothingToTheNext(t *testing.T) {
	calls := 0
	mux := http.NewServeMux()
	mux.HandleFunc("/first/{name}", func(_ http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		*r = *r.WithContext(ctx)
		r.Close, r.Form, r.TransferEncoding = true, map[string][]string{"a": {"b"}}, []string{"chunked"}
	})
	_, dial, _ := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		if calls++; calls == 1 {
			mux.ServeHTTP(w, r)
			return
		}
		fmt.Fprintf(w, "%q %v %v %v %v", r.PathValue("name"), r.Context().Err(), r.Close, r.Form, r.TransferEncoding)
	}, nil)
	c := dial()
	in := bufio.NewReader(c)
	io.WriteString(c, "GET /first/secret HTTP/1.1\r\nHost: f\r\n\r\n")
	read(t, in)
	io.WriteString(c, get)
	if _, body := read(t, in); body != `"" <nil> false map[] []` {
		t.Error(body)
	}
}

func TestNoHeaderCanHoldAnother(t *testing.T) {
	_, dial, _ := serve(t, "tcp", func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"X-A: 1\r\nX-Forged", "X-B\r", "X C", "", http.TrailerPrefix + "X-D"} {
			w.Header()[name] = []string{"x"}
		}
		w.Header().Set("X-Good", "x")
	}, nil)
	c := dial()
	io.WriteString(c, get)
	res, _ := read(t, bufio.NewReader(c))
	for name := range res.Header {
		if name != "X-Good" && name != "Date" && name != "Content-Length" {
			t.Errorf("%q came through", name)
		}
	}
}

func TestWhatIsEncodedIsNotGuessedAt(t *testing.T) {
	_, dial, _ := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/encoded" {
			w.Header().Set("Content-Encoding", "gzip")
		}
		w.Write([]byte("<html>" + strings.Repeat("x", 2*kept)))
	}, nil)
	c := dial()
	in := bufio.NewReader(c)
	for path, want := range map[string]string{"/encoded": "", "/plain": "text/html; charset=utf-8"} {
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: f\r\n\r\n", path)
		if res, _ := read(t, in); res.Header.Get("Content-Type") != want {
			t.Errorf("%s: %q", path, res.Header.Get("Content-Type"))
		}
	}
}

func TestAHandlersOwnWriteDeadlineHoldsForItsCallOnly(t *testing.T) {
	for _, limit := range []time.Duration{0, time.Minute} {
		wrote := make(chan error, 1)
		_, dial, _ := serve(t, "unix", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/quick" {
				_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
				return
			}
			if r.URL.Path == "/own" {
				_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
				_, err := w.Write(make([]byte, 16<<20))
				wrote <- err
				return
			}
			time.Sleep(100 * time.Millisecond)
		}, func(s *Server) { s.WriteTimeout = limit })
		io.WriteString(dial(), "GET /own HTTP/1.1\r\nHost: f\r\n\r\n")
		select {
		case err := <-wrote:
			if err == nil {
				t.Error("everything was written to nobody")
			}
		case <-time.After(3 * time.Second):
			t.Error("still writing")
		}
		c := dial()
		in := bufio.NewReader(c)
		for _, path := range []string{"/quick", "/late"} {
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: f\r\n\r\n", path)
			read(t, in)
		}
	}
}

func TestARefusalArrivesAlthoughTheRestIsNotRead(t *testing.T) {
	_, dial, _ := serve(t, "tcp", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}, nil)
	c := dial()
	go func() {
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 100000000\r\n\r\n")
		_, _ = c.Write(make([]byte, 1<<20))
	}()
	all, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 413") {
		t.Errorf("%q, %v", all, err)
	}
}

func TestAnIdleConnectionHoldsLittle(t *testing.T) {
	const many, most = 100, 18 << 10
	answer := strings.Repeat("x", kept)
	_, dial, rest := serve(t, "unix", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) }, nil)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	request := "GET / HTTP/1.1\r\nHost: f\r\nX-A: " + strings.Repeat("a", 15_000) + "\r\n\r\n"
	before := heap()
	conns := make([]net.Conn, many)
	for i := range conns {
		conns[i] = dial()
		io.WriteString(conns[i], request)
		read(t, bufio.NewReader(conns[i]))
	}
	time.Sleep(50 * time.Millisecond)
	if each := (heap() - before) / many; each > most {
		t.Errorf("%d bytes a connection, at most %d are allowed", each, most)
	} else {
		t.Logf("%d bytes a connection, the client's included", each)
	}
	if rest.Load() != 0 {
		t.Error("net/http was asked")
	}
}

func TestAPanicNeedsNoLogger(t *testing.T) {
	_, dial, _ := serve(t, "tcp", func(http.ResponseWriter, *http.Request) { panic("on purpose") }, func(s *Server) { s.Logger = nil })
	c := dial()
	io.WriteString(c, get)
	ended(t, bufio.NewReader(c))
}

func TestTheFirstRequestOfANewConnectionIsAnsweredDuringShutdown(t *testing.T) {
	s, dial, _ := serve(t, "tcp", told, nil)
	c := dial()
	time.Sleep(20 * time.Millisecond) // it is accepted
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(t.Context()) }()
	time.Sleep(100 * time.Millisecond)
	io.WriteString(c, get)
	if res, _ := read(t, bufio.NewReader(c)); res.StatusCode != http.StatusOK || !res.Close {
		t.Errorf("%s, closed behind it %t", res.Status, res.Close)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// closing is a listener that accepts its one connection while it is being closed.
type closing struct {
	net.Listener
	conn   chan net.Conn
	closed chan struct{}
}

func (l *closing) Accept() (net.Conn, error) {
	<-l.closed
	select {
	case c := <-l.conn:
		return c, nil
	default:
		return nil, net.ErrClosed
	}
}

func (l *closing) Close() error {
	close(l.closed)
	return l.Listener.Close()
}

func TestAConnectionThatIsAcceptedAsShutdownBeginsIsAnswered(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, get)
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	late := &closing{l, make(chan net.Conn, 1), make(chan struct{})}
	late.conn <- accepted
	s := &Server{Handler: http.HandlerFunc(told), Rest: &http.Server{}}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(late) }()
	time.Sleep(20 * time.Millisecond) // it waits in Accept
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if res, _ := read(t, bufio.NewReader(c)); res.StatusCode != http.StatusOK {
		t.Error(res.Status)
	}
}
