package cluster

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faas-predict/faas-predict/provider/upstream"
)

// workload is what this provider knows of a workload: the engine's word, and which of its containers
// said that they are ready.
type workload struct {
	id string

	mu        sync.Mutex
	status    Status
	endpoints map[string]*endpoint // by address
	changed   chan struct{}        // closed and replaced at each change

	closed bool // there will be no container any more

	ready   atomic.Pointer[[]*endpoint]
	waiting atomic.Int64 // calls
}

// endpoint is one container.
type endpoint struct {
	Endpoint
	pool    *upstream.Pool
	calls   atomic.Int64
	shunned atomic.Int64 // Unix nanoseconds until which it is taken only when there is no other

	stop context.CancelFunc // of asking

	// Guarded by workload.mu.
	ready  bool
	reason string
	final  bool // it will never be ready
}

func newWorkload(id string) *workload {
	w := &workload{id: id, endpoints: map[string]*endpoint{}, changed: make(chan struct{})}
	w.ready.Store(new([]*endpoint))
	return w
}

// observe takes over what the engine says. New containers are asked whether they are ready until they
// are, or are gone, or ctx ends.
func (w *workload) observe(ctx context.Context, status Status, idle int, background *sync.WaitGroup) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status = status
	gone := w.endpoints
	w.endpoints = map[string]*endpoint{}
	for _, known := range status.Endpoints {
		e := gone[known.Address]
		if e == nil || e.Instance != known.Instance {
			asking, stop := context.WithCancel(ctx)
			e = &endpoint{Endpoint: known, pool: upstream.NewTCPPool(known.Address, idle), stop: stop, reason: "it has not answered yet"}
			background.Go(func() { w.ask(asking, e) })
		} else {
			delete(gone, known.Address)
		}
		w.endpoints[known.Address] = e
	}
	for _, e := range gone {
		e.close()
	}
	w.publish()
}

func (e *endpoint) close() {
	e.stop()
	e.pool.Close() // calls that it has go on
}

// close lets go of the connections.
func (w *workload) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.endpoints {
		e.close()
	}
	clear(w.endpoints)
	w.closed = true
	w.publish()
}

// publish makes the present state the one that calls see. The caller holds w.mu.
func (w *workload) publish() {
	ready := make([]*endpoint, 0, len(w.endpoints))
	for _, e := range w.endpoints {
		if e.ready {
			ready = append(ready, e)
		}
	}
	w.ready.Store(&ready)
	close(w.changed)
	w.changed = make(chan struct{})
}

// ask asks a container until it is ready.
func (w *workload) ask(ctx context.Context, e *endpoint) {
	const first, last = 10 * time.Millisecond, 250 * time.Millisecond
	for pause := first; ; pause = min(pause*3/2, last) {
		ready, reason, final := readiness(ctx, e.Address)
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		if e.ready, e.final = ready, final; reason != "" {
			e.reason = reason
		}
		if ready || final {
			w.publish()
		}
		w.mu.Unlock()
		if ready {
			slog.Debug("a container is ready", "instance", e.Instance, "address", e.Address)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// probe asks without keeping connections: most containers are asked a few times in their life.
var probe = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// readiness asks fwatchdog at address; see its guide on /_/ready. One whose queue is full is ready:
// it says 429 to calls as well.
func readiness(ctx context.Context, address string) (ready bool, reason string, final bool) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/_/ready", nil)
	if err != nil {
		return false, err.Error(), false
	}
	answer, err := probe.Do(r)
	if err != nil {
		return false, "", false // it says nothing about the model, and what was said before counts
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusOK || answer.StatusCode == http.StatusTooManyRequests {
		return true, "", false
	}
	body, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	var said struct {
		Detail string
		Final  bool
	}
	if json.Unmarshal(body, &said) != nil || said.Detail == "" {
		said.Detail = strings.TrimSpace(string(body))
	}
	return false, said.Detail, said.Final
}

// shunFor is how long a container that could not be reached is avoided.
const shunFor = time.Second

// pick chooses the less busy of two ready containers at random, leaving out those that were tried. It
// returns nil when there is none.
func (w *workload) pick(tried []*endpoint) *endpoint {
	ready := *w.ready.Load()
	if len(ready) == 1 && len(tried) == 0 {
		return ready[0]
	}
	now := time.Now().UnixNano()
	for _, shunned := range []bool{false, true} {
		var best *endpoint
		free := 0
		for offset, i := rand.IntN(max(len(ready), 1)), 0; i < len(ready) && free < 2; i++ {
			e := ready[(offset+i)%len(ready)]
			if slices.Contains(tried, e) || (e.shunned.Load() > now) != shunned {
				continue
			}
			if free++; best == nil || e.calls.Load() < best.calls.Load() {
				best = e
			}
		}
		if best != nil {
			return best
		}
	}
	return nil
}

// Calls wait for a container where none is ready, or none that is can be reached, for a little while and not
// too many: another provider has moved them here before this one has asked, or the only container is being
// replaced, which the engine tells a moment after it is gone.
const (
	waitsAtOnce = 512 // for one version
	waitsFor    = 3 * time.Second
)

// await blocks until a container is ready that was not tried, and reports whether one is. Of a workload that is gone
// none will be.
func (w *workload) await(ctx context.Context, tried []*endpoint) bool {
	defer w.waiting.Add(-1)
	if w.waiting.Add(1) > waitsAtOnce {
		return false
	}
	timeout := time.NewTimer(waitsFor)
	defer timeout.Stop()
	for {
		w.mu.Lock()
		changed, closed := w.changed, w.closed
		w.mu.Unlock()
		if w.pick(tried) != nil {
			return true
		}
		if closed {
			return false
		}
		select {
		case <-changed:
		case <-timeout.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// readyCount is how many containers are ready.
func (w *workload) readyCount() uint64 { return uint64(len(*w.ready.Load())) }

// standing says how the workload is: whether anything of it will never be ready, why it is not ready,
// and what tells of the next change.
func (w *workload) standing() (ready, running uint64, failures int, final bool, reason string, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	reason = w.status.Reason
	for _, e := range w.endpoints {
		switch {
		case e.ready:
			ready++
		case e.final || reason == "":
			reason = e.reason
			final = final || e.final
		}
	}
	return ready, uint64(len(w.endpoints)), w.status.Failures, final, reason, w.changed
}
