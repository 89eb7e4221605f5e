package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// change is one change of a function, from reading its record to moving its calls. It holds what was
// started for it until a record has it.
type change struct {
	f       *function
	started map[string]*deployment.Deployed // by workload
	loaded  bool                            // may load
	held    []Image                         // that may not go before the record is stored
}

// revise makes what next returns for the function's present record its record: it starts the workloads
// that are needed and not there, waits until they are ready, stores the record if nobody else changed
// it meanwhile, and moves the calls in one step. old is nil where there is no function. next may be
// called several times and must do nothing but compute; returning old itself changes nothing. On an
// error nothing has changed.
//
// What needs nothing loaded is done at once, even while another change loads: a rollback does not wait
// for a deployment, which then goes on from what the rollback made.
func (b *Backend) revise(ref backend.Ref, next func(old *record) (*record, error)) error {
	f := b.claim(ref)
	defer b.unclaim(f)
	c := &change{f: f, started: map[string]*deployment.Deployed{}}
	defer func() {
		for _, image := range c.held {
			image.release()
		}
	}()
	ctx, cancel := withTimeout(b.alive, b.DeployTimeout)
	defer cancel()
	done, err := c.attempt(ctx, next)
	if done || err != nil {
		return err
	}
	f.loading.Lock()
	defer f.loading.Unlock()
	f.stopLoading.Store(&cancel)
	defer f.stopLoading.Store(nil)
	defer c.abandon()
	c.loaded = true
	for {
		if done, err := c.attempt(ctx, next); done || err != nil {
			return err
		}
	}
}

// attempt is one try. done is false when another provider changed the record meanwhile, or when
// something has to be loaded and the change may not.
func (c *change) attempt(ctx context.Context, compute func(old *record) (*record, error)) (done bool, err error) {
	f, b := c.f, c.f.b
	if b.alive.Err() != nil {
		return false, fmt.Errorf("%w: the provider is shutting down", backend.ErrNotReady)
	}
	seen, err := b.Engine.Read(ctx, f.ref)
	if err != nil {
		return false, fmt.Errorf("read function %s: %w", f.ref, err)
	}
	old, err := decode(seen.Record)
	if err != nil {
		return false, err
	}
	next, err := compute(old)
	if err != nil || next == old {
		return err == nil, err
	}
	missing, err := c.name(ctx, next, seen)
	if err != nil {
		return false, err
	}
	resized := old != nil && next.Replicas != old.Replicas && next.Replicas > 0
	if (len(missing) > 0 || resized) && !c.loaded {
		return false, nil
	}
	if err := next.settle(old, b.KeepWarm, append(seen.Workloads, c.statuses()...)); err != nil {
		return false, err
	}
	raw, err := next.encode()
	if err != nil {
		return false, err
	}
	if err := c.load(ctx, next, missing); err != nil {
		return false, err
	}
	undo, err := c.resize(ctx, old, next, seen, resized)
	if errors.Is(err, errStale) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = b.Engine.Write(ctx, f.ref, raw, seen.Revision)
	if errors.Is(err, ErrConflict) {
		return false, nil
	}
	if err != nil {
		undo()
		return false, fmt.Errorf("store function %s: %w", f.ref, err)
	}
	c.moved(old, next)
	return true, nil
}

