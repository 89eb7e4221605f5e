package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sort"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// revise makes what change returns for the function's present record its state: it loads the versions
// that are needed and not loaded, stores the record, moves the calls in one step, and lets go of what is
// kept no more. old is nil where there is no function. change may be called several times and must do
// nothing but compute; returning old itself changes nothing. fresh is a version to load anew even if
// it is loaded. On an error nothing has changed.
//
// What needs nothing loaded is done at once, even while another revision loads: a rollback does not wait
// for a deployment, which then goes on from what the rollback made.
func (b *Backend) revise(f *function, fresh string, change func(old *deployment.Record) (*deployment.Record, error)) error {
	if fresh == "" {
		if done, err := b.reviseLoaded(f, change); done {
			return err
		}
	}
	f.loading.Lock()
	defer f.loading.Unlock()
	ctx, cancel := withTimeout(b.alive, b.config.DeployTimeout)
	defer cancel()
	f.stopLoading.Store(&cancel)
	defer f.stopLoading.Store(nil)
	started := map[string]*generation{}
	defer func() {
		for _, g := range started {
			g.retire(0)
		}
	}()
	for {
		base := f.record.Load()
		next, err := b.next(base, change)
		if err != nil || next == base {
			return err
		}
		step("computed")
		if err := b.loadMissing(ctx, f, next, fresh, started); err != nil {
			return err
		}
		step("loaded")
		undo, err := b.resizeLoaded(ctx, f, next)
		if err != nil {
			return err
		}
		f.change.Lock()
		done, err := b.commit(f, base, next, started)
		f.change.Unlock()
		if done && err == nil {
			return nil
		}
		undo()
		if err != nil {
			return err
		}
	}
}

// reviseLoaded is revise for what needs nothing loaded; done is false when something does.
func (b *Backend) reviseLoaded(f *function, change func(old *deployment.Record) (*deployment.Record, error)) (done bool, err error) {
	f.change.Lock()
	defer f.change.Unlock()
	base := f.record.Load()
	next, err := b.next(base, change)
	if err != nil || next == base {
		return true, err
	}
	if base == nil || next.Replicas != base.Replicas {
		return false, nil
	}
	return b.commit(f, base, next, nil)
}

func (b *Backend) next(base *deployment.Record, change func(old *deployment.Record) (*deployment.Record, error)) (*deployment.Record, error) {
	if b.alive.Err() != nil {
		return nil, fmt.Errorf("%w: the provider is shutting down", backend.ErrNotReady)
	}
	next, err := change(base)
	if err != nil || next == base {
		return next, err
	}
	return next, next.Tidy()
}

// pin keeps from being deleted what a function needs while it has no generations that do so.
func (b *Backend) pin(r *deployment.Record) ([]backend.Model, error) {
	var pins []backend.Model
	for _, d := range r.Versions {
		if !slices.Contains(r.Needs(), d.Version) {
			continue
		}
		m, err := b.models.Pin(d.Model, d.Version)
		if err != nil {
			release(pins)
			return nil, err
		}
		pins = append(pins, m)
	}
	return pins, nil
}

func release(pins []backend.Model) {
	for _, m := range pins {
		m.Release()
	}
}

// loadMissing starts what next needs and neither the route nor started has, and adds it to started.
func (b *Backend) loadMissing(ctx context.Context, f *function, next *deployment.Record, fresh string, started map[string]*generation) error {
	if next.Replicas == 0 {
		return nil
	}
	rt := f.route.Load()
	for _, version := range next.Needs() {
		d := next.Find(version)
		if started[version] != nil || (version != fresh && runs(rt, d) != nil) {
			continue
		}
		g, err := b.load(ctx, f, *d, next)
		if err != nil {
			return err
		}
		started[version] = g
	}
	return nil
}

