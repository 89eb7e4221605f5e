package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// function is what this provider knows of a name. It exists for others once it has a record.
type function struct {
	b       *Backend
	ref     backend.Ref
	record  atomic.Pointer[record]
	route   atomic.Pointer[route] // nil while scaled to zero or not loaded
	invoked atomic.Uint64
	marks   deployment.Marks

	loading     sync.Mutex                         // held to start and resize workloads
	stopLoading atomic.Pointer[context.CancelFunc] // of the change that loads, if any
	progress    atomic.Pointer[string]             // of a rollout

	mu        sync.Mutex
	claims    int   // changes under way, guarded by Backend.mu
	serial    int64 // of the newest record that was seen, also when it is gone
	present   bool  // the engine has a record or workloads
	workloads map[string]*workload
	counts    map[string]*counts    // by version
	leaving   map[string]*departure // by workload
	guarding  guardKey
}

// known returns the function of that name, or nil.
func (b *Backend) known(ref backend.Ref) *function {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.functions[ref]
}

// existing returns the function if it exists.
func (b *Backend) existing(ref backend.Ref) (*function, error) {
	if f := b.known(ref); f != nil && f.record.Load() != nil {
		return f, nil
	}
	return nil, notFound(ref)
}

// lookup is existing for whoever changes or reads a function: another provider may have made it a moment
// ago.
func (b *Backend) lookup(ctx context.Context, ref backend.Ref) (*function, error) {
	if f, err := b.existing(ref); err == nil {
		return f, nil
	}
	seen, err := b.Engine.Read(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("read function %s: %w", ref, err)
	}
	r, err := decode(seen.Record)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, notFound(ref)
	}
	f := b.claim(ref)
	defer b.unclaim(f)
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Serial > f.serial {
		f.adopt(r)
	}
	if f.record.Load() == nil {
		return nil, notFound(ref)
	}
	return f, nil
}

func notFound(ref backend.Ref) error { return fmt.Errorf("function %s %w", ref, backend.ErrNotFound) }

// claim returns the function of that name, made if need be, and keeps it until unclaim.
func (b *Backend) claim(ref backend.Ref) *function {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.functions[ref]
	if f == nil {
		f = &function{b: b, ref: ref, workloads: map[string]*workload{}, counts: map[string]*counts{}, leaving: map[string]*departure{}}
		b.functions[ref] = f
	}
	f.claims++
	return f
}

// unclaim forgets a function that is gone and that nobody is about to change.
func (b *Backend) unclaim(f *function) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.claims--; f.claims == 0 && f.record.Load() == nil && !f.present {
		delete(b.functions, f.ref)
	}
}

// all lists the functions, those that are gone but for their workloads too.
func (b *Backend) all() []*function {
	b.mu.RLock()
	defer b.mu.RUnlock()
	out := make([]*function, 0, len(b.functions))
	for _, f := range b.functions {
		out = append(out, f)
	}
	return out
}

// in lists the functions of a namespace that exist, sorted by name.
func (b *Backend) in(namespace string) []*function {
	out := slices.DeleteFunc(b.all(), func(f *function) bool {
		return f.ref.Namespace != namespace || f.record.Load() == nil
	})
	slices.SortFunc(out, func(x, y *function) int { return strings.Compare(x.ref.Name, y.ref.Name) })
	return out
}