// name gives the versions that next needs and that have no workload, or one that the engine has lost, a
// workload's name and an image, and returns them.
func (c *change) name(ctx context.Context, next *record, seen Function) ([]*deployment.Deployed, error) {
	var missing []*deployment.Deployed
	if next.Replicas == 0 {
		return nil, nil
	}
	for _, name := range next.Needs() {
		d := next.Find(name)
		if d == nil {
			continue // Tidy says so
		}
		if d.Workload != "" && c.started[d.Workload] == nil && slices.ContainsFunc(seen.Workloads, func(s Status) bool { return s.ID == d.Workload }) {
			continue
		}
		if d.Image == "" {
			image, err := c.f.b.sibling(ctx, d)
			if err != nil {
				return nil, err
			}
			c.held = append(c.held, image)
			d.Image, d.Contents, d.Bundle = image.Ref, image.Contents, image.Bundle
		}
		if d.Workload == "" {
			d.Workload = c.reuse(d)
		}
		if d.Workload == "" {
			d.Workload = newID()
		}
		if c.started[d.Workload] == nil {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// reuse is a workload that an earlier attempt of the change started for the same.
func (c *change) reuse(d *deployment.Deployed) string {
	for id, s := range c.started {
		if s.Version == d.Version && s.Image == d.Image && reflect.DeepEqual(s.Spec, d.Spec) {
			return id
		}
	}
	return ""
}

// newID is a workload's name that no other of the function has.
func newID() string { return strings.ToLower(rand.Text())[:10] }

// sibling finds the image of a version that the function has not been deployed as: the one that has the
// version as its tag.
func (b *Backend) sibling(ctx context.Context, d *deployment.Deployed) (Image, error) {
	name, _, _ := strings.Cut(d.Spec.Image, "@")
	if slash := strings.LastIndexByte(name, '/'); strings.LastIndexByte(name, ':') > slash {
		name = name[:strings.LastIndexByte(name, ':')]
	}
	image, err := b.Images.Inspect(ctx, name+":"+d.Version)
	if err != nil {
		return Image{}, fmt.Errorf("version %s: %w", d.Version, err)
	}
	if image.Version != d.Version {
		image.release()
		return Image{}, fmt.Errorf("%w version %s: image %s:%s holds version %s", backend.ErrInvalid, d.Version, name, d.Version, image.Version)
	}
	return image, nil
}

func (c *change) statuses() []Status {
	var out []Status
	for id := range c.started {
		out = append(out, Status{ID: id})
	}
	return out
}

// load starts workloads and returns when all of their containers are ready.
func (c *change) load(ctx context.Context, next *record, missing []*deployment.Deployed) error {
	f, b := c.f, c.f.b
	for _, d := range missing {
		f.marks.Set(d.Version, deployment.Mark{Model: d.Model, State: backend.Loading})
		c.started[d.Workload] = d
		err := b.Engine.Apply(ctx, b.workload(f.ref, d, next.Replicas))
		if err == nil {
			err = c.awaitReady(ctx, d.Workload, next.Replicas, true, never)
		}
		if err != nil {
			err = fmt.Errorf("version %s: %w", d.Version, err)
			f.marks.Set(d.Version, deployment.Mark{Model: d.Model, State: backend.Failed, Reason: err.Error()})
			return err
		}
		f.marks.Unset(d.Version)
	}
	return nil
}

// workload is what the engine is to run for a version.
func (b *Backend) workload(ref backend.Ref, d *deployment.Deployed, replicas uint64) Workload {
	env := map[string]string{"drain_timeout": b.DrainTimeout.String()}
	maps.Copy(env, d.Spec.EnvVars)
	env["OPENFAAS_NAME"], env["OPENFAAS_NAMESPACE"] = ref.Name, ref.Namespace
	env["healthcheck_interval"] = b.grace.Serving.String()
	lease := time.Now().Add(leaseMargin)
	if b.DeployTimeout > 0 {
		lease = lease.Add(b.DeployTimeout)
	} else {
		lease = lease.Add(24 * time.Hour)
	}
	return Workload{
		Ref: ref, ID: d.Workload, Model: d.Model, Version: d.Version, Image: d.Image, Bundle: d.Bundle, Spec: d.Spec,
		Env: env, Replicas: replicas, Grace: b.grace, Lease: lease.Unix(),
	}
}

// leaseMargin is for clocks that differ.
const leaseMargin = time.Minute

// reserved variables are the provider's to set; a spec that sets one is refused.
var reserved = map[string]bool{
	"model_path": true, "socket_path": true, "admin_socket": true, "interpreter": true, "port": true, "metrics_port": true,
	"suppress_lock": true, "healthcheck_interval": true, "OPENFAAS_NAME": true, "OPENFAAS_NAMESPACE": true,
}

// tailLines is how much of a container's log goes into the answer to a deployment that failed.
const tailLines = 50

// awaitReady blocks until so many containers of a workload are ready, or says why they will not be. A
// fresh workload is given up at its first failure; any is when it is stale, with errStale.
func (c *change) awaitReady(ctx context.Context, id string, replicas uint64, fresh bool, stale func() bool) error {
	why := "the engine has not told of it yet"
	for {
		if stale() {
			return errStale
		}
		var changed <-chan struct{}
		if w := c.f.find(id); w != nil {
			ready, _, failures, final, reason, next := w.standing()
			if ready >= replicas {
				return nil
			}
			why, changed = fmt.Sprintf("%d of %d containers are ready", ready, replicas), next
			if reason != "" {
				why += ": " + reason
			}
			if fresh && final {
				return fmt.Errorf("%w: %s", backend.ErrFailed, reason)
			}
			if fresh && failures > 0 {
				return fmt.Errorf("%w: %s%s", backend.ErrFailed, reason, c.tail(ctx, id))
			}
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond): // a workload that is not there yet tells nothing
		case <-ctx.Done():
			if c.f.b.alive.Err() != nil {
				return fmt.Errorf("%w: the provider is shutting down", backend.ErrNotReady)
			}
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("%w: the function is being deleted", backend.ErrNotReady)
			}
			return fmt.Errorf("%w: not ready within deploy_timeout: %s%s", backend.ErrFailed, why, c.tail(context.WithoutCancel(ctx), id))
		}
	}
}

// tail is what the containers said last, as the end of a sentence.
func (c *change) tail(ctx context.Context, id string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	text, err := c.f.b.Engine.Tail(ctx, c.f.ref, id, tailLines)
	if err != nil {
		slog.Warn("a container's log cannot be read", "function", c.f.ref.String(), "error", err)
	}
	if text = strings.TrimSpace(text); text == "" {
		return ""
	}
	return "; its log ends with:\n" + text
}

// errStale means that another provider has changed the record that a change started from.
var errStale = errors.New("the record has changed")

func never() bool { return false }

// resize gives the workloads that stay the number of containers that next asks for, or on an error
// none of them: all, or those that an earlier attempt started for a record that has changed. undo takes
// it back.
//
// It gives errStale once another provider has changed the record: that may have removed the very
// workload that is waited for, or given it another number of containers.
func (c *change) resize(ctx context.Context, old, next *record, seen Function, all bool) (undo func(), err error) {
	b := c.f.b
	stale := func() bool {
		r := c.f.record.Load()
		return r != nil && old != nil && r.Serial > old.Serial
	}
	before := map[string]uint64{}
	undo = func() {
		for id, n := range before {
			if err := b.Engine.Scale(context.WithoutCancel(ctx), c.f.ref, id, n); err != nil {
				logError("a function cannot be scaled back", c.f.ref, err)
			}
		}
	}
	for _, id := range next.workloads() {
		at := slices.IndexFunc(seen.Workloads, func(s Status) bool { return s.ID == id })
		if at < 0 || seen.Workloads[at].Replicas == next.Replicas || (!all && c.started[id] == nil) {
			continue
		}
		err := b.Engine.Scale(ctx, c.f.ref, id, next.Replicas)
		if errors.Is(err, backend.ErrNotFound) {
			return nil, errStale // it was there a moment ago
		}
		if err != nil {
			undo()
			return nil, fmt.Errorf("scale %s to %d: %w", c.f.ref, next.Replicas, err)
		}
		before[id] = seen.Workloads[at].Replicas
	}
	for id := range before {
		err := c.awaitReady(ctx, id, next.Replicas, false, stale)
		if errors.Is(err, errStale) {
			return nil, err
		}
		if err != nil {
			undo()
			return nil, fmt.Errorf("scale %s to %s: %w", c.f.ref, strconv.FormatUint(next.Replicas, 10), err)
		}
	}
	return undo, nil
}

// moved makes the record that was stored the function's, before the watch tells of it.
func (c *change) moved(old, next *record) {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range next.workloads() {
		delete(c.started, id)
	}
	if next.Serial > f.serial {
		f.adopt(next)
		f.reroute()
		f.retire()
	}
	if old != nil {
		for _, d := range old.Versions {
			if leaving := f.leaving[d.Workload]; leaving != nil && slices.Contains(next.Retired, d.Workload) {
				leaving.version = d.Version
				f.marks.Set(d.Version, deployment.Mark{Model: d.Model, State: backend.Draining})
			}
		}
	}
	slog.Info("function changed", "function", f.ref.String(), "split", next.Split.String(), "mirror", next.Split.Mirror, "replicas", next.Replicas)
}

// abandon removes what was started and is in no record.
func (c *change) abandon() {
	for id := range c.started {
		f := c.f
		f.b.background.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(f.b.alive), 10*time.Second)
			defer cancel()
			if err := f.b.Engine.Remove(ctx, f.ref, id); err != nil {
				logError("containers of a deployment that failed cannot be removed now; they are when their time is over", f.ref, err)
			}
		})
	}
}
