package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// splitsKept bounds how far back a function can be rolled.
const splitsKept = 10

// revise makes what change returns for the function's present record its state: it loads the versions
// that are named and not loaded, stores the record, moves the calls in one step, and lets go of what is
// named no more. old is nil where there is no function. change may be called several times and must do
// nothing but compute; returning old itself changes nothing. fresh is a version to load anew even if
// it is loaded. On an error nothing has changed.
//
// What needs nothing loaded is done at once, even while another revision loads: a rollback does not wait
// for a deployment, which then goes on from what the rollback made.
func (b *Backend) revise(f *function, fresh string, change func(old *record) (*record, error)) error {
	if fresh == "" {
		if done, err := b.reviseLoaded(f, change); done {
			return err
		}
	}
	f.loading.Lock()
	defer f.loading.Unlock()
	ctx, cancel := withTimeout(b.alive, b.config.DeployTimeout)
	defer cancel()
	started := map[string]*generation{}
	defer func() {
		rt := f.route.Load()
		for version, g := range started {
			if rt.generation(version) != g {
				g.retire(0)
			}
		}
	}()
	for {
		base := f.record.Load()
		next, err := b.next(base, change)
		if err != nil || next == base {
			return err
		}
		pins, err := b.pin(next)
		if err != nil {
			return err
		}
		if err = b.loadMissing(ctx, f, next, pins, fresh, started); err == nil {
			f.change.Lock()
			var done bool
			done, err = b.commit(f, base, next, pins, started)
			f.change.Unlock()
			if done && err == nil {
				return nil
			}
		}
		for _, m := range pins {
			m.Release()
		}
		if err != nil {
			return err
		}
	}
}

// reviseLoaded is revise for what needs nothing loaded; done is false when something does.
func (b *Backend) reviseLoaded(f *function, change func(old *record) (*record, error)) (done bool, err error) {
	f.change.Lock()
	defer f.change.Unlock()
	base, rt := f.record.Load(), f.route.Load()
	next, err := b.next(base, change)
	if err != nil || next == base {
		return true, err
	}
	if rt == nil || base == nil || next.Replicas != base.Replicas {
		return false, nil
	}
	for _, d := range next.Versions {
		if g := rt.generation(d.Version); g == nil || g.launch.model != d.Model {
			return false, nil
		}
	}
	pins, err := b.pin(next)
	if err != nil {
		return true, err
	}
	if done, err = b.commit(f, base, next, pins, nil); err != nil || !done {
		for _, m := range pins {
			m.Release()
		}
	}
	return done, err
}

func (b *Backend) next(base *record, change func(old *record) (*record, error)) (*record, error) {
	if b.alive.Err() != nil {
		return nil, fmt.Errorf("%w: the provider is shutting down", backend.ErrNotReady)
	}
	next, err := change(base)
	if err == nil && next != base {
		next.forget(b.config.KeepWarm)
	}
	return next, err
}

// pin keeps the versions of a record from being deleted.
func (b *Backend) pin(r *record) (map[modelVersion]backend.Model, error) {
	pins := map[modelVersion]backend.Model{}
	for _, d := range r.Versions {
		m, err := b.models.Pin(d.Model, d.Version)
		if err != nil {
			for _, m := range pins {
				m.Release()
			}
			if errors.Is(err, backend.ErrNotFound) {
				err = fmt.Errorf("%w; push it first", err)
			}
			return nil, err
		}
		pins[d.id()] = m
	}
	return pins, nil
}

// loadMissing starts what next names and neither the route nor started has, and adds it to started. A
// version that gets no calls and does not start is dropped from next: it was only kept for a rollback.
func (b *Backend) loadMissing(ctx context.Context, f *function, next *record, pins map[modelVersion]backend.Model, fresh string,
	started map[string]*generation,
) error {
	if next.Replicas == 0 {
		return nil
	}
	rt := f.route.Load()
	for _, d := range slices.Clone(next.Versions) {
		g := started[d.Version]
		if g == nil && d.Version != fresh {
			g = rt.generation(d.Version)
		}
		var err error
		if g != nil && g.launch.model == d.Model {
			err = g.resize(ctx, next.Replicas)
		} else if g, err = b.load(ctx, f, d, pins[d.id()], next); err == nil {
			started[d.Version] = g
		}
		switch {
		case err == nil:
		case slices.Contains(next.Split.Versions(), d.Version):
			return err
		default:
			slog.Warn("a version that was kept for a rollback does not start and is forgotten", "function", f.ref.String(), "version", d.Version, "error", err)
			next.drop(d.Version)
		}
	}
	return nil
}

