package accesslog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answering answers as a function does, after what its path says.
var answering = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Call-Id", "c-1")
	w.Header().Set("X-Model-Version", "1.0_may")
	r.Header.Set("User-Agent", "changed by the handler")
	r.URL.Path = "/changed"
	switch r.URL.RawQuery {
	case "status=418":
		w.WriteHeader(http.StatusTeapot)
	case "abort":
		io.WriteString(w, "part")
		panic(http.ErrAbortHandler)
	case "silent":
		return
	}
	io.WriteString(w, "answer")
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(err)
	}
})

func request(method, target, body string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.RemoteAddr = "192.0.2.7:4711"
	r.Header.Set("User-Agent", "probe/1")
	r.Header.Set("Authorization", "Bearer secret-of-the-caller")
	r.Header.Set("X-Forwarded-For", "203.0.113.9")
	return r
}

// serve lets a handler answer as net/http does.
func serve(h http.Handler, r *http.Request) {
	defer func() { _ = recover() }()
	h.ServeHTTP(httptest.NewRecorder(), r)
}

func lines(t *testing.T, out *bytes.Buffer) []map[string]any {
	t.Helper()
	var all []map[string]any
	for text := range strings.Lines(out.String()) {
		var one map[string]any
		if err := json.Unmarshal([]byte(text), &one); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if at, err := time.Parse(time.RFC3339Nano, one["time"].(string)); err != nil || time.Since(at) > time.Minute {
			t.Errorf("time %v", one["time"])
		}
		if s := one["seconds"].(float64); s < 0 || s > 60 {
			t.Errorf("seconds %v", s)
		}
		for _, name := range []string{"time", "seconds", "level", "msg"} {
			delete(one, name)
		}
		all = append(all, one)
	}
	return all
}

func TestLineSaysWhatWasAskedAndWhatCameOfIt(t *testing.T) {
	var out bytes.Buffer
	l := New(&out, JSON, nil, prometheus.NewRegistry())
	h := l.Handler(answering)
	serve(h, request("POST", "/function/iris/rows?key=secret-in-the-query", "12345"))
	serve(h, request("GET", "/function/iris.dev?status=418", ""))
	serve(h, request("POST", "/function/iris?abort", ""))
	serve(h, request("PUT", "/system/functions?silent", ""))
	l.Close()
	l.Close()
	if strings.Contains(out.String(), "secret") {
		t.Errorf("a secret is in the log: %s", out.String())
	}
	common := func(more map[string]any) map[string]any {
		for k, v := range map[string]any{"proto": "HTTP/1.1", "client": "192.0.2.7", "user_agent": "probe/1", "call_id": "c-1", "version": "1.0_may"} {
			more[k] = v
		}
		return more
	}
	want := []map[string]any{
		common(map[string]any{"method": "POST", "path": "/function/iris/rows", "function": "iris", "status": 200.0, "received": 5.0, "sent": 6.0}),
		common(map[string]any{"method": "GET", "path": "/function/iris.dev", "function": "iris.dev", "status": 418.0, "received": 0.0, "sent": 6.0}),
		common(map[string]any{"method": "POST", "path": "/function/iris", "function": "iris", "status": 200.0, "received": 0.0, "sent": 4.0, "aborted": true}),
		common(map[string]any{"method": "PUT", "path": "/system/functions", "status": 200.0, "received": 0.0, "sent": 0.0}),
	}
	if diff := cmp.Diff(want, lines(t, &out)); diff != "" {
		t.Error(diff)
	}
}

func TestCallerBehindATrustedProxyIsNamed(t *testing.T) {
	var out bytes.Buffer
	l := New(&out, JSON, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, prometheus.NewRegistry())
	serve(l.Handler(answering), request("GET", "/", ""))
	l.Close()
	if got := lines(t, &out)[0]["client"]; got != "203.0.113.9" {
		t.Errorf("client %v", got)
	}
}

func TestClientCannotForgeOrBlowUpALine(t *testing.T) {
	for _, format := range []string{Text, JSON} {
		var out bytes.Buffer
		l := New(&out, format, nil, prometheus.NewRegistry())
		r := request("GET", "/", "")
		r.URL.Path = "/function/" + strings.Repeat("é", 1000) + "\ntime=2026 level=ERROR msg=forged"
		r.Header.Set("User-Agent", "a\nb\x1b[31m"+strings.Repeat("x", 5000))
		serve(l.Handler(answering), r)
		l.Close()
		if got := out.String(); strings.Count(got, "\n") != 1 || len(got) > 5*maxText || strings.Contains(got, "\x1b") {
			t.Errorf("%s: %d bytes: %q", format, len(got), got)
		}
	}
}

