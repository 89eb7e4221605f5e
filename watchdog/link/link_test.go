package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

// serve runs a watchdog's admin server with links to h.
func serve(t testing.TB, h http.HandlerFunc) (*Acceptor, string) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	a := &Acceptor{Handler: h}
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, a)
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	t.Cleanup(func() {
		s.Close()
		a.Shutdown(context.Background())
	})
	return a, socket
}

func dial(t testing.TB, socket string) *Client {
	c, err := Dial(context.Background(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func echo(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }

// do answers with status, headers and body.
func do(t testing.TB, c *Client, call *Call) (int, http.Header, string) {
	t.Helper()
	a, err := c.Do(context.Background(), call)
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	body, err := a.Read(h)
	if err != nil {
		t.Fatal(err)
	}
	return a.Status, h, string(body)
}

func TestLinkCarriesAWholeCallAndAnswer(t *testing.T) {
	_, socket := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Add("X-Many", "a")
		w.Header().Add("X-Many", "b")
		w.Header().Set("X-Empty", "")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s %s %s %v %s", r.Method, r.URL.Path, r.URL.RawQuery, r.Host, r.Header["X-In"], body)
	})
	c := dial(t, socket)
	status, header, body := do(t, c, &Call{Method: "PUT", Target: "/a%20b?q=1", Host: "h", Header: http.Header{"X-In": {"1", "2"}}, Body: []byte("\x00body")})
	if want := "PUT /a b q=1 h [1 2] \x00body"; status != http.StatusTeapot || body != want || len(header["X-Many"]) != 2 || len(header["X-Empty"]) != 1 {
		t.Errorf("%d %v %q", status, header, body)
	}
	for _, size := range []int{0, 1, 100_000, MaxCall - 100} {
		want := strings.Repeat("x", size)
		c2 := dial(t, func() string { _, s := serve(t, echo); return s }())
		if _, _, got := do(t, c2, &Call{Method: "POST", Target: "/", Host: "h", Body: []byte(want)}); got != want {
			t.Errorf("size %d: got %d bytes", size, len(got))
		}
	}
}

func TestAnswersFindTheirCalls(t *testing.T) {
	_, socket := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if len(body)%3 == 0 {
			time.Sleep(time.Millisecond)
		}
		w.Write(body)
	})
	c := dial(t, socket)
	var callers sync.WaitGroup
	for caller := range 32 {
		callers.Go(func() {
			for i := range 200 {
				want := fmt.Sprintf("%d-%d", caller, i)
				if _, _, got := do(t, c, &Call{Method: "POST", Target: "/", Body: []byte(want)}); got != want {
					t.Errorf("got %q, want %q", got, want)
					return
				}
			}
		})
	}
	callers.Wait()
}

func TestCallerThatLeavesCancelsItsCallOnly(t *testing.T) {
	started, cancelled := make(chan struct{}), make(chan struct{})
	_, socket := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			close(started)
			<-r.Context().Done()
			close(cancelled)
			return
		}
		echo(w, r)
	})
	c := dial(t, socket)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-started
		cancel()
	}()
	if _, err := c.Do(ctx, &Call{Method: "POST", Target: "/wait"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-cancelled
	if _, _, got := do(t, c, &Call{Method: "POST", Target: "/", Body: []byte("next")}); got != "next" {
		t.Errorf("the next call: %q", got)
	}
}

func TestDeathOfTheWatchdogBreaksTheCallsThatAreOut(t *testing.T) {
	started := make(chan struct{})
	release := make(chan struct{})
	a, socket := serve(t, func(http.ResponseWriter, *http.Request) {
		close(started)
		<-release
	})
	c := dial(t, socket)
	go func() {
		<-started
		a.mu.Lock()
		defer a.mu.Unlock()
		for s := range a.sessions {
			s.w.conn.Close()
		}
	}()
	if _, err := c.Do(t.Context(), &Call{Method: "POST", Target: "/"}); !errors.Is(err, ErrBroken) {
		t.Errorf("the call that was out: %v", err)
	}
	close(release)
	if _, err := c.Do(t.Context(), &Call{Method: "POST", Target: "/"}); !errors.Is(err, ErrUnsent) || !c.Broken() {
		t.Errorf("a later call: %v", err)
	}
}

func TestHandlerThatPanicsAbortsItsCallOnly(t *testing.T) {
	_, socket := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic(http.ErrAbortHandler)
		}
		echo(w, r)
	})
	c := dial(t, socket)
	if _, err := c.Do(t.Context(), &Call{Method: "POST", Target: "/panic"}); !errors.Is(err, ErrBroken) {
		t.Errorf("got %v", err)
	}
	if status, _, _ := do(t, c, &Call{Method: "POST", Target: "/"}); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
}

