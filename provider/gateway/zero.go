package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// Errors of calls whose function is at zero replicas. In each case nothing ran.
var (
	ErrHeldTooMany = errors.New("too many calls wait for it")
	ErrNotStarted  = errors.New("it did not start")
	ErrLeft        = errors.New("the caller left while its call waited")
)

// Start scales functions to zero that nobody calls, until ctx ends or Close is called. Only functions with
// the label com.openfaas.scale.zero are. The time that counts begins with Start. Call it once.
func (g *Gateway) Start(ctx context.Context) {
	ctx, g.stop = context.WithCancel(ctx)
	g.background.Go(func() {
		tick := time.NewTicker(g.options.IdleInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				g.idle(ctx)
			}
		}
	})
}

// idle scales to zero what is due.
func (g *Gateway) idle(ctx context.Context) {
	functions, err := g.all(ctx)
	if err != nil {
		if ctx.Err() == nil {
			slog.Warn("functions without calls stay: they could not be listed", "error", err)
		}
		return
	}
	for _, s := range functions {
		scaling, err := deployment.ParseScaling(s.Labels, g.options.MaxReplicas)
		if err != nil || !scaling.Zero {
			continue
		}
		f := g.function(refOf(s))
		if s.Replicas == 0 {
			f.lastUsed.Store(time.Now().UnixNano()) // another provider may bring it back
			continue
		}
		if !f.idle(s, scaling) {
			continue
		}
		if err := g.toZero(ctx, f); err != nil && !errors.Is(err, backend.ErrNotFound) && ctx.Err() == nil {
			slog.Warn("a function without calls could not be scaled to zero", "function", f.name, "error", err)
		}
	}
}

// idle is whether the function has not been called for long enough.
func (f *function) idle(s types.FunctionStatus, scaling deployment.Scaling) bool {
	used := time.Unix(0, f.lastUsed.Load())
	if s.CreatedAt.After(used) {
		used = s.CreatedAt // deployed anew
	}
	return scaling.Zero && f.inFlight.Load() == 0 && time.Since(used) >= scaling.ZeroAfter
}

// toZero scales to zero unless a call came meanwhile. Calls that come from here on wait at Enter until it
// is done: a call is either seen here, or sees that it has to wait.
func (g *Gateway) toZero(ctx context.Context, f *function) error {
	done := make(chan struct{})
	defer close(done)
	defer f.closing.Store(nil)
	_, _, err := g.rescale(ctx, f.ref, byIdling, func(s types.FunctionStatus, scaling deployment.Scaling) (uint64, error) {
		f.closing.Store(&done)
		if !f.idle(s, scaling) {
			return s.Replicas, nil
		}
		return 0, nil
	})
	return err
}

// Enter lets a call go to its function, once that is not being scaled to zero.
func (c Call) Enter(ctx context.Context) error {
	if c.function == nil {
		return nil
	}
	closing := c.function.closing.Load()
	if closing == nil {
		return nil
	}
	return c.hold(ctx, *closing)
}

// hold has a call wait for its function, among others and not for ever.
func (c Call) hold(ctx context.Context, done <-chan struct{}) error {
	f, o := c.function, &c.function.gateway.options
	defer f.held.Add(-1)
	if f.held.Add(1) > int64(o.MaxHeld) {
		return fmt.Errorf("function %s is coming back from zero replicas and %w", f.ref, ErrHeldTooMany)
	}
	var late <-chan time.Time
	if o.HoldTimeout > 0 {
		limit := time.NewTimer(time.Until(c.began.Add(o.HoldTimeout)))
		defer limit.Stop()
		late = limit.C
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("function %s: %w", f.ref, ErrLeft)
	case <-late:
		return fmt.Errorf("function %s has zero replicas and %w within %s", f.ref, ErrNotStarted, o.HoldTimeout)
	}
}

// wake is one way back from zero, for all calls that wait for it.
type wake struct {
	done    chan struct{} // closed at its end
	err     error         // may be read after done
	again   time.Time     // after a failure: when to try the next time
	backoff time.Duration
}

// How soon a function that did not start is tried again, for calls that come.
const (
	leastBackoff = time.Second
	mostBackoff  = 30 * time.Second
)

// Wake holds a call whose function has zero replicas, and returns nil when it is worth being sent again.
// off is the error that said so, and what Wake returns for a function without com.openfaas.scale.zero:
// somebody has turned that off. All calls that wait share one start.
func (c Call) Wake(ctx context.Context, off error) error {
	f := c.function
	if f == nil || f.gateway.options.HoldTimeout == 0 {
		return off
	}
	w := f.gateway.waking(f, off)
	if err := c.hold(ctx, w.done); err != nil {
		return err
	}
	return w.err
}

// waking is the way back that is under way, has failed a moment ago, or begins now.
func (g *Gateway) waking(f *function, off error) *wake {
	f.mu.Lock()
	defer f.mu.Unlock()
	backoff := leastBackoff
	if w := f.wake; w != nil {
		select {
		case <-w.done:
			if time.Now().Before(w.again) {
				return w
			}
			backoff = min(2*w.backoff, mostBackoff)
		default:
			return w
		}
	}
	w := &wake{done: make(chan struct{}), backoff: backoff}
	f.wake = w
	g.background.Go(func() {
		defer close(w.done)
		began := time.Now()
		// Not the context of a call: others wait as well, and each has a limit of its own.
		before, after, err := g.rescale(context.Background(), f.ref, byCall, func(s types.FunctionStatus, scaling deployment.Scaling) (uint64, error) {
			switch {
			case s.Replicas > 0:
				return s.Replicas, nil // somebody was quicker
			case !scaling.Zero:
				return 0, off
			}
			return scaling.Min, nil
		})
		if err == nil && before < after {
			g.metrics.starts.Observe(time.Since(began).Seconds())
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		switch {
		case err == nil, errors.Is(err, backend.ErrScaledOff), errors.Is(err, backend.ErrNotFound):
			w.err, f.wake = err, nil
		default:
			w.err = fmt.Errorf("function %s has zero replicas and %w: %s", f.ref, ErrNotStarted, reason(err))
			w.again = time.Now().Add(w.backoff)
			slog.Warn("a function did not come back from zero replicas", "function", f.name, "again_after", w.backoff, "error", err)
		}
	})
	return w
}

// reason is what an error says without the traceback: its beginning and its last line.
func reason(err error) string {
	const most = 400
	text := strings.TrimSpace(err.Error())
	if first, rest, long := strings.Cut(text, "\n"); long {
		first, _, _ = strings.Cut(first, "Traceback")
		last := rest[strings.LastIndexByte(rest, '\n')+1:]
		text = strings.TrimSpace(first) + " " + strings.TrimSpace(last)
	}
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