// resizeLoaded gives the generations that run the number of workers that next asks for, or on an error
// none of them. undo takes it back.
func (b *Backend) resizeLoaded(ctx context.Context, f *function, next *deployment.Record) (undo func(), err error) {
	type sized struct {
		g      *generation
		before uint64
	}
	var resized []sized
	undo = func() {
		ctx, cancel := withTimeout(b.alive, b.config.DeployTimeout)
		defer cancel()
		for _, s := range resized {
			_ = s.g.resize(ctx, s.before)
		}
	}
	rt := f.route.Load()
	if rt == nil || next.Replicas == 0 {
		return undo, nil
	}
	for _, version := range next.Keeps(b.config.KeepWarm) {
		g := runs(rt, next.Find(version))
		if g == nil {
			continue
		}
		resized = append(resized, sized{g, g.wanted.Load()})
		if err := g.resize(ctx, next.Replicas); err != nil {
			undo()
			return nil, err
		}
	}
	return undo, nil
}

// commit stores next and moves the calls, unless the function is no longer what next was made from, or
// next needs what is not loaded: then done is false. What it takes over of started it removes there.
// The caller holds f.change.
func (b *Backend) commit(f *function, base, next *deployment.Record, started map[string]*generation) (done bool, err error) {
	if f.record.Load() != base {
		return false, nil
	}
	old := f.route.Load()
	loaded := map[string]*generation{}
	var pins []backend.Model
	if next.Replicas > 0 {
		for _, version := range next.Keeps(b.config.KeepWarm) {
			g := started[version]
			if g == nil {
				g = runs(old, next.Find(version))
			}
			if g != nil {
				loaded[version] = g
			} else if slices.Contains(next.Needs(), version) {
				return false, nil
			}
		}
	} else if pins, err = b.pin(next); err != nil {
		return true, err
	}
	step("pinned")
	if err := b.storeRecord(f, next); err != nil {
		release(pins)
		return true, err
	}
	step("stored")
	if next.Replicas > 0 {
		f.route.Store(deployment.NewRoute(next.Split, loaded))
	} else {
		f.route.Store(nil)
	}
	step("moved")
	pins, f.pins = f.pins, pins
	b.background.Go(func() { release(pins) })
	if old != nil {
		for version, g := range old.Loaded {
			if loaded[version] != g {
				b.retireLater(f, g)
			}
		}
	}
	for version, g := range loaded {
		if started[version] == g {
			delete(started, version)
			b.refreshSecrets(g)
		}
	}
	if next.Rollout != nil && (base == nil || base.Rollout != next.Rollout) {
		f.progress.Store(nil)
		b.background.Go(func() { b.guard(f, next.Rollout) })
	}
	slog.Info("function changed", "function", f.ref.String(), "split", next.Split.String(), "mirror", next.Split.Mirror, "replicas", next.Replicas)
	return true, nil
}

// load starts one version, its examples included, and returns when it could be called.
func (b *Backend) load(ctx context.Context, f *function, d deployment.Deployed, next *deployment.Record) (*generation, error) {
	f.marks.Set(d.Version, deployment.Mark{Model: d.Model, State: backend.Loading})
	g, err := b.launch(ctx, d, next, b.journal(f.ref))
	if err != nil {
		f.marks.Set(d.Version, deployment.Mark{Model: d.Model, State: backend.Failed, Reason: err.Error()})
		return nil, fmt.Errorf("version %s: %w", d.Version, err)
	}
	f.marks.Unset(d.Version)
	if before := f.route.Load().Version(d.Version); before != nil && before.launch.model.Name == d.Model {
		g.stats = before.stats
	}
	return g, nil
}

func (b *Backend) launch(ctx context.Context, d deployment.Deployed, next *deployment.Record, log *journal) (*generation, error) {
	m, err := b.models.Pin(d.Model, d.Version)
	if errors.Is(err, backend.ErrNotFound) {
		err = fmt.Errorf("%w; push it first", err)
	}
	if err != nil {
		return nil, err
	}
	l, err := b.plan(ctx, d, m, identity{next.UID}, log)
	var g *generation
	if err == nil {
		g, err = b.begin(ctx, l, next.Replicas, log)
	}
	if err != nil {
		m.Release()
	}
	return g, err
}

