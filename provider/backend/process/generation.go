package process

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend/mirror"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// generation keeps one launch running: when its instance ends, it starts another, waiting longer
// each time that fails. A deployment makes a new generation and retires the one before.
type generation struct {
	b        *Backend
	launch   *launch
	log      *journal
	stats    *traffic.Stats
	mirrored mirror.Mirror
	current  atomic.Pointer[instance] // ready to be called, or nil
	wanted   atomic.Uint64            // workers

	stop    context.CancelFunc
	stopped chan struct{} // the supervisor ended
	last    *instance     // for retire, once stopped is closed
	once    sync.Once
}

const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 30 * time.Second
	steadyAfter  = 10 * time.Second // an instance that lived so long has earned a quick restart
)

// begin starts a generation and returns when it is ready, or why not; then nothing of it is left.
func (b *Backend) begin(ctx context.Context, l *launch, replicas uint64, log *journal) (*generation, error) {
	i, err := b.start(l, replicas, log)
	if err != nil {
		return nil, err
	}
	if err := i.awaitReady(ctx); err != nil {
		if b.cgroups.ranOut(i.id) {
			err = fmt.Errorf("%w: it needs more memory than its limit of %d MiB", err, l.limits.memory>>20)
		}
		i.kill()
		b.clear(i)
		return nil, err
	}
	g := b.supervise(l, replicas, log, i)
	return g, nil
}

// supervise runs a generation whose first instance is ready, or nil when there is none yet.
func (b *Backend) supervise(l *launch, replicas uint64, log *journal, first *instance) *generation {
	ctx, stop := context.WithCancel(context.Background())
	g := &generation{b: b, launch: l, log: log, stats: new(traffic.Stats), stop: stop, stopped: make(chan struct{})}
	g.wanted.Store(replicas)
	g.current.Store(first)
	go g.run(ctx, first)
	return g
}

func (g *generation) run(ctx context.Context, i *instance) {
	defer close(g.stopped)
	backoff := firstBackoff
	since := time.Now()
	for {
		if i != nil {
			select {
			case <-ctx.Done():
				g.last = i
				return
			case <-i.exited:
			}
			g.current.Store(nil)
			g.report("ended with "+i.end+" and is started again", i)
			g.b.clear(i)
			if time.Since(since) > steadyAfter {
				backoff = firstBackoff
			}
			if !pause(ctx, backoff) {
				return
			}
			backoff = min(backoff*2, lastBackoff)
		}
		var err error
		if i, err = g.attempt(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			g.report(fmt.Sprintf("cannot be started, next attempt in %s: %v", backoff, err), nil)
			i = nil
			if !pause(ctx, backoff) {
				return
			}
			backoff = min(backoff*2, lastBackoff)
			continue
		}
		since = time.Now()
		g.current.Store(i)
	}
}

// attempt starts an instance and waits until it is ready.
func (g *generation) attempt(ctx context.Context) (*instance, error) {
	ctx, cancel := withTimeout(ctx, g.b.config.DeployTimeout)
	defer cancel()
	replicas := g.wanted.Load()
	i, err := g.b.start(g.launch, replicas, g.log)
	if err != nil {
		return nil, err
	}
	if err = i.awaitReady(ctx); err == nil {
		// It may have been scaled while it started.
		if n := g.wanted.Load(); n != replicas {
			err = i.setWorkers(ctx, n)
		}
	}
	if err != nil {
		i.kill()
		g.b.clear(i)
		return nil, err
	}
	return i, nil
}

// resize tells the running instance how many workers there are to be, and waits for them.
func (g *generation) resize(ctx context.Context, replicas uint64) error {
	before := g.wanted.Swap(replicas)
	if before == replicas {
		return nil
	}
	i := g.current.Load()
	if i == nil {
		return nil // its successor starts with what is wanted
	}
	if err := i.setWorkers(ctx, replicas); err != nil {
		select {
		case <-i.exited:
		default:
			g.wanted.Store(before)
			return fmt.Errorf("scale %s to %d: %w", g.launch.ref, replicas, err)
		}
	}
	return nil
}

func (g *generation) report(what string, i *instance) {
	id := g.launch.ref.Name
	if i != nil {
		id = i.id
	}
	g.log.add(id, "provider: function "+what)
	slog.Warn("function "+what, "function", g.launch.ref.String(), "instance", id)
}

// retire ends the generation after what it accepted is answered, within timeout, and lets go of its
// model. The caller has made it unreachable for new calls.
func (g *generation) retire(timeout time.Duration) {
	g.once.Do(func() {
		g.stop()
		<-g.stopped
		if g.last != nil {
			g.last.drain(timeout)
			g.current.Store(nil)
			g.b.clear(g.last)
		}
		g.launch.model.Release()
	})
}

// pause reports whether the time passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// withTimeout is context.WithTimeout where 0 means no limit.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}
