package gateway

import (
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// maxCodes bounds the series that one function can make by inventing statuses; what is beyond counts as
// code "other".
const maxCodes = 64

// function is what is known of a function that exists, or did a moment ago.
type function struct {
	ref     backend.Ref
	name    string // ref as the metrics have it
	since   time.Time
	gateway *Gateway

	inFlight atomic.Int64 // calls that have begun and not ended, those that are held as well
	held     atomic.Int64 // of these, those that wait for the function to come back from zero replicas
	lastUsed atomic.Int64 // when it was last certain to be in use, in Unix nanoseconds
	started  prometheus.Counter
	shed     prometheus.Counter
	codes    atomic.Pointer[[]answered] // a few, so that walking it is quicker than a map; never changed in place

	scaling chan struct{}                 // holds one token while the number of replicas is being changed
	closing atomic.Pointer[chan struct{}] // while it is being scaled to zero: closed at the end of that

	mu   sync.Mutex // guards what follows
	gone bool       // its series are removed
	wake *wake      // brings it back from zero, or failed to a short while ago
}

// answered counts calls of one function that had one status.
type answered struct {
	code    int
	total   prometheus.Counter
	seconds prometheus.Observer
}

// Call is one call of a function. The zero Call is of a function that does not exist: it counts nothing.
type Call struct {
	function *function
	began    time.Time
}

// Begin counts a call of a function that exists. Every call that is begun MUST be ended.
func (g *Gateway) Begin(ref backend.Ref, at time.Time) Call {
	f := g.function(ref)
	f.inFlight.Add(1)
	f.started.Inc()
	return Call{f, at}
}

// End counts the call's answer. It may be called once.
func (c Call) End(status int) {
	f := c.function
	if f == nil {
		return
	}
	now := time.Now()
	f.lastUsed.Store(now.UnixNano()) // before the call leaves, so that it cannot seem idle between the two
	f.inFlight.Add(-1)
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		f.shed.Inc()
	}
	if a := f.answered(status); a != nil {
		a.total.Inc()
		a.seconds.Observe(now.Sub(c.began).Seconds())
	}
}

// function returns what is known of a function, which exists.
func (g *Gateway) function(ref backend.Ref) *function {
	g.mu.RLock()
	f := g.functions[ref]
	g.mu.RUnlock()
	if f != nil {
		return f
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if f = g.functions[ref]; f == nil {
		now := time.Now()
		f = &function{ref: ref, name: ref.String(), since: now, gateway: g, scaling: make(chan struct{}, 1)}
		f.lastUsed.Store(now.UnixNano())
		f.started = g.metrics.started.WithLabelValues(f.name)
		f.shed = g.metrics.shed.WithLabelValues(f.name)
		f.codes.Store(new([]answered))
		g.functions[ref] = f
	}
	return f
}

// answered is where the calls with that status are counted, nil once the function is gone.
func (f *function) answered(code int) *answered {
	codes := *f.codes.Load()
	for i := range codes {
		if codes[i].code == code {
			return &codes[i]
		}
	}
	return f.addCode(code)
}

func (f *function) addCode(code int) *answered {
	f.mu.Lock()
	defer f.mu.Unlock()
	codes := *f.codes.Load()
	for i := range codes {
		if codes[i].code == code {
			return &codes[i]
		}
	}
	if f.gone {
		return nil
	}
	label := strconv.Itoa(code)
	m := f.gateway.metrics
	if len(codes) >= maxCodes {
		label = "other"
		a := answered{0, m.calls.WithLabelValues(f.name, label), m.seconds.WithLabelValues(f.name, label)}
		return &a
	}
	more := append(codes[:len(codes):len(codes)], answered{code, m.calls.WithLabelValues(f.name, label), m.seconds.WithLabelValues(f.name, label)})
	f.codes.Store(&more)
	return &more[len(more)-1]
}

// Forget drops the series of a function that was deleted.
func (g *Gateway) Forget(ref backend.Ref) {
	g.outdated.Store(true)
	g.forget(ref)
}

func (g *Gateway) forget(ref backend.Ref) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.functions[ref]
	if f == nil {
		return
	}
	delete(g.functions, ref)
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
	g.metrics.forget(f.name)
}