// observe takes over what the engine says of a function.
func (b *Backend) observe(seen Function) {
	if b.alive.Err() != nil {
		return
	}
	f := b.claim(seen.Ref)
	defer b.unclaim(f)
	r, err := decode(seen.Record)
	if err != nil {
		logError("a function's record cannot be read; it stays as it is", f.ref, err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.present = r != nil || len(seen.Workloads) > 0
	for _, s := range seen.Workloads {
		w := f.workloads[s.ID]
		if w == nil {
			w = newWorkload(s.ID)
			f.workloads[s.ID] = w
		}
		w.observe(b.alive, s, b.MaxIdleConns, &b.background)
	}
	switch {
	case r != nil && r.Serial > f.serial:
		f.adopt(r)
	case r == nil && f.record.Load() != nil:
		// It is gone, or what was seen is from before it was there.
		b.background.Go(func() { b.confirmGone(f.ref) })
	}
	f.reroute()
	f.forget(seen.Workloads)
	f.retire()
}

// forget lets go of workloads that the engine no longer has. Calls that wait for one that the record does not name either
// go where calls go by now. The caller holds f.mu.
func (f *function) forget(there []Status) {
	for id, w := range f.workloads {
		switch {
		case slices.ContainsFunc(there, func(s Status) bool { return s.ID == id }):
		case slices.Contains(f.record.Load().workloads(), id):
			w.observe(f.b.alive, Status{ID: id}, f.b.MaxIdleConns, &f.b.background) // calls may wait for it
		default:
			w.close()
			delete(f.workloads, id)
			f.left(id)
		}
	}
}

// adopt makes a newer record the function's. The caller holds f.mu.
func (f *function) adopt(r *record) {
	f.serial = r.Serial
	f.record.Store(r)
}

// drop makes the function one that is gone. The caller holds f.mu.
func (f *function) drop() {
	f.record.Store(nil)
	f.route.Store(nil)
	f.invoked.Store(0)
	f.marks.Clear()
	clear(f.counts)
	f.guarding = guardKey{}
	f.b.rollouts.DeletePartialMatch(prometheus.Labels{"function_name": f.ref.String()})
}

func (b *Backend) confirmGone(ref backend.Ref) {
	f := b.claim(ref)
	defer b.unclaim(f)
	was := f.record.Load()
	seen, err := b.Engine.Read(b.alive, f.ref)
	if err != nil || seen.Record != nil {
		return // the watch will tell
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.record.Load() == was && was != nil {
		f.drop()
		f.retire()
	}
}

// reroute points calls to where the record and the workloads say. The caller holds f.mu.
func (f *function) reroute() {
	r := f.record.Load()
	if r == nil || r.Replicas == 0 {
		f.route.Store(nil)
		return
	}
	loaded := map[string]*version{}
	for _, d := range r.Versions {
		if d.Workload == "" {
			continue
		}
		w := f.workloads[d.Workload]
		if w == nil { // the engine has told of the record first
			w = newWorkload(d.Workload)
			f.workloads[d.Workload] = w
		}
		before := f.route.Load().Version(d.Version)
		if before != nil && before.workload == w {
			loaded[d.Version] = before
			continue
		}
		c := f.counts[d.Version]
		if c == nil || (before != nil && before.model != d.Model) {
			c = new(counts)
			f.counts[d.Version] = c
		}
		loaded[d.Version] = &version{name: d.Version, model: d.Model, workload: w, counts: c}
	}
	for name := range f.counts {
		if r.Find(name) == nil {
			delete(f.counts, name)
		}
	}
	if len(loaded) == 0 {
		f.route.Store(nil)
	} else {
		f.route.Store(deployment.NewRoute(r.Split, loaded))
	}
	f.guard(r)
}

// retire removes the workloads that nobody uses: those that the record says so of, and those that a
// deployment left behind whose provider has died. Their containers still take calls for Grace.Serving, in
// which every provider hears of it. The caller holds f.mu.
func (f *function) retire() {
	r := f.record.Load()
	used := r.workloads()
	for id, w := range f.workloads {
		if slices.Contains(used, id) {
			continue
		}
		at := time.Now()
		if r == nil || !slices.Contains(r.Retired, id) {
			at = time.Unix(w.status.Lease, 0) // perhaps a deployment waits for it
		}
		f.leave(id, at)
	}
}

// departure is a workload that is going to be removed.
type departure struct {
	version string // that was moved away from it here, if any
	at      time.Time
	cancel  context.CancelFunc
}

// leave removes a workload at a time, or sooner if that was to be, unless it is in use then. The caller
// holds f.mu.
func (f *function) leave(id string, at time.Time) {
	before := f.leaving[id]
	if before != nil && !at.Before(before.at) {
		return
	}
	ctx, cancel := context.WithCancel(f.b.alive)
	d := &departure{at: at, cancel: cancel}
	if before != nil {
		before.cancel()
	}
	f.leaving[id] = d
	f.b.background.Go(func() {
		defer cancel()
		if pause(ctx, time.Until(at)) {
			f.removeUnused(ctx, id)
		}
	})
}

// removeUnused removes a workload until the engine says that it is gone.
func (f *function) removeUnused(ctx context.Context, id string) {
	const least, most = 100 * time.Millisecond, 10 * time.Second
	for wait := least; ; wait = min(2*wait, most) {
		f.mu.Lock()
		_, there := f.workloads[id]
		used := slices.Contains(f.record.Load().workloads(), id)
		if used || !there {
			f.left(id)
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		err := f.b.Engine.Remove(ctx, f.ref, id)
		if err != nil && ctx.Err() == nil {
			logError("containers that nobody calls cannot be removed; it is tried again", f.ref, err)
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

// left forgets that a workload was being removed. The caller holds f.mu.
func (f *function) left(id string) {
	if d := f.leaving[id]; d != nil {
		d.cancel()
		delete(f.leaving, id)
		f.marks.Drained(d.version)
	}
}

func (f *function) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.workloads {
		w.close()
	}
}

// find returns a workload once the engine has told of it.
func (f *function) find(id string) *workload {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.workloads[id]
}

// available is how many replicas answer.
func (f *function) available(r *record) uint64 {
	available := r.Replicas
	rt := f.route.Load()
	for _, t := range r.Split.Targets {
		if t.Weight == 0 {
			continue
		}
		// A function has as many replicas as the least of its versions that get calls.
		ready := uint64(0)
		if v := rt.Version(t.Version); v != nil {
			ready = v.workload.readyCount()
		}
		available = min(available, ready)
	}
	return available
}
