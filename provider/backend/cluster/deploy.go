package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// Create implements backend.Functions.
func (b *Backend) Create(ctx context.Context, spec types.FunctionDeployment) error {
	return b.deploy(ctx, spec, false)
}

// Update implements backend.Functions.
func (b *Backend) Update(ctx context.Context, spec types.FunctionDeployment) error {
	return b.deploy(ctx, spec, true)
}

func (b *Backend) rules() deployment.Rules {
	return deployment.Rules{MaxReplicas: b.MaxReplicas, Reserved: reserved}
}

// deploy does not end with the request that asked for it: a client that gives up while a model loads
// finds the function there later.
func (b *Backend) deploy(ctx context.Context, spec types.FunctionDeployment, update bool) error {
	ref, err := b.rules().Check(&spec)
	if err != nil {
		return err
	}
	if update {
		// Before the image, which may be wrong as well: the clients deploy anew when they hear "not found".
		if _, err := b.lookup(ctx, ref); err != nil {
			return err
		}
	}
	if err := b.checkNamespace(ctx, ref.Namespace); err != nil {
		return err
	}
	if err := b.checkSecrets(ctx, &spec); err != nil {
		return err
	}
	image, err := b.Images.Inspect(ctx, spec.Image)
	if err != nil {
		return err
	}
	defer image.release()
	d := deployment.Deployed{
		Model: image.Model, Version: image.Version, Spec: spec, Image: image.Ref, Contents: image.Contents,
		Bundle: image.Bundle, Workload: newID(),
	}
	return b.revise(ref, func(old *record) (*record, error) {
		switch {
		case update && old == nil:
			return nil, notFound(ref)
		case !update && old != nil:
			return nil, fmt.Errorf("function %s %w: update it instead", ref, backend.ErrExists)
		}
		var before *deployment.Record
		if old != nil {
			before = &old.Record
			if known := before.Find(d.Version); known != nil && known.Contents != d.Contents && known.Contents != "" && d.Contents != "" {
				return nil, fmt.Errorf("version %s of function %s is %w with other content: change the label of what you changed", d.Version, ref, backend.ErrInUse)
			}
		}
		next, err := b.rules().Deploy(before, d)
		if err != nil {
			return nil, err
		}
		return &record{Record: *next}, nil
	})
}

func (b *Backend) checkNamespace(ctx context.Context, name string) error {
	all, err := b.Engine.ListNamespaces(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(n types.FunctionNamespace) bool { return n.Name == name }) {
		return fmt.Errorf("%w namespace %q: it does not exist, create it first", backend.ErrInvalid, name)
	}
	return nil
}

func (b *Backend) checkSecrets(ctx context.Context, spec *types.FunctionDeployment) error {
	if len(spec.Secrets) == 0 {
		return nil
	}
	all, err := b.Engine.ListSecrets(ctx, spec.Namespace)
	if err != nil {
		return err
	}
	for _, name := range spec.Secrets {
		if !slices.ContainsFunc(all, func(s types.Secret) bool { return s.Name == name }) {
			return fmt.Errorf("%w secrets: secret %s in namespace %s %w: create it first", backend.ErrInvalid, name, spec.Namespace, backend.ErrNotFound)
		}
	}
	return nil
}

// Scale implements backend.Functions.
func (b *Backend) Scale(ctx context.Context, ref backend.Ref, replicas uint64) error {
	if replicas > b.MaxReplicas {
		return fmt.Errorf("%w number of replicas %d: max_replicas is %d", backend.ErrInvalid, replicas, b.MaxReplicas)
	}
	return b.edit(ctx, ref, func(next *record) error {
		next.Replicas = replicas
		return nil
	})
}

// edit is revise for a function that must exist.
func (b *Backend) edit(ctx context.Context, ref backend.Ref, edit func(next *record) error) error {
	if _, err := b.lookup(ctx, ref); err != nil {
		return err
	}
	return b.revise(ref, func(old *record) (*record, error) {
		if old == nil {
			return nil, notFound(ref)
		}
		next := old.clone()
		return next, edit(next)
	})
}

// Delete implements backend.Functions.
func (b *Backend) Delete(ctx context.Context, ref backend.Ref) error {
	f, err := b.lookup(ctx, ref)
	if err != nil {
		return err
	}
	f = b.claim(f.ref)
	defer b.unclaim(f)
	if stop := f.stopLoading.Load(); stop != nil {
		(*stop)() // nobody will call what is being loaded
	}
	ctx, cancel := withTimeout(context.WithoutCancel(ctx), b.DeployTimeout)
	defer cancel()
	var seen Function
	for {
		if seen, err = b.Engine.Read(ctx, ref); err != nil {
			return fmt.Errorf("read function %s: %w", ref, err)
		}
		if seen.Record == nil {
			return notFound(ref)
		}
		err = b.Engine.Erase(ctx, ref, seen.Revision)
		if err == nil {
			break
		}
		if !isConflict(err) {
			return fmt.Errorf("delete function %s: %w", ref, err)
		}
	}
	last, err := decode(seen.Record)
	f.mu.Lock()
	if err == nil {
		f.serial = max(f.serial, last.Serial)
	}
	f.drop()
	for _, s := range seen.Workloads {
		if f.workloads[s.ID] != nil {
			f.leave(s.ID, time.Now()) // until the engine has told that it is gone
		}
	}
	f.mu.Unlock()
	for _, s := range seen.Workloads {
		if err := b.Engine.Remove(ctx, ref, s.ID); err != nil {
			logError("containers of a function that was deleted cannot be removed; it is tried again", ref, err)
		}
	}
	slog.Info("function deleted", "function", ref.String())
	return nil
}

// List implements backend.Functions.
func (b *Backend) List(ctx context.Context, namespace string) ([]types.FunctionStatus, error) {
	if namespace == "" {
		namespace = backend.DefaultNamespace
	}
	if err := b.checkNamespace(ctx, namespace); err != nil {
		return nil, err
	}
	out := []types.FunctionStatus{}
	for _, f := range b.in(namespace) {
		if r := f.record.Load(); r != nil {
			out = append(out, f.status(r))
		}
	}
	return out, nil
}

// Get implements backend.Functions. Of the usage the engine knows, not the provider.
func (b *Backend) Get(ctx context.Context, ref backend.Ref, _ bool) (types.FunctionStatus, error) {
	f, err := b.lookup(ctx, ref)
	if err != nil {
		return types.FunctionStatus{}, err
	}
	r := f.record.Load()
	if r == nil {
		return types.FunctionStatus{}, notFound(ref)
	}
	return f.status(r), nil
}

// status says what was deployed, word for word, and how it is.
func (f *function) status(r *record) types.FunctionStatus {
	s := r.Status()
	s.InvocationCount, s.AvailableReplicas = float64(f.invoked.Load()), f.available(r)
	return s
}

// Logs implements backend.Functions.
func (b *Backend) Logs(ctx context.Context, query logs.Request) (<-chan logs.Message, error) {
	ref, err := backend.ParseRef(query.Name, query.Namespace)
	if err != nil {
		return nil, err
	}
	if _, err := b.lookup(ctx, ref); err != nil {
		return nil, err
	}
	query.Name, query.Namespace = ref.Name, ref.Namespace
	following, cancel := context.WithCancel(ctx)
	unlink := context.AfterFunc(b.streams, cancel)
	context.AfterFunc(ctx, func() { unlink() })
	out, err := b.Engine.Logs(following, query)
	if err != nil {
		cancel()
	}
	return out, err
}
