package process

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/backend/mirror"
	"github.com/faas-predict/faas-predict/provider/traffic"
	"github.com/faas-predict/faas-predict/provider/upstream"
)

type route = deployment.Route[generation]

// runs is the route's generation of a version of that very model, or nil.
func runs(rt *route, d *deployment.Deployed) *generation {
	if g := rt.Version(d.Version); g != nil && g.launch.model.Name == d.Model {
		return g
	}
	return nil
}

// enter returns the instance that is to take a call, with the call counted: an instance that was
// replaced waits for its count to be zero, so the call has to be counted before it is certain that
// the instance is still the one.
func (f *function) enter(header http.Header) (*route, *generation, *instance, error) {
	for {
		rt := f.route.Load()
		if rt == nil {
			if r := f.record.Load(); r != nil && r.Replicas == 0 {
				return nil, nil, nil, fmt.Errorf("function %s is %w: scale it up to call it", f.ref, backend.ErrScaledOff)
			}
			return nil, nil, nil, fmt.Errorf("function %s is %w: it is being started", f.ref, backend.ErrNotReady)
		}
		g, err := rt.Pick(header)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("function %s: %w", f.ref, err)
		}
		if g == nil {
			return nil, nil, nil, fmt.Errorf("function %s is %w: it is being started", f.ref, backend.ErrNotReady)
		}
		i := g.current.Load()
		if i == nil {
			g.stats.Count(http.StatusServiceUnavailable, 0) // a version that keeps ending must not look well
			return nil, nil, nil, fmt.Errorf("function %s is %w: it ended and is being started again", f.ref, backend.ErrNotReady)
		}
		i.calls.Add(1)
		if f.route.Load() == rt && g.current.Load() == i {
			return rt, g, i, nil
		}
		i.calls.Add(-1)
	}
}

// Forward carries a call to the function and its answer back; see upstream.Pool.Forward. A function
// that exists but cannot be called now gives backend.ErrNotReady or backend.ErrScaledOff, a version
// that it does not have backend.ErrNoVersion.
func (b *Backend) Forward(ref backend.Ref, w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error) {
	f, err := b.existing(ref)
	if err != nil {
		return 0, err
	}
	rt, g, i, err := f.enter(header)
	if !errors.Is(err, backend.ErrScaledOff) { // such a call may come again once it is scaled up
		f.invoked.Add(1)
	}
	if err != nil {
		return 0, err
	}
	defer i.calls.Add(-1)
	began := time.Now()
	var status int
	if rt.Mirror != nil && rt.Mirror != g {
		status, err = rt.Mirror.mirrored.Forward(i.pool.Forward, b.copiesTo(rt.Mirror), w, r, target, host, header)
	} else {
		status, err = i.pool.Forward(w, r, target, host, header)
	}
	counted := status
	if err != nil && r.Context().Err() == nil {
		counted = traffic.StatusCutOff
	} else if err != nil {
		counted = upstream.StatusClientGone
	}
	g.stats.Count(counted, time.Since(began))
	return status, err
}

// copiesTo sends copies of calls to a generation, which counts them like calls.
func (b *Backend) copiesTo(g *generation) mirror.Later {
	return func(send func(context.Context, mirror.Forward)) bool {
		i := g.current.Load()
		if i == nil || b.alive.Err() != nil {
			return false
		}
		i.calls.Add(1)
		b.background.Go(func() {
			defer i.calls.Add(-1)
			send(b.alive, func(w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error) {
				began := time.Now()
				status, err := i.pool.Forward(w, r, target, host, header)
				if err != nil {
					status = traffic.StatusCutOff
				}
				g.stats.Count(status, time.Since(began))
				return status, err
			})
		})
		return true
	}
}

// Annotation is one of those that the function was deployed with, "" without it, and whether there is such
// a function.
func (b *Backend) Annotation(ref backend.Ref, name string) (value string, exists bool) {
	b.mu.RLock()
	f := b.functions[ref]
	b.mu.RUnlock()
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
	b.mu.RLock()
	f := b.functions[ref]
	b.mu.RUnlock()
	if f == nil {
		return traffic.Split{}, false
	}
	r := f.record.Load()
	if r == nil {
		return traffic.Split{}, false
	}
	return r.Split, true
}
