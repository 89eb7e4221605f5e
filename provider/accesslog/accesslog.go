// Package accesslog writes a line for each request that was answered: what was asked and by whom, what came
// of it, and how long it took. It is off by default, as in most servers whose metrics count calls.
//
// A line never holds a query, a header with credentials, or a body. A call does not wait for its line: lines
// are kept, up to a bound, until a goroutine has written them, many with one write. When whoever reads them
// is too slow, lines are dropped and counted.
package accesslog

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/auth/issuer"
)

// Formats of lines. Off is no log.
const (
	Off  = "off"
	Text = "text" // key=value, as slog's TextHandler writes it
	JSON = "json"
)

const (
	// flushEvery is how long a line may be kept, as long as writing goes on.
	flushEvery = 100 * time.Millisecond
	// maxKept bounds the lines that are kept: some megabytes.
	maxKept = 8192
	// maxText bounds each thing that a client or a function says, in bytes.
	maxText = 256
	// closeWithin is how long Close waits for a writer that does not take what is left.
	closeWithin = 2 * time.Second
)

// line is one request. Its strings never change, whatever becomes of the request, and none is longer than
// maxText says.
type line struct {
	at                         time.Time
	took                       time.Duration
	client                     netip.Addr
	method, path, proto        string
	version, callID, userAgent string
	status                     int
	received, sent             int64
	aborted                    bool
}

// Log writes lines. Use New.
type Log struct {
	handler slog.Handler
	out     io.Writer
	proxies []netip.Prefix
	batch   bytes.Buffer // what handler has written; the writing goroutine's

	mu   sync.Mutex
	kept []line

	full    chan struct{} // half of the room is used
	stop    chan struct{}
	ended   chan struct{}
	once    sync.Once
	written atomic.Uint64
	dropped atomic.Uint64
}

// New returns a Log that writes to out in a format, Text or JSON. proxies are whom X-Forwarded-For is
// believed from. Its metrics are registered in registry.
func New(out io.Writer, format string, proxies []netip.Prefix, registry prometheus.Registerer) *Log {
	l := &Log{out: out, proxies: proxies, kept: make([]line, 0, maxKept), full: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{})}
	if format == JSON {
		l.handler = slog.NewJSONHandler(&l.batch, nil)
	} else {
		l.handler = slog.NewTextHandler(&l.batch, nil)
	}
	counter := func(name, help string, value *atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value.Load()) })
	}
	registry.MustRegister(
		counter("provider_access_log_lines_total", "Lines of the access log that were written.", &l.written),
		counter("provider_access_log_dropped_total", "Lines of the access log that were dropped, because what reads them is too slow or gone.", &l.dropped),
	)
	go l.run()
	return l
}

// Close writes what is kept and returns, at the latest after two seconds. No request may be served any more.
// Safe to call more than once.
func (l *Log) Close() {
	l.once.Do(func() { close(l.stop) })
	select {
	case <-l.ended:
	case <-time.After(closeWithin):
	}
}

// Handler has next answer, and keeps a line for each request.
func (l *Log) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// next may change the request: what it was is read before.
		entry := line{
			at: time.Now(), client: issuer.ClientAddress(r, l.proxies), method: cut(r.Method), path: cut(r.URL.Path), proto: r.Proto,
			userAgent: cut(r.UserAgent()), received: max(r.ContentLength, 0),
		}
		answer := recorders.Get().(*recorder)
		answer.ResponseWriter = w
		ended := false
		defer func() {
			entry.took = time.Since(entry.at)
			entry.status, entry.sent, entry.aborted = answer.status, answer.sent, !ended
			switch {
			case entry.status != 0:
			case r.Context().Err() != nil:
				entry.status = statusClientGone
			case ended:
				entry.status = http.StatusOK
			}
			header := w.Header()
			entry.callID, entry.version = cut(first(header["X-Call-Id"])), cut(first(header["X-Model-Version"]))
			*answer = recorder{}
			recorders.Put(answer)
			l.keep(&entry)
		}()
		next.ServeHTTP(answer, r)
		ended = true
	})
}

// statusClientGone is what nginx made usual for a caller that left before it was answered.
const statusClientGone = 499

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

func (l *Log) keep(entry *line) {
	l.mu.Lock()
	n := len(l.kept)
	if n < maxKept {
		l.kept = append(l.kept, *entry)
	}
	l.mu.Unlock()
	switch n {
	case maxKept:
		l.dropped.Add(1)
	case maxKept / 2:
		select {
		case l.full <- struct{}{}:
		default:
		}
	}
}

func (l *Log) run() {
	defer close(l.ended)
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	spare := make([]line, 0, maxKept)
	for ending := false; !ending; {
		select {
		case <-ticker.C:
		case <-l.full:
		case <-l.stop:
			ending = true
		}
		l.mu.Lock()
		lines := l.kept
		l.kept = spare
		l.mu.Unlock()
		l.write(lines)
		clear(lines) // what they refer to is not to be held
		spare = lines[:0]
	}
}

// maxBatch is how much is written at once, to a line more.
const maxBatch = 64 << 10

func (l *Log) write(lines []line) {
	n := uint64(0) // in the batch
	flush := func() {
		if _, err := l.out.Write(l.batch.Bytes()); err != nil {
			l.dropped.Add(n)
		} else {
			l.written.Add(n)
		}
		l.batch.Reset()
		n = 0
	}
	for i := range lines {
		_ = l.handler.Handle(context.Background(), lines[i].record()) // a buffer takes everything
		if n++; l.batch.Len() >= maxBatch {
			flush()
		}
	}
	if n > 0 {
		flush()
	}
}

func (e *line) record() slog.Record {
	record := slog.NewRecord(e.at, slog.LevelInfo, "access", 0)
	record.AddAttrs(
		slog.String("method", e.method), slog.String("path", e.path), slog.String("proto", e.proto), slog.Int("status", e.status),
		slog.Int64("received", e.received), slog.Int64("sent", e.sent), slog.Float64("seconds", e.took.Seconds()), slog.String("client", e.client.String()),
	)
	optional := func(name, value string) {
		if value != "" {
			record.AddAttrs(slog.String(name, value))
		}
	}
	rest, called := strings.CutPrefix(e.path, "/function/")
	if !called {
		rest, called = strings.CutPrefix(e.path, "/async-function/")
	}
	if called {
		name, _, _ := strings.Cut(rest, "/")
		optional("function", name)
	}
	optional("version", e.version)
	optional("call_id", e.callID)
	optional("user_agent", e.userAgent)
	if e.aborted {
		record.AddAttrs(slog.Bool("aborted", true))
	}
	return record
}

// cut keeps a client from writing long lines, and from having them kept.
func cut(text string) string {
	if len(text) <= maxText {
		return text
	}
	return strings.ToValidUTF8(text[:maxText], "") + "…"
}

var recorders = sync.Pool{New: func() any { return new(recorder) }}

// recorder notices what is answered.
type recorder struct {
	http.ResponseWriter
	status int
	sent   int64
}

func (a *recorder) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusOK {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *recorder) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(p)
	a.sent += int64(n)
	return n, err
}

// Unwrap gives http.ResponseController what it looks for.
func (a *recorder) Unwrap() http.ResponseWriter { return a.ResponseWriter }
