package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// Options are what a Backend is made of. No field may be left out but those that say so.
type Options struct {
	Engine        Engine
	Images        Images
	MaxReplicas   uint64
	MaxIdleConns  int           // to one container
	DeployTimeout time.Duration // 0 is no limit
	DrainTimeout  time.Duration
	KeepWarm      int // versions without calls that a function keeps loaded
	// Serving is how long a container that is to leave still takes calls: longer than it takes every
	// provider to hear of it. 0 is DefaultServing.
	Serving time.Duration
}

// DefaultServing leaves a provider that is cut off from the engine for a moment the time to hear.
const DefaultServing = 3 * time.Second

// Backend implements backend.Backend.
type Backend struct {
	Options
	grace   Grace
	alive   context.Context // ends with Close; deployments outlive the request that asked for them
	end     context.CancelFunc
	streams context.Context // ends with EndStreams
	cut     context.CancelFunc

	mu        sync.RWMutex
	functions map[backend.Ref]*function

	rollouts   *prometheus.CounterVec
	background sync.WaitGroup
}

var _ backend.Backend = (*Backend)(nil)

// Open returns a backend that follows the engine. It blocks until every function is known and, for up to a
// few seconds, until its containers have said whether they are ready, so that a provider that comes back
// does not turn calls away.
func Open(ctx context.Context, o Options) (*Backend, error) {
	if o.Serving == 0 {
		o.Serving = DefaultServing
	}
	b := &Backend{
		Options:   o,
		grace:     Grace{Serving: o.Serving, Drain: o.DrainTimeout},
		functions: map[backend.Ref]*function{},
		rollouts:  traffic.NewRollouts(),
	}
	b.alive, b.end = context.WithCancel(context.Background())
	b.streams, b.cut = context.WithCancel(context.Background())
	// ctx is for the wait; the watch itself ends with the backend.
	synced := make(chan error, 1)
	go func() { synced <- o.Engine.Watch(b.alive, b.observe) }()
	select {
	case err := <-synced:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("follow %s: %w", o.Engine.Name(), err), b.Close(ctx))
		}
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("follow %s: %w", o.Engine.Name(), ctx.Err()), b.Close(context.WithoutCancel(ctx)))
	}
	b.awaitProbes(ctx)
	return b, nil
}

// probesWithin bounds how long Open waits for containers to say whether they are ready.
const probesWithin = 5 * time.Second

func (b *Backend) awaitProbes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probesWithin)
	defer cancel()
	for _, f := range b.all() {
		rt := f.route.Load()
		if rt == nil {
			continue
		}
		for _, v := range rt.Loaded {
			for {
				ready, running, _, final, _, changed := v.workload.standing()
				if ready == running || final {
					break
				}
				select {
				case <-changed:
					continue
				case <-ctx.Done():
					return
				}
			}
		}
	}
}

// EndStreams ends the log streams that are open, which nothing else would end.
func (b *Backend) EndStreams() { b.cut() }

// Close implements backend.Backend. The functions go on: they are the engine's.
func (b *Backend) Close(context.Context) error {
	b.end()
	b.cut()
	err := b.Engine.Close()
	for _, f := range b.all() {
		f.close()
	}
	b.background.Wait()
	return err
}

// Name is what the engine is called.
func (b *Backend) Name() string { return b.Engine.Name() }

// Describe implements prometheus.Collector.
func (b *Backend) Describe(out chan<- *prometheus.Desc) {
	traffic.Describe(out)
	b.rollouts.Describe(out)
}

// Collect implements prometheus.Collector: the versions that are loaded, and the calls that went
// through this provider.
func (b *Backend) Collect(out chan<- prometheus.Metric) {
	b.rollouts.Collect(out)
	for _, f := range b.all() {
		rt := f.route.Load()
		if rt == nil {
			continue
		}
		for name, v := range rt.Loaded {
			traffic.Measured{
				Function: f.ref.String(), Version: name, Weight: rt.Split.Weight(name),
				Stats: &v.stats, Mirrored: v.mirrored.Read(),
			}.Collect(out)
		}
	}
}

// withTimeout is context.WithTimeout where 0 means no limit.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
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

func logError(what string, ref backend.Ref, err error) {
	slog.Error(what, "function", ref.String(), "error", err)
}
