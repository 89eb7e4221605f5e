package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// Traffic implements backend.Traffic.
func (b *Backend) Traffic(ctx context.Context, ref backend.Ref) (backend.TrafficStatus, error) {
	f, err := b.lookup(ctx, ref)
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
		loaded := rt.Version(d.Version)
		if loaded == nil && !slices.Contains(r.Needs(), d.Version) {
			continue // known for a rollback
		}
		v := backend.VersionStatus{Model: d.Model, Version: d.Version, State: backend.Ready, Weight: r.Split.Weight(d.Version)}
		if v.Weight > 0 {
			v.State = backend.Active
		}
		switch {
		case loaded != nil:
			counted := loaded.stats.Read()
			v.Calls, v.Errors, v.Mirrored = counted.Calls, counted.Errors, loaded.mirrored.Read()
			if ready, _, _, _, reason, _ := loaded.workload.standing(); ready == 0 {
				v.State, v.Reason = backend.Loading, "no container is ready: "+reason
			}
		case r.Replicas == 0:
			v.State, v.Reason = backend.Registered, "the function is scaled to zero"
		default:
			v.State, v.Reason = backend.Loading, "it is being started"
		}
		out.Versions = append(out.Versions, v)
	}
	out.Versions = f.marks.Merge(out.Versions, func(version string) bool { return rt.Version(version) != nil })
	slices.SortFunc(out.Versions, func(x, y backend.VersionStatus) int { return strings.Compare(x.Version, y.Version) })
	return out
}

// SetTraffic implements backend.Traffic. A version that the function does not know is looked for as the
// tag of the image that was deployed last.
func (b *Backend) SetTraffic(ctx context.Context, ref backend.Ref, split traffic.Split) (backend.TrafficStatus, error) {
	if err := split.Check(); err != nil {
		return backend.TrafficStatus{}, fmt.Errorf("%w: %w", backend.ErrInvalid, err)
	}
	return b.moveTraffic(ctx, ref, func(r *record) error {
		model := r.Find(r.Split.Targets[0].Version).Model
		return r.SetSplit(split, func(version string) (deployment.Deployed, error) {
			return deployment.Deployed{Model: model, Version: version, Spec: r.Spec}, nil
		})
	})
}

// Rollback implements backend.Traffic.
func (b *Backend) Rollback(ctx context.Context, ref backend.Ref) (backend.TrafficStatus, error) {
	return b.moveTraffic(ctx, ref, func(r *record) error {
		if !r.Rollback() {
			return fmt.Errorf("function %s has %w", ref, backend.ErrNothingBefore)
		}
		return nil
	})
}

func (b *Backend) moveTraffic(ctx context.Context, ref backend.Ref, move func(*record) error) (backend.TrafficStatus, error) {
	f, err := b.lookup(ctx, ref)
	if err != nil {
		return backend.TrafficStatus{}, err
	}
	if err := b.edit(ctx, ref, move); err != nil {
		return backend.TrafficStatus{}, err
	}
	return f.traffic(), nil
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
	slices.SortFunc(out, func(x, y backend.TrafficStatus) int { return strings.Compare(x.Function, y.Function) })
	return out
}

// Unload implements backend.Traffic.
func (b *Backend) Unload(ctx context.Context, model, version string) error {
	forget := func(old *record) (*record, error) {
		if old == nil {
			return nil, nil
		}
		next, err := old.Forget(model, version)
		if err != nil || next == &old.Record {
			return old, err
		}
		return &record{Record: *next}, nil
	}
	refused := func() error {
		for _, f := range b.all() {
			if _, err := forget(f.record.Load()); err != nil {
				return err
			}
		}
		return nil
	}
	if err := refused(); err != nil { // and no function is changed
		return err
	}
	for _, f := range b.all() {
		if f.record.Load() == nil {
			continue
		}
		err := b.revise(f.ref, forget)
		if err == nil {
			f.marks.Forgive(model, version)
			err = f.marks.AwaitDrained(ctx, model, version)
		}
		if err != nil {
			return err
		}
	}
	return refused() // it may have been deployed while it drained
}
