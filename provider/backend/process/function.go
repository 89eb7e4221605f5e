package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// function is what is known of a name. It exists for others once it has a record.
type function struct {
	ref    backend.Ref
	claims int // guarded by Backend.mu: changes that hold or wait for change

	loading sync.Mutex      // held, before change, to start and resize versions
	change  sync.Mutex      // held, briefly, to store record and move the calls
	pins    []backend.Model // what record needs while nothing of it is loaded
	record  atomic.Pointer[deployment.Record]
	route   atomic.Pointer[route] // nil while scaled to zero or not started yet
	invoked atomic.Uint64

	stopLoading atomic.Pointer[context.CancelFunc] // of the revision that loads, if any
	progress    atomic.Pointer[string]             // of a rollout

	marks deployment.Marks
}

// claim returns the function of that name, made if need be, for a change.
func (b *Backend) claim(ref backend.Ref) *function {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.functions[ref]
	if f == nil {
		f = &function{ref: ref}
		b.functions[ref] = f
	}
	f.claims++
	return f
}

// unclaim forgets a function that no longer exists and that nobody is about to change.
func (b *Backend) unclaim(f *function) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f.claims--; f.claims == 0 && f.record.Load() == nil {
		delete(b.functions, f.ref)
	}
}

// existing returns the function if it exists.
func (b *Backend) existing(ref backend.Ref) (*function, error) {
	b.mu.RLock()
	f := b.functions[ref]
	b.mu.RUnlock()
	if f == nil || f.record.Load() == nil {
		return nil, fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
	}
	return f, nil
}

// rules are what this backend's deployments are held to.
func (b *Backend) rules() deployment.Rules {
	return deployment.Rules{MaxReplicas: b.config.MaxReplicas, Reserved: reserved}
}

// plan turns a checked deployment into a launch. It may build a Python environment.
func (b *Backend) plan(ctx context.Context, d deployment.Deployed, m backend.Model, id identity, log *journal) (*launch, error) {
	spec := d.Spec
	var interpreter string
	var err error
	if m.Runtime == model.RuntimeR {
		interpreter, err = b.rscript.prepare(ctx, m.Dir)
	} else {
		interpreter, err = b.environments.prepare(ctx, m.Dir, func(text string) { log.add(spec.Service, "build: "+text) })
	}
	if err != nil {
		return nil, err
	}
	lim, err := deployment.ParseResources(spec.Limits)
	if err != nil {
		return nil, err
	}
	return &launch{
		ref:         backend.Ref{Namespace: spec.Namespace, Name: spec.Service},
		model:       m,
		interpreter: interpreter,
		id:          id,
		limits:      limits{memory: lim.Memory, cpu: lim.CPU},
		env:         spec.EnvVars,
		secrets:     spec.Secrets,
	}, nil
}

// Create implements backend.Functions.
func (b *Backend) Create(_ context.Context, spec types.FunctionDeployment) error {
	return b.deploy(spec, false)
}

// Update implements backend.Functions.
func (b *Backend) Update(_ context.Context, spec types.FunctionDeployment) error {
	return b.deploy(spec, true)
}

// deploy does not end with the request that asked for it: a client that gives up while a Python
// environment is built finds the function there later.
func (b *Backend) deploy(spec types.FunctionDeployment, update bool) error {
	ref, err := b.rules().Check(&spec)
	if err != nil {
		return err
	}
	if update {
		// Before waiting for another change, and before the image, which may be wrong as well: the
		// clients deploy anew when they hear "not found".
		if _, err := b.existing(ref); err != nil {
			return err
		}
	}
	b.names.Lock()
	f := b.claim(ref) // from here on the namespace cannot be deleted
	defer b.unclaim(f)
	err = b.checkNamespace(ref.Namespace)
	b.names.Unlock()
	if err != nil {
		return err
	}
	if err := b.checkSecrets(&spec); err != nil {
		return err
	}
	fetching, cancel := withTimeout(b.alive, b.config.DeployTimeout)
	m, err := b.models.Resolve(fetching, spec.Image)
	cancel()
	if err != nil {
		return err
	}
	defer m.Release() // the function pins it for itself
	uid := 0
	if !update {
		if uid, err = b.takeUID(); err != nil {
			return err
		}
	}
	err = b.revise(f, m.Version, func(old *deployment.Record) (*deployment.Record, error) {
		switch {
		case update && old == nil:
			return nil, fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
		case !update && old != nil:
			return nil, fmt.Errorf("function %s %w: update it instead", ref, backend.ErrExists)
		}
		next, err := b.rules().Deploy(old, deployment.Deployed{Model: m.Name, Version: m.Version, Spec: spec})
		if err == nil && old == nil {
			next.UID = uid
		}
		return next, err
	})
	if err != nil {
		b.freeUID(uid)
	}
	return err
}

// storeRecord makes the record the function's, unless a secret was deleted since a launch read it.
func (b *Backend) storeRecord(f *function, r *deployment.Record) error {
	b.names.Lock()
	defer b.names.Unlock()
	for _, d := range r.Versions {
		if err := b.checkSecrets(&d.Spec); err != nil {
			return err
		}
	}
	if err := b.store.putFunction(r); err != nil {
		return err
	}
	f.record.Store(r)
	return nil
}

func (b *Backend) checkSecrets(spec *types.FunctionDeployment) error {
	for _, name := range spec.Secrets {
		if _, err := b.secretValue(spec.Namespace, name); err != nil {
			return fmt.Errorf("%w secrets: %w: create it first", backend.ErrInvalid, err)
		}
	}
	return nil
}

