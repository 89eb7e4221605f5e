package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// front is a server whose every request is forwarded to the socket, as the provider does it.
type front struct {
	*httptest.Server
	pool   *Pool
	last   atomic.Value // error of the last call
	client *http.Client
}

func newFront(t testing.TB, socket string) *front { return newFrontTo(t, NewPool(socket, "", 64)) }

func newFrontTo(t testing.TB, pool *Pool) *front {
	f := &front{pool: pool, client: &http.Client{Transport: &http.Transport{}}}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := f.pool.Forward(w, r, r.URL.RequestURI(), r.Host, r.Header)
		f.last.Store(fmt.Sprint(err))
		switch {
		case errors.Is(err, ErrAborted):
			panic(http.ErrAbortHandler)
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	}))
	f.Config.ErrorLog = nil
	f.Start()
	t.Cleanup(func() {
		f.client.CloseIdleConnections()
		f.Close()
		f.pool.Close()
	})
	return f
}

func listen(t testing.TB) net.Listener {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serve runs a net/http server, as fwatchdog is one, on a new socket.
func serve(t testing.TB, h http.HandlerFunc) string {
	l := listen(t)
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

func (f *front) post(t *testing.T, path, body string) (*http.Response, string) {
	t.Helper()
	res, err := f.client.Post(f.URL+path, "text/plain", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(answer)
}

// What the caller did wrong must not count as the function's failure.
func TestABodyThatCannotBeReadIsTheCallers(t *testing.T) {
	f := newFront(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	for range 100 {
		c, err := net.Dial("tcp", f.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n3\r\n0\r\n\r\n")
		_, _ = io.ReadAll(c)
		c.Close()
		if said, _ := f.last.Load().(string); !strings.HasPrefix(said, ErrClientGone.Error()) {
			t.Fatalf("got %s", said)
		}
	}
}

func TestForwardCarriesEverythingButTheConnection(t *testing.T) {
	f := newFront(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Connection", "Keep-Alive", "Te"} {
			if r.Header.Get(name) != "" {
				t.Errorf("header %s reached the function", name)
			}
		}
		body, _ := io.ReadAll(r.Body)
		w.Header().Add("X-Many", "a")
		w.Header().Add("X-Many", "b")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s %s %s %s", r.Method, r.URL.RequestURI(), r.Host, r.Header.Get("X-Own"), body)
	}))
	req, _ := http.NewRequest(http.MethodPut, f.URL+"/a%2Fb?q=1", strings.NewReader("body"))
	req.Host = "models.example"
	req.Header.Set("X-Own", "yes")
	req.Header.Set("Te", "trailers")
	res, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, _ := io.ReadAll(res.Body)
	if want := "PUT /a%2Fb?q=1 models.example yes body"; string(answer) != want || res.StatusCode != http.StatusTeapot {
		t.Errorf("got %d %q", res.StatusCode, answer)
	}
	if got := res.Header.Values("X-Many"); len(got) != 2 {
		t.Errorf("X-Many is %v", got)
	}
}

func TestBodiesOfEverySizeAndFraming(t *testing.T) {
	f := newFront(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Write(body)
	}))
	for _, size := range []int{0, 1, 2000, 5000, maxBuffered, maxBuffered + 1, 5 << 20} {
		for _, chunked := range []bool{false, true} {
			want := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
			var body io.Reader = bytes.NewReader(want)
			if chunked {
				body = struct{ io.Reader }{body}
			}
			res, err := f.client.Post(f.URL, "text/plain", body)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("size %d, chunked %v: got %d bytes, error %v", size, chunked, len(got), err)
			}
		}
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	var opened atomic.Int64
	l := listen(t)
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				opened.Add(1)
			}
		},
	}
	go s.Serve(l)
	defer s.Close()
	f := newFront(t, l.Addr().String())
	for range 50 {
		if _, got := f.post(t, "/", "x"); got != "x" {
			t.Fatalf("got %q", got)
		}
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections for 50 calls", n)
	}
}

// scripted is a peer that answers nothing by itself: each connection is given to the next step.
func scripted(t *testing.T, steps ...func(c *net.UnixConn)) string {
	l := listen(t)
	go func() {
		for _, step := range steps {
			c, err := l.Accept()
			if err != nil {
				return
			}
			step(c.(*net.UnixConn))
			c.Close()
		}
	}()
	return l.Addr().String()
}

