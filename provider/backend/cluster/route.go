package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/backend/mirror"
	"github.com/faas-predict/faas-predict/provider/traffic"
	"github.com/faas-predict/faas-predict/provider/upstream"
)

type route = deployment.Route[version]

// version is a version that a function has loaded.
type version struct {
	name     string
	model    string
	workload *workload
	*counts
}

// counts outlive the workload: a version that is deployed again goes on counting.
type counts struct {
	stats    traffic.Stats
	mirrored mirror.Mirror
}

// Forward carries a call to the function and its answer back; see upstream.Pool.Forward. A function
// that exists but cannot be called now gives backend.ErrNotReady or backend.ErrScaledOff, a version
// that it does not have backend.ErrNoVersion.
func (b *Backend) Forward(ref backend.Ref, w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error) {
	f, err := b.existing(ref)
	if err != nil {
		return 0, err
	}
	if f.route.Load() == nil {
		if r := f.record.Load(); r != nil && r.Replicas == 0 {
			return 0, fmt.Errorf("function %s is %w: scale it up to call it", ref, backend.ErrScaledOff)
		}
	}
	f.invoked.Add(1) // not a call of a function at zero replicas: it may come again once it is scaled up
	for tries := 1; ; tries++ {
		rt := f.route.Load()
		status, err := b.follow(f, rt, w, r, target, host, header)
		// Where calls have been moved while it waited, it goes with them: nothing of it has run.
		if !errors.Is(err, backend.ErrNotReady) || f.route.Load() == rt || tries == maxMoves || r.Context().Err() != nil {
			return status, err
		}
	}
}

// maxMoves is how many routes a call follows.
const maxMoves = 4

// follow carries a call the way that a route says.
func (b *Backend) follow(f *function, rt *route, w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error) {
	ref := f.ref
	if rt == nil {
		return 0, fmt.Errorf("function %s is %w: it is being started", ref, backend.ErrNotReady)
	}
	v, err := rt.Pick(header)
	if err != nil {
		return 0, fmt.Errorf("function %s: %w", ref, err)
	}
	if v == nil {
		return 0, fmt.Errorf("function %s is %w: it is being started", ref, backend.ErrNotReady)
	}
	began := time.Now()
	var status int
	if rt.Mirror != nil && rt.Mirror != v {
		status, err = rt.Mirror.mirrored.Forward(v.forward, b.copiesTo(rt.Mirror), w, r, target, host, header)
	} else {
		status, err = v.forward(w, r, target, host, header)
	}
	counted := status
	switch {
	case err == nil:
	case r.Context().Err() != nil:
		counted = upstream.StatusClientGone
	case errors.Is(err, backend.ErrNotReady):
		counted = http.StatusServiceUnavailable // a version that keeps ending must not look well
	default:
		counted = traffic.StatusCutOff
	}
	v.stats.Count(counted, time.Since(began))
	if errors.Is(err, backend.ErrNotReady) {
		err = fmt.Errorf("function %s: %w", ref, err)
	}
	return status, err
}

// A call is offered to so many containers in any case, and to more for as long as it may wait for one: of a function
// that is scaled down most may be gone before this provider hears of it.
const maxTries = 4

// maxKept is the largest body that is read before the call is sent, so that it can be offered again. It
// is what package upstream buffers too.
const maxKept = 64 << 10

var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// forward offers the call to a ready container, and to another as long as none got all of it: then
// nothing ran.
func (v *version) forward(w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error) {
	var kept *bytes.Buffer
	body := r.Body
	if r.ContentLength > 0 && r.ContentLength <= maxKept {
		kept = bodies.Get().(*bytes.Buffer)
		defer bodies.Put(kept)
		kept.Reset()
		if n, err := kept.ReadFrom(body); err != nil || n != r.ContentLength {
			return 0, fmt.Errorf("%w while it sent its request: %w", upstream.ErrClientGone, err)
		}
		defer func() { r.Body = body }()
	}
	var tried []*endpoint
	began := time.Now()
	for {
		e := v.workload.pick(tried)
		if e == nil && v.workload.await(r.Context(), tried) {
			continue
		}
		if e == nil && kept != nil { // it may be offered elsewhere
			body = io.NopCloser(bytes.NewReader(bytes.Clone(kept.Bytes())))
		}
		if e == nil && len(tried) == 0 {
			return 0, fmt.Errorf("version %s is %w: no container of it is ready", v.name, backend.ErrNotReady)
		}
		if e == nil {
			return 0, fmt.Errorf("version %s is %w: none of %d containers could be reached", v.name, backend.ErrNotReady, len(tried))
		}
		if kept != nil {
			r.Body = io.NopCloser(bytes.NewReader(kept.Bytes()))
		}
		e.calls.Add(1)
		status, err := e.pool.Forward(w, r, target, host, header)
		e.calls.Add(-1)
		tried = append(tried, e)
		if !errors.Is(err, upstream.ErrUnreached) || r.Context().Err() != nil || len(tried) >= maxTries && time.Since(began) > waitsFor {
			return status, err
		}
		e.shunned.Store(time.Now().Add(shunFor).UnixNano())
	}
}

// copiesTo sends copies of calls to a version, which counts them like calls.
func (b *Backend) copiesTo(v *version) mirror.Later {
	return func(send func(context.Context, mirror.Forward)) bool {
		if b.alive.Err() != nil || v.workload.readyCount() == 0 {
			return false
		}
		b.background.Go(func() {
			send(b.alive, func(w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error) {
				began := time.Now()
				status, err := v.forward(w, r, target, host, header)
				if err != nil {
					status = traffic.StatusCutOff
				}
				v.stats.Count(status, time.Since(began))
				return status, err
			})
		})
		return true
	}
}

// Annotation is one of those that the function was deployed with, "" without it, and whether there is such
// a function.
func (b *Backend) Annotation(ref backend.Ref, name string) (value string, exists bool) {
	f := b.known(ref)
	if f == nil {
		return "", false
	}
	r := f.record.Load()
	if r != nil && r.Spec.Annotations != nil {
		value = (*r.Spec.Annotations)[name]
	}
	return value, r != nil
}

// Split is how the function's calls are split, and whether there is such a function.
func (b *Backend) Split(ref backend.Ref) (split traffic.Split, exists bool) {
	f := b.known(ref)
	if f == nil {
		return traffic.Split{}, false
	}
	r := f.record.Load()
	if r == nil {
		return traffic.Split{}, false
	}
	return r.Split, true
}