// commit stores next and moves the calls, unless the function is no longer what next was made from:
// then done is false. The caller holds f.change. With done and no error pins belong to the function.
func (b *Backend) commit(f *function, base, next *record, pins map[modelVersion]backend.Model, started map[string]*generation) (done bool, err error) {
	old := f.route.Load()
	loaded := map[string]*generation{}
	if next.Replicas > 0 {
		for _, d := range next.Versions {
			g := started[d.Version]
			if g == nil {
				g = old.generation(d.Version)
			}
			if g == nil {
				return false, nil
			}
			loaded[d.Version] = g
		}
	}
	switch {
	case f.record.Load() != base:
		return false, nil
	case b.alive.Err() != nil:
		return true, fmt.Errorf("%w: the provider is shutting down", backend.ErrNotReady)
	}
	if err := b.storeRecord(f, next); err != nil {
		return true, err
	}
	if next.Replicas > 0 {
		f.route.Store(newRoute(next.Split, loaded))
	} else {
		f.route.Store(nil)
	}
	before := f.pins
	f.pins = pins
	b.letGo(f, old, loaded, before)
	if next.Rollout != nil && (base == nil || base.Rollout != next.Rollout) {
		b.background.Go(func() { b.guard(f, next.Rollout) })
	}
	slog.Info("function changed", "function", f.ref.String(), "split", next.Split.String(), "mirror", next.Split.Mirror, "replicas", next.Replicas)
	return true, nil
}

// load starts one version, its examples included, and returns when it could be called.
func (b *Backend) load(ctx context.Context, f *function, d deployed, m backend.Model, next *record) (*generation, error) {
	f.mark(d.Version, mark{model: d.Model, state: backend.Loading})
	log := b.journal(f.ref)
	g, err := func() (*generation, error) {
		l, err := b.plan(ctx, d, m, identity{next.UID}, log)
		if err != nil {
			return nil, err
		}
		return b.begin(ctx, l, next.Replicas, log)
	}()
	if err != nil {
		f.mark(d.Version, mark{model: d.Model, state: backend.Failed, reason: err.Error()})
		return nil, fmt.Errorf("version %s: %w", d.Version, err)
	}
	f.unmark(d.Version)
	if before := f.route.Load().generation(d.Version); before != nil && before.launch.model == d.Model {
		g.stats = before.stats
	}
	return g, nil
}

// letGo retires in the background what is loaded no more, and releases the pins that it had.
func (b *Backend) letGo(f *function, old *route, loaded map[string]*generation, pins map[modelVersion]backend.Model) {
	if old != nil {
		for version, g := range old.loaded {
			if loaded[version] == g {
				continue
			}
			id := modelVersion{g.launch.model, version}
			var release func()
			if m, ok := pins[id]; ok {
				release = m.Release
				delete(pins, id)
			}
			b.retireLater(f, g, release)
		}
	}
	for _, m := range pins {
		m.Release()
	}
}

// retireLater lets a generation that nobody can reach any more finish, then calls after.
func (b *Backend) retireLater(f *function, g *generation, after func()) {
	if g != nil {
		f.mark(g.launch.version, mark{model: g.launch.model, state: backend.Draining})
	}
	b.background.Go(func() {
		if g != nil {
			g.retire(b.config.DrainTimeout)
		}
		if after != nil {
			after()
		}
		if g != nil {
			f.drained(g.launch.version)
		}
	})
}

// mark is what a function does with a version that its route does not say.
type mark struct {
	model  string
	state  backend.State
	reason string
	at     time.Time
}

// marksKept bounds the failed versions that are remembered; only a deployment makes one.
const marksKept = 32

func (f *function) mark(version string, m mark) {
	f.marksLock.Lock()
	defer f.marksLock.Unlock()
	m.at = time.Now()
	f.marks[version] = m
	if len(f.marks) <= marksKept {
		return
	}
	oldest := ""
	for v, m := range f.marks {
		if m.state == backend.Failed && (oldest == "" || m.at.Before(f.marks[oldest].at)) {
			oldest = v
		}
	}
	delete(f.marks, oldest)
}

func (f *function) unmark(version string) {
	f.marksLock.Lock()
	defer f.marksLock.Unlock()
	delete(f.marks, version)
}

// drained ends a version's draining, unless it is on its way back already.
func (f *function) drained(version string) {
	f.marksLock.Lock()
	defer f.marksLock.Unlock()
	if f.marks[version].state == backend.Draining {
		delete(f.marks, version)
	}
}

// forgive forgets that a version failed.
func (f *function) forgive(version string) {
	f.marksLock.Lock()
	defer f.marksLock.Unlock()
	if f.marks[version].state == backend.Failed {
		delete(f.marks, version)
	}
}