func TestShutdownAnswersWhatIsIn(t *testing.T) {
	started := make(chan struct{})
	a, socket := serve(t, func(w http.ResponseWriter, r *http.Request) {
		close(started)
		time.Sleep(100 * time.Millisecond)
		io.WriteString(w, "answered")
	})
	c := dial(t, socket)
	ended := make(chan error, 1)
	go func() {
		<-started
		ended <- a.Shutdown(context.Background())
	}()
	if _, _, got := do(t, c, &Call{Method: "POST", Target: "/"}); got != "answered" {
		t.Errorf("got %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestARetiredLinkAnswersWhatIsOutAndGoes(t *testing.T) {
	release := make(chan struct{})
	a, socket := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/waits" {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		io.WriteString(w, "answered")
	})
	gone := func(what string) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			a.mu.Lock()
			left := len(a.sessions)
			a.mu.Unlock()
			if left == 0 {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the link is still there", what)
			}
		}
	}
	c := dial(t, socket)
	do(t, c, &Call{Method: "POST", Target: "/"})
	c.Retire()
	c.Retire()
	gone("unused")

	c = dial(t, socket)
	answered := make(chan string, 1)
	go func() {
		_, _, got := do(t, c, &Call{Method: "POST", Target: "/waits"})
		answered <- got
	}()
	awaitOut(c, 1)
	c.Retire()
	if _, err := c.Do(t.Context(), &Call{Method: "POST", Target: "/"}); !errors.Is(err, ErrUnsent) {
		t.Errorf("a later call: %v", err)
	}
	close(release)
	if got := <-answered; got != "answered" {
		t.Errorf("got %q", got)
	}
	gone("answered")

	release = make(chan struct{})
	c = dial(t, socket)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		awaitOut(c, 1)
		c.Retire()
		cancel()
	}()
	if _, err := c.Do(ctx, &Call{Method: "POST", Target: "/waits"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	gone("given up")
}

// awaitOut returns when so many calls wait for their answers.
func awaitOut(c *Client, n int) {
	for {
		c.mu.Lock()
		out := len(c.waiting)
		c.mu.Unlock()
		if out == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestALinkThatComesAfterTheEndIsRefused(t *testing.T) {
	a, socket := serve(t, echo)
	if err := a.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), "unix", socket); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("got %v", err)
	}
}

func TestShutdownUnderLoadLeavesNoCallInDoubt(t *testing.T) {
	for range 30 {
		var ran atomic.Int64
		a, socket := serve(t, func(w http.ResponseWriter, r *http.Request) {
			ran.Add(1)
			io.WriteString(w, "x")
		})
		c := dial(t, socket)
		var callers sync.WaitGroup
		var answered atomic.Int64
		for range 8 {
			callers.Go(func() {
				for {
					_, err := c.Do(context.Background(), &Call{Method: "GET", Target: "/"})
					if errors.Is(err, ErrUnsent) {
						return
					}
					if err != nil {
						t.Error("in doubt:", err)
						return
					}
					answered.Add(1)
				}
			})
		}
		time.Sleep(2 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := a.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		callers.Wait()
		if ran.Load() != answered.Load() {
			t.Errorf("%d ran, %d were answered", ran.Load(), answered.Load())
		}
	}
}

func TestCallTooLargeForALinkIsNotSent(t *testing.T) {
	var calls atomic.Int64
	_, socket := serve(t, func(w http.ResponseWriter, r *http.Request) { calls.Add(1) })
	c := dial(t, socket)
	if _, err := c.Do(t.Context(), &Call{Method: "POST", Target: "/", Body: make([]byte, MaxCall)}); !errors.Is(err, ErrUnsent) {
		t.Errorf("got %v", err)
	}
	do(t, c, &Call{Method: "POST", Target: "/"})
	if calls.Load() != 1 {
		t.Errorf("%d calls", calls.Load())
	}
}

func TestOtherServersRefuseALink(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.NotFoundHandler()}
	go s.Serve(l)
	defer s.Close()
	if _, err := Dial(t.Context(), "unix", socket); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("got %v", err)
	}
	_, socket = serve(t, echo)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}, DisableKeepAlives: true}}
	res, err := client.Get("http://x" + Path)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("plain GET: %d", res.StatusCode)
	}
}

func FuzzDecode(f *testing.F) {
	b := appendString(appendString(appendString(nil, "POST"), "/"), "host")
	f.Add(append(appendHeader(b, http.Header{"A": {"1", "2"}}), "body"...))
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := request(t.Context(), payload, http.Header{})
		if err != nil {
			return
		}
		if r.ContentLength > int64(len(payload)) {
			t.Error("the body is longer than the payload")
		}
		a := Answer{Status: 200, payload: payload}
		_, _ = a.Read(http.Header{})
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add(end(append(begin(nil, kindCall, 0, 7), "payload"...), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := readFrame(bytes.NewReader(b), MaxCall); err == nil && len(got.payload) > len(b) {
			t.Error("more came out than went in")
		}
	})
}

func BenchmarkLink(b *testing.B) {
	_, socket := serve(b, echo)
	c := dial(b, socket)
	call := &Call{Method: "POST", Target: "/", Host: "h", Header: http.Header{"Content-Type": {"text/plain"}}, Body: []byte("5.1,3.5,1.4,0.2")}
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			do(b, c, call)
		}
	})
}
