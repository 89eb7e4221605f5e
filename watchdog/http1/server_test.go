package http1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a server for h on a Unix or TCP socket; rest tells which requests net/http got.
func serve(t testing.TB, network string, h http.HandlerFunc, change func(*Server)) (s *Server, dial func() net.Conn, rest *atomic.Int64) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	rest = new(atomic.Int64)
	s = &Server{Handler: h, Logger: slog.New(slog.DiscardHandler), Rest: &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rest.Add(1)
			h(w, r)
		}),
	}}
	if change != nil {
		change(s)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error("shutdown:", err)
			s.Close()
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error("serve:", err)
		}
	})
	return s, func() net.Conn {
		c, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}, rest
}

// told answers with all that it was told.
func told(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s %v %d %q %v", r.Method, r.RequestURI, r.Host, r.Header, r.ContentLength, body, err)
}

func read(t testing.TB, r *bufio.Reader) (*http.Response, string) {
	t.Helper()
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal("read answer:", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal("read answer's body:", err)
	}
	return res, string(body)
}

func ended(t *testing.T, r *bufio.Reader) {
	t.Helper()
	if b, err := r.ReadByte(); err == nil {
		t.Errorf("the connection went on with %q", b)
	}
}

func TestEveryRequestIsAnsweredAsNetHTTPDoes(t *testing.T) {
	_, dial, _ := serve(t, "tcp", told, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plain := &http.Server{Handler: http.HandlerFunc(told)}
	go plain.Serve(l)
	defer plain.Close()
	answer := func(c net.Conn, text string) string {
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		all, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		// Dates differ by a second at times, and ours come in another order.
		var kept []string
		for line := range strings.Lines(string(all)) {
			if !strings.HasPrefix(line, "Date:") {
				kept = append(kept, line)
			}
		}
		head, body, _ := strings.Cut(strings.Join(kept, ""), "\r\n\r\n")
		lines := strings.Split(head, "\r\n")
		sortFrom1(lines)
		return strings.Join(lines, "\n") + "\n\n" + body
	}
	for _, c := range verdicts {
		t.Run(c.name, func(t *testing.T) {
			reference, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			want := answer(reference, c.text)
			if got := answer(dial(), c.text); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func sortFrom1(lines []string) {
	if len(lines) > 1 {
		rest := lines[1:]
		for i := range rest {
			for j := i; j > 0 && rest[j] < rest[j-1]; j-- {
				rest[j], rest[j-1] = rest[j-1], rest[j]
			}
		}
	}
}

func TestPipelinedCallsAreAnsweredInOrderAndTheRestByNetHTTP(t *testing.T) {
	_, dial, rest := serve(t, "unix", told, nil)
	c := dial()
	chunked := "POST /x HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n\r\n"
	go io.WriteString(c, post+post+chunked+post)
	in := bufio.NewReader(c)
	for i, want := range []string{`"abc"`, `"abc"`, `"z"`, `"abc"`} {
		if _, body := read(t, in); !strings.Contains(body, want) {
			t.Errorf("answer %d: %s", i, body)
		}
	}
	if n := rest.Load(); n != 2 {
		t.Errorf("net/http answered %d, want the chunked one and what came after it", n)
	}
}

func TestACallThatComesInPiecesIsStillShort(t *testing.T) {
	_, dial, rest := serve(t, "tcp", told, func(s *Server) { s.ReadTimeout = 5 * time.Second })
	c := dial()
	in := bufio.NewReader(c)
	for range 2 {
		for i := range post {
			io.WriteString(c, post[i:i+1])
			if i%16 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		if _, body := read(t, in); !strings.Contains(body, `"abc"`) {
			t.Error(body)
		}
	}
	long := strings.Repeat("y", 50_000)
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: %d\r\n\r\n%s", len(long), long)
	if _, body := read(t, in); !strings.Contains(body, long) {
		t.Error("the long one came back otherwise")
	}
	if rest.Load() != 0 {
		t.Error("net/http was asked")
	}
}

func TestACallThatTakesDeclinesGoesToNetHTTP(t *testing.T) {
	_, dial, rest := serve(t, "tcp", told, func(s *Server) {
		s.Takes = func(r *http.Request) bool { return r.Header.Get("X-A") == "" }
	})
	c := dial()
	io.WriteString(c, post)
	if _, body := read(t, bufio.NewReader(c)); !strings.Contains(body, `"abc"`) || rest.Load() != 1 {
		t.Error(body, rest.Load())
	}
}

func TestASenderThatIsTooSlowIsNetHTTPsToRefuse(t *testing.T) {
	began := time.Now()
	_, dial, rest := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusRequestTimeout)
		}
	}, func(s *Server) { s.ReadTimeout = 100 * time.Millisecond })
	c := dial()
	io.WriteString(c, post[:len(post)-1])
	res, _ := read(t, bufio.NewReader(c))
	if res.StatusCode != http.StatusRequestTimeout || rest.Load() != 1 {
		t.Error(res.Status, rest.Load())
	}
	if took := time.Since(began); took < 100*time.Millisecond || took > 3*time.Second {
		t.Error("took", took)
	}
}

func TestAnIdleConnectionIsClosedAndABusyOneIsNot(t *testing.T) {
	const idle = 200 * time.Millisecond
	_, dial, _ := serve(t, "tcp", told, func(s *Server) { s.IdleTimeout = idle })
	c := dial()
	in := bufio.NewReader(c)
	for range 6 { // for longer than the timeout
		io.WriteString(c, post)
		read(t, in)
		time.Sleep(idle / 3)
	}
	began := time.Now()
	ended(t, in)
	if took := time.Since(began); took < idle/2 || took > 2*idle {
		t.Error("closed after", took)
	}
}

func TestTheContextEndsWhenTheCallerIsGone(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			started, gone := make(chan struct{}), make(chan struct{})
			_, dial, rest := serve(t, network, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/wait" {
					return
				}
				close(started)
				<-r.Context().Done()
				close(gone)
			}, nil)
			c := dial()
			io.WriteString(c, "GET /wait HTTP/1.1\r\nHost: f\r\n\r\n")
			<-started
			time.Sleep(3 * watchEvery)
			select {
			case <-gone:
				t.Fatal("ended while the caller waited")
			default:
			}
			c.Close()
			select {
			case <-gone:
			case <-time.After(2 * time.Second):
				t.Fatal("still going on")
			}
			other := dial()
			io.WriteString(other, "GET / HTTP/1.1\r\nHost: f\r\n\r\n")
			read(t, bufio.NewReader(other))
			if rest.Load() != 0 {
				t.Error("net/http was asked")
			}
		})
	}
}