// answerOnce reads one whole request and answers it.
func answerOnce(c *net.UnixConn, r *bufio.Reader, body string) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	io.Copy(io.Discard, req.Body)
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func TestRequestThatWasNotReadIsSentAgain(t *testing.T) {
	received := make(chan struct{})
	f := newFront(t, scripted(t,
		func(c *net.UnixConn) {
			answerOnce(c, bufio.NewReader(c), "first")
			// Wait until the next request lies unread in the socket, then close: the connection
			// looked open when it was taken.
			raw, _ := c.SyscallConn()
			raw.Read(func(fd uintptr) bool { return waitReadable(fd) })
			close(received)
		},
		func(c *net.UnixConn) { answerOnce(c, bufio.NewReader(c), "second") },
	))
	if _, got := f.post(t, "/", "1"); got != "first" {
		t.Fatalf("got %q", got)
	}
	if _, got := f.post(t, "/", "2"); got != "second" {
		t.Errorf("got %q, error %v", got, f.last.Load())
	}
	<-received
}

func TestRequestThatMayHaveRunIsNeverSentAgain(t *testing.T) {
	var requests atomic.Int64
	f := newFront(t, scripted(t,
		func(c *net.UnixConn) {
			r := bufio.NewReader(c)
			answerOnce(c, r, "first")
			req, err := http.ReadRequest(r)
			if err == nil {
				io.Copy(io.Discard, req.Body)
				requests.Add(1) // and dies while it predicts
			}
		},
		func(c *net.UnixConn) { requests.Add(1) },
	))
	f.post(t, "/", "1")
	res, _ := f.post(t, "/", "2")
	if res.StatusCode != http.StatusBadGateway || requests.Load() != 1 {
		t.Errorf("status %d after %d sendings, error %v", res.StatusCode, requests.Load(), f.last.Load())
	}
	if got := fmt.Sprint(f.last.Load()); !strings.Contains(got, ErrBroken.Error()) {
		t.Errorf("error %s", got)
	}
}

func TestClosedIdleConnectionIsNotUsed(t *testing.T) {
	closed := make(chan struct{})
	f := newFront(t, scripted(t,
		func(c *net.UnixConn) {
			answerOnce(c, bufio.NewReader(c), "first")
			c.Close()
			close(closed)
		},
		func(c *net.UnixConn) { answerOnce(c, bufio.NewReader(c), "second") },
	))
	f.post(t, "/", "1")
	<-closed
	if _, got := f.post(t, "/", strings.Repeat("x", 2000)); got != "second" {
		t.Errorf("got %q", got)
	}
}

func TestAnswerCutShortNeverLooksComplete(t *testing.T) {
	for name, answer := range map[string]string{
		"length":           "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"chunked":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
		"chunked, trailer": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t, scripted(t, func(c *net.UnixConn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, answer)
			}))
			res, err := f.client.Post(f.URL, "text/plain", nil)
			if err == nil {
				_, err = io.ReadAll(res.Body)
				res.Body.Close()
			}
			if err == nil {
				t.Error("the client took it for a complete answer")
			}
		})
	}
}

func TestNoAnswerAtAllIsAnError(t *testing.T) {
	for name, answer := range map[string]string{"nothing": "", "half a status": "HTTP/1.1 2", "not HTTP": "hello\r\n\r\n", "half headers": "HTTP/1.1 200 OK\r\nContent-Le"} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t, scripted(t, func(c *net.UnixConn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, answer)
			}))
			if res, _ := f.post(t, "/", ""); res.StatusCode != http.StatusBadGateway {
				t.Errorf("status %d", res.StatusCode)
			}
		})
	}
	f := newFront(t, filepath.Join(t.TempDir(), "nobody"))
	if res, _ := f.post(t, "/", ""); res.StatusCode != http.StatusBadGateway || !strings.Contains(fmt.Sprint(f.last.Load()), ErrUnreached.Error()) {
		t.Errorf("status %d, error %v", res.StatusCode, f.last.Load())
	}
}

func TestStreamsInBothDirectionsAtOnce(t *testing.T) {
	f := newFront(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		for scan := bufio.NewScanner(r.Body); scan.Scan(); {
			fmt.Fprintf(w, "got %s\n", scan.Text())
			http.NewResponseController(w).Flush()
		}
	}))
	body, write := io.Pipe()
	req, _ := http.NewRequest(http.MethodPost, f.URL, body)
	answered := make(chan *http.Response)
	go func() {
		res, err := f.client.Do(req)
		if err != nil {
			t.Error(err)
		}
		answered <- res
	}()
	fmt.Fprintln(write, "0")
	res := <-answered
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for i := range 20 {
		// Each answer comes before the next line is sent.
		if !lines.Scan() || lines.Text() != fmt.Sprintf("got %d", i) {
			t.Fatalf("line %d: %q, %v", i, lines.Text(), lines.Err())
		}
		if i < 19 {
			fmt.Fprintln(write, i+1)
		}
	}
	write.Close()
	if lines.Scan() {
		t.Errorf("more: %q", lines.Text())
	}
}

