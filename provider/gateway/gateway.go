// Package gateway is what OpenFaaS's gateway adds to a provider, for a provider that has none in front:
// counts of every call, scaling by alerts, and functions that go to zero replicas and come back for a
// call.
//
// It decides from what a backend.Backend says, whichever that is, and from the labels that a function was
// deployed with. What it keeps is in memory: calls in progress, counts, and when a function was last
// called. No HTTP and no storage may enter here.
package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// Options are what a Gateway is made of.
type Options struct {
	Backend backend.Backend
	// MaxReplicas is the most that the backend allows a function.
	MaxReplicas uint64
	// HoldTimeout is how long a call may wait for its function to come back from zero replicas; with 0
	// none waits.
	HoldTimeout time.Duration
	// MaxHeld is how many calls of one function may wait at a time.
	MaxHeld int
	// IdleInterval is how often functions are looked at that may go to zero; 0 is every five seconds.
	IdleInterval time.Duration
	Metrics      prometheus.Registerer
}

// Gateway is safe for use by many goroutines. Use New.
type Gateway struct {
	options Options
	metrics *metrics

	mu        sync.RWMutex
	functions map[backend.Ref]*function

	listing    sync.Mutex // held to list all functions
	listed     []types.FunctionStatus
	listedAt   time.Time
	outdated   atomic.Bool // a function was deleted since
	stop       context.CancelFunc
	background sync.WaitGroup
}

// New returns a Gateway whose metrics are in o.Metrics. Start makes it scale functions to zero.
func New(o Options) *Gateway {
	const interval = 5 * time.Second
	if o.IdleInterval == 0 {
		o.IdleInterval = interval
	}
	g := &Gateway{options: o, metrics: newMetrics(), functions: map[backend.Ref]*function{}, stop: func() {}}
	o.Metrics.MustRegister(g)
	return g
}

// Close ends what Start began and blocks until functions that are on their way back from zero are there, or
// the backend, being closed, has given them up.
func (g *Gateway) Close() {
	g.stop()
	g.background.Wait()
}

// all lists every function of every namespace.
func (g *Gateway) all(ctx context.Context) ([]types.FunctionStatus, error) {
	namespaces, err := g.options.Backend.ListNamespaces(ctx)
	if err != nil {
		return nil, err
	}
	var out []types.FunctionStatus
	for _, n := range namespaces {
		functions, err := g.options.Backend.List(ctx, n.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, functions...)
	}
	return out, nil
}

func refOf(s types.FunctionStatus) backend.Ref {
	return backend.Ref{Namespace: s.Namespace, Name: s.Name}
}