func TestTheWatchWakesForACallThatComesAsItFallsAsleep(t *testing.T) {
	var gone atomic.Int64
	_, dial, _ := serve(t, "unix", func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		gone.Add(1)
	}, nil)
	const callers = 40
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			time.Sleep(time.Duration(i) * watchIdle / 20)
			c := dial()
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: f\r\n\r\n")
			time.Sleep(2 * time.Millisecond)
			c.Close()
		})
	}
	all.Wait()
	for range 200 {
		if gone.Load() == callers {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d of %d ended", gone.Load(), callers)
}

func TestShutdownAnswersWhatIsInAndWhatIsOnItsWay(t *testing.T) {
	started := make(chan struct{})
	s, dial, _ := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(started)
			time.Sleep(100 * time.Millisecond)
		}
		io.WriteString(w, "answered "+r.URL.Path)
	}, func(s *Server) { s.IdleTimeout, s.ReadTimeout = time.Minute, time.Minute })
	slow, idle, half := dial(), dial(), dial()
	for _, c := range []net.Conn{idle, half} { // known to the server
		io.WriteString(c, "GET /first HTTP/1.1\r\nHost: f\r\n\r\n")
		read(t, bufio.NewReader(c))
	}
	io.WriteString(half, "GET /half HTTP/1.1\r\nHo")
	io.WriteString(slow, "GET /slow HTTP/1.1\r\nHost: f\r\n\r\n")
	<-started
	time.Sleep(20 * time.Millisecond)
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(t.Context()) }()
	ended(t, bufio.NewReader(idle))
	io.WriteString(half, "st: f\r\n\r\n")
	for path, c := range map[string]net.Conn{"/half": half, "/slow": slow} {
		in := bufio.NewReader(c)
		res, body := read(t, in)
		if body != "answered "+path || !res.Close {
			t.Error(body, res.Close)
		}
		ended(t, in)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

func TestShutdownGivesUpWithItsContext(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	s, dial, _ := serve(t, "tcp", func(http.ResponseWriter, *http.Request) {
		close(started)
		<-release
	}, nil)
	io.WriteString(dial(), "GET / HTTP/1.1\r\nHost: f\r\n\r\n")
	<-started
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(release)
}

func TestCloseEndsContextsAtOnce(t *testing.T) {
	started := make(chan struct{})
	s, dial, _ := serve(t, "tcp", func(_ http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
	}, nil)
	c := dial()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: f\r\n\r\n")
	<-started
	s.Close()
	ended(t, bufio.NewReader(c))
}

func TestAHandlerThatPanicsLosesItsConnectionOnly(t *testing.T) {
	_, dial, _ := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic("on purpose")
		}
		told(w, r)
	}, nil)
	bad, good := dial(), dial()
	io.WriteString(bad, "GET /panic HTTP/1.1\r\nHost: f\r\n\r\n")
	ended(t, bufio.NewReader(bad))
	io.WriteString(good, post)
	read(t, bufio.NewReader(good))
}

