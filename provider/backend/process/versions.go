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

// apply makes next the function's state: it loads the versions that next names and that are not
// loaded, stores next, moves the calls in one step, and lets go of what next does not name. fresh is a
// version to load anew even if it is loaded. On an error nothing has changed. The caller holds
// f.change.
func (b *Backend) apply(f *function, next *record, fresh string) (err error) {
	if b.alive.Err() != nil {
		return fmt.Errorf("%w: the provider is shutting down", backend.ErrNotReady)
	}
	ctx, cancel := withTimeout(b.alive, b.config.DeployTimeout)
	defer cancel()
	began := time.Now()
	next.forget(b.config.KeepWarm)
	pinned, err := b.pinMissing(f, next)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			for _, m := range pinned {
				m.Release()
			}
		}
	}()
	old := f.route.Load()
	var rollout *traffic.Rollout
	if r := f.record.Load(); r != nil {
		rollout = r.Rollout
	}
	loaded, started, err := b.loadMissing(ctx, f, next, old, fresh, pinned)
	if err == nil {
		err = b.commit(f, next)
	}
	if err != nil {
		for _, g := range started {
			g.retire(0)
		}
		return err
	}
	for id, m := range pinned {
		f.pins[id] = m
	}
	if next.Replicas > 0 {
		f.route.Store(newRoute(next.Split, loaded))
	}
	b.letGo(f, next, old, loaded)
	if next.Rollout != nil && next.Rollout != rollout {
		b.background.Go(func() { b.guard(f, next.Rollout) })
	}
	slog.Info("function changed", "function", f.ref.String(), "split", next.Split.String(), "mirror", next.Split.Mirror,
		"replicas", next.Replicas, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// pinMissing keeps the versions of next that the function does not keep yet from being deleted.
func (b *Backend) pinMissing(f *function, next *record) (map[modelVersion]backend.Model, error) {
	pinned := map[modelVersion]backend.Model{}
	for _, d := range next.Versions {
		if _, ok := f.pins[d.id()]; ok {
			continue
		}
		m, err := b.models.Pin(d.Model, d.Version)
		if err != nil {
			for _, m := range pinned {
				m.Release()
			}
			if errors.Is(err, backend.ErrNotFound) {
				err = fmt.Errorf("%w; push it first", err)
			}
			return nil, err
		}
		pinned[d.id()] = m
	}
	return pinned, nil
}

// loadMissing starts what next names and old does not have. A version that gets no calls and does not
// start is dropped from next: it was only kept for a rollback.
func (b *Backend) loadMissing(ctx context.Context, f *function, next *record, old *route, fresh string,
	pinned map[modelVersion]backend.Model,
) (loaded map[string]*generation, started []*generation, err error) {
	loaded = map[string]*generation{}
	if next.Replicas == 0 {
		return loaded, nil, nil
	}
	for _, d := range slices.Clone(next.Versions) {
		g := old.generation(d.Version)
		switch {
		case g != nil && d.Version != fresh && g.launch.model == d.Model:
			err = g.resize(ctx, next.Replicas)
		default:
			m, ok := pinned[d.id()]
			if !ok {
				m = f.pins[d.id()]
			}
			if g, err = b.load(ctx, f, d, m, next); err == nil {
				started = append(started, g)
			}
		}
		switch {
		case err == nil:
			loaded[d.Version] = g
		case slices.Contains(next.Split.Versions(), d.Version):
			return nil, started, err
		default:
			slog.Warn("a version that was kept for a rollback does not start and is forgotten", "function", f.ref.String(), "version", d.Version, "error", err)
			next.drop(d.Version)
		}
	}
	return loaded, started, nil
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

// letGo retires in the background what is loaded no more, and then lets it be deleted.
func (b *Backend) letGo(f *function, next *record, old *route, loaded map[string]*generation) {
	leaving := map[modelVersion]*generation{}
	if old != nil {
		for version, g := range old.loaded {
			if loaded[version] != g {
				leaving[modelVersion{g.launch.model, version}] = g
			}
		}
	}
	for id, m := range f.pins {
		if !slices.ContainsFunc(next.Versions, func(d deployed) bool { return d.id() == id }) {
			delete(f.pins, id)
			b.retireLater(f, leaving[id], m.Release)
			delete(leaving, id)
		}
	}
	for _, g := range leaving {
		b.retireLater(f, g, nil)
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
func (b *Backend) moveTraffic(ref backend.Ref, change func(*record) error) (backend.TrafficStatus, error) {
	f, unlock, err := b.lock(ref)
	if err != nil {
		return backend.TrafficStatus{}, err
	}
	defer unlock()
	next := f.record.Load().clone()
	model := next.find(next.Split.Targets[0].Version).Model
	if err := change(next); err != nil {
		return backend.TrafficStatus{}, err
	}
	next.Rollout, next.Note = nil, "" // whoever moves the calls by hand takes over
	// Versions that are not loaded yet run as what was deployed last.
	for _, version := range next.Split.Versions() {
		if next.find(version) == nil {
			next.Versions = append(next.Versions, deployed{Model: model, Version: version, Spec: next.Spec})
		}
	}
	if err := b.apply(f, next, ""); err != nil {
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
		f, unlock, err := b.lock(backend.Ref{Namespace: namespace, Name: name})
		if errors.Is(err, backend.ErrNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		err = b.unload(f, model, version)
		unlock()
		if err == nil {
			err = f.awaitDrained(ctx, version)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *Backend) unload(f *function, model, version string) error {
	next := f.record.Load().clone()
	d := next.find(version)
	if d == nil || d.Model != model {
		f.forgive(version)
		return nil
	}
	if slices.Contains(next.Split.Versions(), version) {
		return fmt.Errorf("version %s of %s is %w: it is in the split of function %s", version, model, backend.ErrInUse, f.ref)
	}
	next.drop(version)
	next.Before = slices.DeleteFunc(next.Before, func(s traffic.Split) bool { return slices.Contains(s.Versions(), version) })
	return b.apply(f, next, "")
}