func TestManyLongBodiesOnOneConnectionAreAllAnswered(t *testing.T) {
	socket := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	})
	for name, chunked := range map[string]bool{"length": false, "chunked": true} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t, socket)
			conn, err := net.Dial("tcp", f.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			const size, calls = 70_000, 1500
			body := bytes.Repeat([]byte("y"), size)
			request := fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", size, body)
			if chunked {
				request = fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", size, body)
			}
			in := bufio.NewReader(conn)
			for n := range calls {
				if _, err := conn.Write(request); err != nil {
					t.Fatal(err)
				}
				res, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				answer, err := io.ReadAll(res.Body)
				if err != nil || res.StatusCode != http.StatusOK || string(answer) != fmt.Sprint(size) {
					t.Fatalf("call %d: %d %s, %v", n, res.StatusCode, answer, err)
				}
			}
		})
	}
}

func TestEarlyAnswerToALongBodyArrives(t *testing.T) {
	f := newFront(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
	}))
	body, write := io.Pipe()
	defer write.Close()
	go write.Write(make([]byte, 1000)) // and then nothing: the client waits
	req, _ := http.NewRequest(http.MethodPost, f.URL, body)
	res, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusRequestEntityTooLarge || string(got) != "too large\n" {
		t.Errorf("got %d %q", res.StatusCode, got)
	}
}

func TestClientThatLeavesCancelsTheCall(t *testing.T) {
	started, cancelled := make(chan struct{}), make(chan struct{})
	f := newFront(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		close(started)
		<-r.Context().Done()
		close(cancelled)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-started
		cancel()
	}()
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, f.URL, strings.NewReader("x"))
	if _, err := f.client.Do(req); err == nil {
		t.Error("answered")
	}
	select {
	case <-cancelled:
	case <-time.After(5 * time.Second):
		t.Error("the function was not told")
	}
}

func TestClientThatLeavesHalfwayThroughItsBodyIsNotACompleteRequest(t *testing.T) {
	result := make(chan error, 1)
	f := newFront(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		result <- err
	}))
	u, _ := url.Parse(f.URL)
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
	time.Sleep(50 * time.Millisecond)
	c.Close()
	if err := <-result; err == nil {
		t.Error("the function took half a body for a whole one")
	}
}

func FuzzReadHead(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
	f.Add("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
	f.Add("HTTP/1.0 204 x\n\n")
	f.Fuzz(func(t *testing.T, s string) {
		r := bufio.NewReaderSize(strings.NewReader(s), readBufferBytes)
		h, err := readHead(r)
		if err != nil {
			return
		}
		body, _, err := h.body(r, http.MethodPost)
		if err != nil || body == nil {
			return
		}
		if n, _ := io.Copy(io.Discard, body); n > int64(len(s)) {
			t.Errorf("%d bytes out of %d", n, len(s))
		}
	})
}

// BenchmarkForward compares one call through the pool with the same through net/http's Transport.
func BenchmarkForward(b *testing.B) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		var buf [256]byte
		n, _ := io.ReadFull(r.Body, buf[:])
		w.Write(buf[:n])
	}
	socket := serve(b, echo)
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	target, _ := url.Parse("http://function")
	reverse := httputil.NewSingleHostReverseProxy(target)
	reverse.Transport = transport
	pool := NewPool(socket, "", 64)
	defer pool.Close()
	for name, h := range map[string]http.HandlerFunc{
		"pool":         func(w http.ResponseWriter, r *http.Request) { pool.Forward(w, r, "/", "x", r.Header) },
		"reverseproxy": reverse.ServeHTTP,
	} {
		b.Run(name, func(b *testing.B) {
			front := httptest.NewServer(h)
			defer front.Close()
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
			defer client.CloseIdleConnections()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					res, err := client.Post(front.URL, "text/plain", strings.NewReader("5.1,3.5,1.4,0.2"))
					if err != nil {
						b.Error(err)
						return
					}
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
			})
		})
	}
}
