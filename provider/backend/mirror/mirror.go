// Package mirror sends copies of a function's calls to one of its versions, whose answers are compared and
// dropped. Nobody waits for a copy.
//
// Who answers a call and who gets the copy is the caller's to say: no route and no version may enter here.
package mirror

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/faas-predict/faas-predict/provider/traffic"
	"github.com/faas-predict/faas-predict/provider/upstream"
)

// What is mirrored is bounded, because copies are held in memory and nobody waits for them.
const (
	MaxBody   = 256 << 10 // of the request
	maxAnswer = 1 << 20   // compared
	atOnce    = 32        // copies under way to one version
	timeout   = time.Minute
)

// Forward carries a call; see upstream.Pool.Forward.
type Forward func(w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error)

// Mirror counts what became of the copies that one version got. Its zero value is ready.
type Mirror struct {
	matched, differed, failed, skipped atomic.Uint64
	underWay                           atomic.Int64
}

// Read returns nil when there never was a copy.
func (m *Mirror) Read() *traffic.Mirrored {
	out := traffic.Mirrored{Matched: m.matched.Load(), Differed: m.differed.Load(), Failed: m.failed.Load(), Skipped: m.skipped.Load()}
	if out == (traffic.Mirrored{}) {
		return nil
	}
	return &out
}

// Later runs send in the background with what carries a call to the mirror, and returns true; or it
// returns false when the mirror is not there to get it.
type Later func(send func(context.Context, Forward)) bool

// Forward has the call answered by answer and, once that is out, a copy of it sent by later.
func (m *Mirror) Forward(answer Forward, later Later, w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error) {
	if r.ContentLength < 0 || r.ContentLength > MaxBody || !m.reserve() {
		m.skipped.Add(1)
		return answer(w, r, target, host, header)
	}
	sending := false
	defer func() {
		if !sending {
			m.underWay.Add(-1)
		}
	}()
	body := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, body); err != nil {
		return 0, fmt.Errorf("%w while it sent its request: %w", upstream.ErrClientGone, err)
	}
	whole := r.Body
	r.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(body), whole}
	sent := header.Clone()
	seen := &observedAnswer{ResponseWriter: w}
	status, err := answer(seen, r, target, host, header)
	if err != nil {
		return status, err
	}
	method := r.Method
	sending = !seen.tooLarge && later(func(ctx context.Context, to Forward) {
		defer m.underWay.Add(-1)
		m.send(ctx, to, method, target, host, sent, body, seen)
	})
	if !sending {
		m.skipped.Add(1)
	}
	return status, nil
}

// reserve takes one of the places for copies under way, before anything is held in memory for one.
func (m *Mirror) reserve() bool {
	if m.underWay.Add(1) <= atOnce {
		return true
	}
	m.underWay.Add(-1)
	return false
}

func (m *Mirror) send(ctx context.Context, to Forward, method, target, host string, header http.Header, body []byte, seen *observedAnswer) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		m.failed.Add(1)
		return
	}
	got := &observedAnswer{ResponseWriter: &nowhere{header: http.Header{}}}
	_, err = to(got, r, target, host, header)
	switch {
	case err != nil:
		m.failed.Add(1)
	case got.status == seen.status && bytes.Equal(got.body, seen.body):
		m.matched.Add(1)
	default:
		m.differed.Add(1)
	}
}

// observedAnswer keeps an answer that it passes on.
type observedAnswer struct {
	http.ResponseWriter
	status   int
	body     []byte
	tooLarge bool
}

func (o *observedAnswer) WriteHeader(status int) {
	if o.status == 0 {
		o.status = status
	}
	o.ResponseWriter.WriteHeader(status)
}

func (o *observedAnswer) Write(p []byte) (int, error) {
	if o.status == 0 {
		o.status = http.StatusOK
	}
	if len(o.body)+len(p) > maxAnswer {
		o.tooLarge, o.body = true, nil
	}
	if !o.tooLarge {
		o.body = append(o.body, p...)
	}
	return o.ResponseWriter.Write(p)
}

// Unwrap gives http.ResponseController what it looks for.
func (o *observedAnswer) Unwrap() http.ResponseWriter { return o.ResponseWriter }

// nowhere is where a mirror's answers go.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n *nowhere) WriteHeader(int)             {}

// Flush is what an answer of unknown length asks for.
func (n *nowhere) Flush() {}