// awaitDrained blocks until the version has answered what it had accepted and is let go.
func (f *function) awaitDrained(ctx context.Context, version string) error {
	for {
		f.marksLock.Lock()
		draining := f.marks[version].state == backend.Draining
		f.marksLock.Unlock()
		if !draining {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("version %s is %w: it answers what it had accepted", version, backend.ErrInUse)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Traffic implements backend.Traffic.
func (b *Backend) Traffic(_ context.Context, ref backend.Ref) (backend.TrafficStatus, error) {
	f, err := b.existing(ref)
	if err != nil {
		return backend.TrafficStatus{}, err
	}
	return f.traffic(), nil
}

func (f *function) traffic() backend.TrafficStatus {
	r := f.record.Load()
	out := backend.TrafficStatus{Function: f.ref.String()}
	if r == nil {
		return out
	}
	out.Split, out.Before, out.Rollout, out.RolloutNote = r.Split, r.Before, r.Rollout, r.Note
	if note := f.progress.Load(); r.Rollout != nil && note != nil {
		out.RolloutNote = *note
	}
	rt := f.route.Load()
	seen := map[string]bool{}
	for _, d := range r.Versions {
		v := backend.VersionStatus{Model: d.Model, Version: d.Version, State: backend.Ready, Weight: r.Split.Weight(d.Version)}
		if v.Weight > 0 {
			v.State = backend.Active
		}
		if g := rt.generation(d.Version); g != nil {
			counted := g.stats.Read()
			v.Calls, v.Errors, v.Mirrored = counted.Calls, counted.Errors, g.mirrored.read()
			if g.current.Load() == nil {
				v.State, v.Reason = backend.Loading, "it ended and is being started again"
			}
		} else {
			v.State, v.Reason = backend.Loading, "it is being started"
			if r.Replicas == 0 {
				v.State, v.Reason = backend.Registered, "the function is scaled to zero"
			}
		}
		seen[d.Version] = true
		out.Versions = append(out.Versions, v)
	}
	f.marksLock.Lock()
	defer f.marksLock.Unlock()
	for version, m := range f.marks {
		switch {
		case !seen[version]:
			out.Versions = append(out.Versions, backend.VersionStatus{Model: m.model, Version: version, State: m.state, Reason: m.reason})
		case m.state == backend.Failed: // of a newer deployment of the same version
			at := slices.IndexFunc(out.Versions, func(v backend.VersionStatus) bool { return v.Version == version })
			out.Versions[at].Reason = "deploying it again failed: " + m.reason
		}
	}
	sort.Slice(out.Versions, func(i, j int) bool { return out.Versions[i].Version < out.Versions[j].Version })
	return out
}

// SetTraffic implements backend.Traffic.
func (b *Backend) SetTraffic(_ context.Context, ref backend.Ref, split traffic.Split) (backend.TrafficStatus, error) {
	if err := split.Check(); err != nil {
		return backend.TrafficStatus{}, fmt.Errorf("%w: %w", backend.ErrInvalid, err)
	}
	return b.moveTraffic(ref, func(r *record) error {
		r.move(split)
		return nil
	})
}

// Rollback implements backend.Traffic.
func (b *Backend) Rollback(_ context.Context, ref backend.Ref) (backend.TrafficStatus, error) {
	return b.moveTraffic(ref, func(r *record) error {
		if !r.rollback() {
			return fmt.Errorf("function %s has %w", ref, backend.ErrNothingBefore)
		}
		return nil
	})
}

// moveTraffic changes a function's split and nothing else of it.
func (b *Backend) moveTraffic(ref backend.Ref, move func(*record) error) (backend.TrafficStatus, error) {
	f, err := b.existing(ref)
	if err != nil {
		return backend.TrafficStatus{}, err
	}
	err = b.revise(f, "", func(old *record) (*record, error) {
		if old == nil {
			return nil, fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
		}
		next := old.clone()
		model := next.find(next.Split.Targets[0].Version).Model
		if err := move(next); err != nil {
			return nil, err
		}
		next.Rollout, next.Note = nil, "" // whoever moves the calls by hand takes over
		// Versions that are not loaded yet run as what was deployed last.
		for _, version := range next.Split.Versions() {
			if next.find(version) == nil {
				next.Versions = append(next.Versions, deployed{Model: model, Version: version, Spec: next.Spec})
			}
		}
		return next, nil
	})
	if err != nil {
		return backend.TrafficStatus{}, err
	}
	return f.traffic(), nil
}

// Running implements backend.Traffic.
func (b *Backend) Running(model string) []backend.TrafficStatus {
	b.mu.RLock()
	all := make([]*function, 0, len(b.functions))
	for _, f := range b.functions {
		all = append(all, f)
	}
	b.mu.RUnlock()
	var out []backend.TrafficStatus
	for _, f := range all {
		status := f.traffic()
		if slices.ContainsFunc(status.Versions, func(v backend.VersionStatus) bool { return v.Model == model }) {
			out = append(out, status)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Function < out[j].Function })
	return out
}

// Unload implements backend.Traffic.
func (b *Backend) Unload(ctx context.Context, model, version string) error {
	for _, status := range b.Running(model) {
		name, namespace, _ := strings.Cut(status.Function, ".")
		f, err := b.existing(backend.Ref{Namespace: namespace, Name: name})
		if err != nil {
			continue // deleted meanwhile
		}
		err = b.revise(f, "", func(old *record) (*record, error) {
			if old == nil {
				return nil, nil
			}
			d := old.find(version)
			switch {
			case d == nil || d.Model != model:
				return old, nil
			case slices.Contains(old.Split.Versions(), version):
				return nil, fmt.Errorf("version %s of %s is %w: it is in the split of function %s", version, model, backend.ErrInUse, f.ref)
			}
			next := old.clone()
			next.drop(version)
			next.Before = slices.DeleteFunc(next.Before, func(s traffic.Split) bool { return slices.Contains(s.Versions(), version) })
			return next, nil
		})
		if err == nil {
			f.forgive(version)
			err = f.awaitDrained(ctx, version)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
