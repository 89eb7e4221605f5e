package process

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
	mirrorBody    = 256 << 10 // of the request
	mirrorAnswer  = 1 << 20   // compared
	mirrorAtOnce  = 32        // copies under way to one version
	mirrorTimeout = time.Minute
)

// mirrored counts what became of copies.
type mirrored struct {
	matched, differed, failed, skipped atomic.Uint64
	underWay                           atomic.Int64
}

// read returns nil when there never was a copy.
func (m *mirrored) read() *traffic.Mirrored {
	out := traffic.Mirrored{Matched: m.matched.Load(), Differed: m.differed.Load(), Failed: m.failed.Load(), Skipped: m.skipped.Load()}
	if out == (traffic.Mirrored{}) {
		return nil
	}
	return &out
}

// forwardWithCopy is upstream.Pool.Forward to i and, once its answer is out, a copy of the call to the
// mirror. The caller waits for nothing that the mirror does.
func (b *Backend) forwardWithCopy(mirror *generation, i *instance, w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error) {
	m := &mirror.mirrored
	if r.ContentLength < 0 || r.ContentLength > mirrorBody || !m.reserve() {
		m.skipped.Add(1)
		return i.pool.Forward(w, r, target, host, header)
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
	status, err := i.pool.Forward(seen, r, target, host, header)
	if err != nil {
		return status, err
	}
	sending = !seen.tooLarge && b.copyTo(mirror, r.Method, target, host, sent, body, seen)
	if !sending {
		m.skipped.Add(1)
	}
	return status, nil
}

// reserve takes one of the places for copies under way, before anything is held in memory for one.
func (m *mirrored) reserve() bool {
	if m.underWay.Add(1) <= mirrorAtOnce {
		return true
	}
	m.underWay.Add(-1)
	return false
}

// copyTo sends a copy in the background, which then gives the place back. It returns false when the
// mirror is not there to get it.
func (b *Backend) copyTo(mirror *generation, method, target, host string, header http.Header, body []byte, seen *observedAnswer) bool {
	m := &mirror.mirrored
	i := mirror.current.Load()
	if i == nil || b.alive.Err() != nil {
		return false
	}
	i.calls.Add(1)
	b.background.Go(func() {
		defer m.underWay.Add(-1)
		defer i.calls.Add(-1)
		ctx, cancel := context.WithTimeout(b.alive, mirrorTimeout)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
		if err != nil {
			m.failed.Add(1)
			return
		}
		got := &observedAnswer{ResponseWriter: &nowhere{header: http.Header{}}}
		began := time.Now()
		status, err := i.pool.Forward(got, r, target, host, header)
		switch {
		case err != nil:
			m.failed.Add(1)
			status = statusCutOff
		case got.status == seen.status && bytes.Equal(got.body, seen.body):
			m.matched.Add(1)
		default:
			m.differed.Add(1)
		}
		mirror.stats.Count(status, time.Since(began))
	})
	return true
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
	if len(o.body)+len(p) > mirrorAnswer {
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