func TestALineThatWaitsKeepsNothingLong(t *testing.T) {
	l := &Log{full: make(chan struct{}, 1)} // nobody writes
	long := strings.Repeat("x", 5000)
	r := request(long, "/function/"+long, "")
	r.Header.Set("User-Agent", long)
	serve(l.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Call-Id", long)
		w.Header().Set("X-Model-Version", long)
	})), r)
	if len(l.kept) != 1 {
		t.Fatalf("%d lines are kept", len(l.kept))
	}
	for _, kept := range l.kept {
		for _, text := range []string{kept.method, kept.path, kept.userAgent, kept.callID, kept.version} {
			if len(text) > maxText+len("…") {
				t.Errorf("%d bytes are kept of what somebody says", len(text))
			}
		}
	}
}

// stuck is a pipe that nobody reads, until it is let go.
type stuck struct {
	release chan struct{}
	mu      sync.Mutex
	lines   int
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines += bytes.Count(p, []byte("\n"))
	return len(p), nil
}

func TestCallsDoNotWaitForAReaderThatIsStuckAndDropsAreCounted(t *testing.T) {
	out := &stuck{release: make(chan struct{})}
	l := New(out, Text, nil, prometheus.NewRegistry())
	h := l.Handler(answering)
	const calls = 3 * maxKept
	began := time.Now()
	for range calls {
		serve(h, request("GET", "/function/iris", ""))
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("%d calls took %s", calls, took)
	}
	dropped := l.dropped.Load()
	if dropped < calls-2*maxKept-maxKept/2 || dropped > calls-maxKept {
		t.Errorf("%d of %d dropped", dropped, calls)
	}
	began = time.Now()
	l.Close()
	if took := time.Since(began); took > 2*closeWithin {
		t.Errorf("Close took %s", took)
	}
	close(out.release)
	<-l.ended
	if total := int(l.dropped.Load()) + out.lines; total != calls || int(l.written.Load()) != out.lines {
		t.Errorf("%d written, %d dropped, together not %d", out.lines, l.dropped.Load(), calls)
	}
}

func TestLinesThatCannotBeWrittenAreCounted(t *testing.T) {
	l := New(failing{}, Text, nil, prometheus.NewRegistry())
	serve(l.Handler(answering), request("GET", "/", ""))
	l.Close()
	if l.dropped.Load() != 1 || l.written.Load() != 0 {
		t.Errorf("%d dropped, %d written", l.dropped.Load(), l.written.Load())
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestEveryCallOfManyGetsItsLine(t *testing.T) {
	var out bytes.Buffer
	l := New(&out, JSON, nil, prometheus.NewRegistry())
	h := l.Handler(answering)
	const callers, each = 8, 500 // fewer than are kept, so none is dropped however slow the writer is
	var all sync.WaitGroup
	for n := range callers {
		all.Go(func() {
			for i := range each {
				serve(h, request("GET", fmt.Sprintf("/function/f%d/%d", n, i), ""))
			}
		})
	}
	all.Wait()
	l.Close()
	seen := map[any]bool{}
	for _, one := range lines(t, &out) {
		seen[one["path"]] = true
	}
	if len(seen) != callers*each || l.dropped.Load() != 0 {
		t.Errorf("%d of %d calls have a line, %d dropped", len(seen), callers*each, l.dropped.Load())
	}
}

// What a line costs its call. Writing goes on meanwhile, and is awaited outside of the figure, so that none is
// dropped.
func BenchmarkCall(b *testing.B) {
	for _, format := range []string{Off, Text, JSON} {
		b.Run(format, func(b *testing.B) {
			h := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
			settle := func() {}
			if format != Off {
				l := New(io.Discard, format, nil, prometheus.NewRegistry())
				defer l.Close()
				kept := uint64(0)
				settle = func() {
					b.StopTimer()
					defer b.StartTimer()
					for kept += maxKept / 2; l.written.Load() < kept; {
						time.Sleep(time.Millisecond)
					}
					if l.dropped.Load() > 0 {
						b.Fatal("lines were dropped")
					}
				}
				h = l.Handler(h)
			}
			w, r := &discard{header: http.Header{"X-Call-Id": {"c"}, "X-Model-Version": {"v"}}}, request("POST", "/function/iris", "x")
			b.ReportAllocs()
			for i := 1; b.Loop(); i++ {
				h.ServeHTTP(w, r)
				if i%(maxKept/2) == 0 {
					settle()
				}
			}
		})
	}
}

// What a line costs the goroutine that writes.
func BenchmarkWrite(b *testing.B) {
	for _, format := range []string{Text, JSON} {
		b.Run(format, func(b *testing.B) {
			l := New(io.Discard, format, nil, prometheus.NewRegistry())
			l.Close() // its goroutine writes no more: the benchmark does
			one := []line{{
				at: time.Now(), client: netip.MustParseAddr("192.0.2.7"), method: "POST", path: "/function/iris", proto: "HTTP/1.1",
				version: "1.0.0_2026-11", callID: "a68dac21-5ddc-4bc2-ab40-999edfbe42c1", userAgent: "Go-http-client/1.1", status: 200, received: 15, sent: 6,
			}}
			b.ReportAllocs()
			for b.Loop() {
				l.write(one)
			}
		})
	}
}

type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}