func TestAnswersOfEveryShape(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 20_000)
	_, dial, rest := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		switch r.URL.Path {
		case "/empty":
		case "/none":
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrBodyNotAllowed) {
				panic(err)
			}
		case "/two":
			io.WriteString(w, "one ")
			io.WriteString(w, "two")
		case "/big":
			io.WriteString(w, big)
		case "/bigdeclared":
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			for at := 0; at < len(big); at += 10_000 {
				io.WriteString(w, big[at:min(at+10_000, len(big))])
			}
		case "/flushed":
			for i := range 3 {
				fmt.Fprintf(w, "line %d\n", i)
				if err := control.Flush(); err != nil {
					panic(err)
				}
			}
		case "/split":
			w.Header().Set("X-Split", "a\r\nX-Forged: b")
		case "/early":
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusTeapot)
			w.WriteHeader(http.StatusOK)
		case "/long":
			w.Header().Set("Content-Length", "3")
			if _, err := io.WriteString(w, "four"); !errors.Is(err, http.ErrContentLength) {
				panic(err)
			}
			io.WriteString(w, "abc")
		}
	}, func(s *Server) { s.WriteTimeout = 5 * time.Second })
	c := dial()
	in := bufio.NewReader(c)
	for path, want := range map[string]string{
		"/empty": "", "/none": "", "/two": "one two", "/big": big, "/bigdeclared": big, "/flushed": "line 0\nline 1\nline 2\n",
		"/split": "", "/early": "", "/long": "abc",
	} {
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: f\r\n\r\n", path)
		res, body := read(t, in)
		if body != want {
			t.Errorf("%s: %d bytes, want %d", path, len(body), len(want))
		}
		if res.Header.Get("X-Forged") != "" || res.Header.Get("Date") == "" {
			t.Errorf("%s: %v", path, res.Header)
		}
		if status := map[string]int{"/none": http.StatusNoContent, "/early": http.StatusTeapot}[path]; status != 0 && res.StatusCode != status {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
	if rest.Load() != 0 {
		t.Error("net/http was asked")
	}
}

func TestAnAnswerThatIsShorterThanDeclaredCutsTheConnection(t *testing.T) {
	for _, size := range []int{1, 3 * kept} {
		_, dial, _ := serve(t, "tcp", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size+1))
			io.WriteString(w, strings.Repeat("x", size))
		}, nil)
		c := dial()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: f\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		if err == nil {
			t.Error(size, "looks complete")
		}
	}
}

func TestAReaderThatIsTooSlowIsCutOff(t *testing.T) {
	wrote := make(chan error, 1)
	_, dial, _ := serve(t, "unix", func(w http.ResponseWriter, _ *http.Request) {
		_, err := w.Write(make([]byte, 16<<20))
		wrote <- err
	}, func(s *Server) { s.WriteTimeout = 100 * time.Millisecond })
	io.WriteString(dial(), "GET / HTTP/1.1\r\nHost: f\r\n\r\n")
	select {
	case err := <-wrote:
		if err == nil {
			t.Error("everything was written to nobody")
		}
	case <-time.After(3 * time.Second):
		t.Error("still writing")
	}
}

// BenchmarkServer is a call over a Unix socket, client included; net/http is the server that it stands
// in for.
func BenchmarkServer(b *testing.B) {
	handler := func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = []string{"text/plain"}
		_, _ = io.Copy(w, r.Body)
	}
	for _, taken := range []bool{true, false} {
		b.Run(map[bool]string{true: "http1", false: "net/http"}[taken], func(b *testing.B) {
			_, dial, _ := serve(b, "unix", handler, func(s *Server) {
				s.Takes = func(*http.Request) bool { return taken }
				s.ReadTimeout, s.WriteTimeout, s.IdleTimeout = time.Minute, time.Minute, time.Minute
			})
			c := dial()
			_ = c.SetDeadline(time.Time{})
			buf := make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				io.WriteString(c, post)
				if _, err := c.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