func (b *Backend) takeUID() (int, error) {
	if builder(b.config.UIDRange).uid == 0 {
		return 0, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for uid := b.config.UIDRange.First + 1; uid <= b.config.UIDRange.Last; uid++ {
		if !b.uids[uid] {
			b.uids[uid] = true
			return uid, nil
		}
	}
	return 0, errors.New("every user id of uid_range is taken by a function")
}

func (b *Backend) freeUID(uid int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.uids, uid)
}

// Scale implements backend.Functions.
func (b *Backend) Scale(_ context.Context, ref backend.Ref, replicas uint64) error {
	if replicas > b.config.MaxReplicas {
		return fmt.Errorf("%w number of replicas %d: max_replicas is %d", backend.ErrInvalid, replicas, b.config.MaxReplicas)
	}
	f, err := b.existing(ref)
	if err != nil {
		return err
	}
	return b.revise(f, "", func(old *deployment.Record) (*deployment.Record, error) {
		if old == nil {
			return nil, fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
		}
		next := old.Clone()
		next.Replicas = replicas
		return next, nil
	})
}

// Delete implements backend.Functions.
func (b *Backend) Delete(_ context.Context, ref backend.Ref) error {
	if _, err := b.existing(ref); err != nil {
		return err
	}
	f := b.claim(ref)
	defer b.unclaim(f)
	if stop := f.stopLoading.Load(); stop != nil {
		(*stop)() // nobody will call what is being loaded
	}
	f.loading.Lock()
	defer f.loading.Unlock()
	f.change.Lock()
	defer f.change.Unlock()
	if f.record.Load() == nil {
		return fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
	}
	r := f.record.Load()
	step("computed")
	if err := b.store.deleteFunction(ref); err != nil {
		return err
	}
	step("stored")
	f.record.Store(nil)
	f.invoked.Store(0)
	rt := f.route.Swap(nil)
	var generations []*generation
	if rt != nil {
		generations = slices.Collect(maps.Values(rt.Loaded))
	}
	pins := f.pins
	f.pins = nil
	f.marks.Clear()
	b.background.Go(func() {
		var all sync.WaitGroup
		for _, g := range generations {
			all.Go(func() { g.retire(b.config.DrainTimeout) })
		}
		all.Wait()
		release(pins)
		b.freeUID(r.UID)
	})
	b.mu.Lock()
	if j := b.journals[ref]; j != nil {
		j.close()
		delete(b.journals, ref)
	}
	b.mu.Unlock()
	b.rollouts.DeletePartialMatch(prometheus.Labels{"function_name": ref.String()})
	slog.Info("function deleted", "function", ref.String())
	return nil
}

// List implements backend.Functions.
func (b *Backend) List(ctx context.Context, namespace string) ([]types.FunctionStatus, error) {
	if namespace == "" {
		namespace = backend.DefaultNamespace
	}
	if err := b.checkNamespace(namespace); err != nil {
		return nil, err
	}
	found := b.in(namespace)
	out := make([]types.FunctionStatus, len(found))
	var all sync.WaitGroup
	for i, f := range found {
		all.Go(func() { out[i] = b.status(ctx, f, false) })
	}
	all.Wait()
	out = slices.DeleteFunc(out, func(s types.FunctionStatus) bool { return s.Name == "" })
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// in lists the functions of a namespace.
func (b *Backend) in(namespace string) []*function {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var out []*function
	for ref, f := range b.functions {
		if ref.Namespace == namespace && f.record.Load() != nil {
			out = append(out, f)
		}
	}
	return out
}

// Get implements backend.Functions.
func (b *Backend) Get(ctx context.Context, ref backend.Ref, usage bool) (types.FunctionStatus, error) {
	f, err := b.existing(ref)
	if err != nil {
		return types.FunctionStatus{}, err
	}
	s := b.status(ctx, f, usage)
	if s.Name == "" {
		return s, fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
	}
	return s, nil
}

// statusTimeout bounds how long one function may keep a listing waiting.
const statusTimeout = time.Second

// status says what was deployed, word for word, and how it is.
func (b *Backend) status(ctx context.Context, f *function, usage bool) types.FunctionStatus {
	r := f.record.Load()
	if r == nil {
		return types.FunctionStatus{}
	}
	s := r.Status()
	s.InvocationCount = float64(f.invoked.Load())
	rt := f.route.Load()
	if rt == nil {
		return s
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	s.AvailableReplicas = r.Replicas
	for version, g := range rt.Loaded {
		i := g.current.Load()
		// A function has as many replicas as the least of its versions that get calls.
		if r.Split.Weight(version) > 0 {
			ready := uint64(0)
			if i != nil {
				ready, _ = i.workers(ctx)
			}
			s.AvailableReplicas = min(s.AvailableReplicas, ready)
		}
		if usage && i != nil {
			used := i.meter.read(i.cmd.Process.Pid)
			if s.Usage == nil {
				s.Usage = used
			} else if used != nil {
				s.Usage.CPU += used.CPU
				s.Usage.TotalMemoryBytes += used.TotalMemoryBytes
			}
		}
	}
	return s
}

// Logs implements backend.Functions. The log of a deployment that failed can be read too.
func (b *Backend) Logs(ctx context.Context, query logs.Request) (<-chan logs.Message, error) {
	ref, err := backend.ParseRef(query.Name, query.Namespace)
	if err != nil {
		return nil, err
	}
	b.mu.RLock()
	j, f := b.journals[ref], b.functions[ref]
	b.mu.RUnlock()
	if j == nil {
		if f == nil {
			return nil, fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
		}
		j = b.journal(ref)
	}
	return j.query(ctx, query), nil
}