// retireLater lets a generation that nobody can reach any more finish.
func (b *Backend) retireLater(f *function, g *generation) {
	f.marks.Set(g.launch.model.Version, deployment.Mark{Model: g.launch.model.Name, State: backend.Draining})
	b.background.Go(func() {
		g.retire(b.config.DrainTimeout)
		f.marks.Drained(g.launch.model.Version)
	})
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
	for _, d := range r.Versions {
		if rt.Version(d.Version) == nil && !slices.Contains(r.Needs(), d.Version) {
			continue // known for a rollback
		}
		v := backend.VersionStatus{Model: d.Model, Version: d.Version, State: backend.Ready, Weight: r.Split.Weight(d.Version)}
		if v.Weight > 0 {
			v.State = backend.Active
		}
		if g := rt.Version(d.Version); g != nil {
			counted := g.stats.Read()
			v.Calls, v.Errors, v.Mirrored = counted.Calls, counted.Errors, g.mirrored.Read()
			if g.current.Load() == nil {
				v.State, v.Reason = backend.Loading, "it ended and is being started again"
			}
		} else {
			v.State, v.Reason = backend.Loading, "it is being started"
			if r.Replicas == 0 {
				v.State, v.Reason = backend.Registered, "the function is scaled to zero"
			}
		}
		out.Versions = append(out.Versions, v)
	}
	out.Versions = f.marks.Merge(out.Versions, func(version string) bool { return rt.Version(version) != nil })
	sort.Slice(out.Versions, func(i, j int) bool { return out.Versions[i].Version < out.Versions[j].Version })
	return out
}

// SetTraffic implements backend.Traffic.
func (b *Backend) SetTraffic(_ context.Context, ref backend.Ref, split traffic.Split) (backend.TrafficStatus, error) {
	if err := split.Check(); err != nil {
		return backend.TrafficStatus{}, fmt.Errorf("%w: %w", backend.ErrInvalid, err)
	}
	return b.moveTraffic(ref, func(r *deployment.Record) error {
		model := r.Find(r.Split.Targets[0].Version).Model
		// Versions that the function does not know run as what was deployed last.
		return r.SetSplit(split, func(version string) (deployment.Deployed, error) {
			return deployment.Deployed{Model: model, Version: version, Spec: r.Spec}, nil
		})
	})
}

// Rollback implements backend.Traffic.
func (b *Backend) Rollback(_ context.Context, ref backend.Ref) (backend.TrafficStatus, error) {
	return b.moveTraffic(ref, func(r *deployment.Record) error {
		if !r.Rollback() {
			return fmt.Errorf("function %s has %w", ref, backend.ErrNothingBefore)
		}
		return nil
	})
}

// moveTraffic changes a function's split and nothing else of it.
func (b *Backend) moveTraffic(ref backend.Ref, move func(*deployment.Record) error) (backend.TrafficStatus, error) {
	f, err := b.existing(ref)
	if err != nil {
		return backend.TrafficStatus{}, err
	}
	err = b.revise(f, "", func(old *deployment.Record) (*deployment.Record, error) {
		if old == nil {
			return nil, fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
		}
		next := old.Clone()
		return next, move(next)
	})
	if err != nil {
		return backend.TrafficStatus{}, err
	}
	return f.traffic(), nil
}

// all lists the functions.
func (b *Backend) all() []*function {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return slices.Collect(maps.Values(b.functions))
}

// Running implements backend.Traffic.
func (b *Backend) Running(model string) []backend.TrafficStatus {
	var out []backend.TrafficStatus
	for _, f := range b.all() {
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
	forget := func(old *deployment.Record) (*deployment.Record, error) {
		if old == nil {
			return nil, nil
		}
		return old.Forget(model, version)
	}
	// No function is changed when one refuses.
	for _, f := range b.all() {
		if _, err := forget(f.record.Load()); err != nil {
			return err
		}
	}
	for _, f := range b.all() {
		err := b.revise(f, "", forget)
		if err == nil {
			f.marks.Forgive(model, version)
			err = f.marks.AwaitDrained(ctx, model, version)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
