package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// OpenFaaS's labels for the least and the largest number of replicas.
const (
	scaleMinLabel = "com.openfaas.scale.min"
	scaleMaxLabel = "com.openfaas.scale.max"
)

// function is what is known of a name. It exists for others once it has a record.
type function struct {
	ref    backend.Ref
	claims int // guarded by Backend.mu: changes that hold or wait for change

	change     sync.Mutex // one change at a time; guards release
	release    func()     // of the model
	record     atomic.Pointer[record]
	generation atomic.Pointer[generation] // nil while scaled to zero or not started yet
	invoked    atomic.Uint64
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

// changeExisting does a change to a function that exists, when those before it are done.
func (b *Backend) changeExisting(ref backend.Ref, change func(f *function, r *record) error) error {
	if _, err := b.existing(ref); err != nil {
		return err
	}
	f := b.claim(ref)
	defer b.unclaim(f)
	f.change.Lock()
	defer f.change.Unlock()
	r := f.record.Load()
	if r == nil { // deleted meanwhile
		return fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
	}
	return change(f, r)
}

// checkSpec holds a deployment to the rules that need no look at anything else, and fills in its
// namespace.
func (b *Backend) checkSpec(spec *types.FunctionDeployment) (backend.Ref, error) {
	ref, err := backend.ParseRef(spec.Service, spec.Namespace)
	if err != nil {
		return ref, err
	}
	spec.Service, spec.Namespace = ref.Name, ref.Namespace
	if _, err := specLimits(spec.Limits); err != nil {
		return ref, fmt.Errorf("limits: %w", err)
	}
	if _, err := specLimits(spec.Requests); err != nil {
		return ref, fmt.Errorf("requests: %w", err)
	}
	for name, value := range spec.EnvVars {
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00"):
			return ref, fmt.Errorf("%w environment variable %.60q: its name may not be empty or hold =, and nothing may hold a zero byte", backend.ErrInvalid, name)
		case reserved[name]:
			return ref, fmt.Errorf("%w environment variable %q: the provider sets it", backend.ErrInvalid, name)
		}
	}
	for _, name := range spec.Secrets {
		if err := checkSecretName(name); err != nil {
			return ref, err
		}
	}
	_, err = b.leastReplicas(spec)
	return ref, err
}

func specLimits(r *types.FunctionResources) (limits, error) {
	if r == nil {
		return limits{}, nil
	}
	memory, err := parseMemory(r.Memory)
	if err != nil {
		return limits{}, err
	}
	cpu, err := parseCPU(r.CPU)
	return limits{memory: memory, cpu: cpu}, err
}

// leastReplicas is how many replicas the labels ask for at first. The largest number is only checked:
// a label that this provider can never honour is better refused than kept.
func (b *Backend) leastReplicas(spec *types.FunctionDeployment) (uint64, error) {
	least, err := b.scaleLabel(spec, scaleMinLabel, 1)
	if err != nil {
		return 0, err
	}
	most, err := b.scaleLabel(spec, scaleMaxLabel, b.config.MaxReplicas)
	if err != nil {
		return 0, err
	}
	if least = max(1, least); most < least {
		return 0, fmt.Errorf("%w label %s: %d is less than %s, %d", backend.ErrInvalid, scaleMaxLabel, most, scaleMinLabel, least)
	}
	return least, nil
}

// scaleLabel reads a label that is a number of replicas.
func (b *Backend) scaleLabel(spec *types.FunctionDeployment, label string, without uint64) (uint64, error) {
	if spec.Labels == nil || (*spec.Labels)[label] == "" {
		return without, nil
	}
	value := (*spec.Labels)[label]
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || n > b.config.MaxReplicas {
		return 0, fmt.Errorf("%w label %s: %.40q is not a number from 0 to %d, which is max_replicas", backend.ErrInvalid, label, value, b.config.MaxReplicas)
	}
	return n, nil
}

// plan turns a checked spec into a launch. It may build a Python environment.
func (b *Backend) plan(ctx context.Context, spec types.FunctionDeployment, m backend.Model, id identity, log *journal) (*launch, error) {
	interpreter, err := b.environments.prepare(ctx, m.Dir, func(text string) { log.add(spec.Service, "build: "+text) })
	if err != nil {
		return nil, err
	}
	lim, err := specLimits(spec.Limits)
	if err != nil {
		return nil, err
	}
	return &launch{
		ref:         backend.Ref{Namespace: spec.Namespace, Name: spec.Service},
		bundle:      m.Dir,
		interpreter: interpreter,
		id:          id,
		limits:      lim,
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
	ref, err := b.checkSpec(&spec)
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
	f.change.Lock()
	defer f.change.Unlock()
	old := f.record.Load()
	switch {
	case update && old == nil:
		return fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
	case !update && old != nil:
		return fmt.Errorf("function %s %w: update it instead", ref, backend.ErrExists)
	case b.alive.Err() != nil:
		return fmt.Errorf("%w: the provider is shutting down", backend.ErrNotReady)
	}
	if err := b.checkSecrets(&spec); err != nil {
		return err
	}
	m, err := b.models.Resolve(spec.Image)
	if err != nil {
		return err
	}
	r, err := b.nextRecord(old, spec, m)
	if err == nil {
		err = b.replace(f, r, m)
	}
	if err != nil {
		m.Release()
		if old == nil && r != nil {
			b.freeUID(r.UID)
		}
	}
	return err
}

// nextRecord is what a deployment will store.
func (b *Backend) nextRecord(old *record, spec types.FunctionDeployment, m backend.Model) (*record, error) {
	least, err := b.leastReplicas(&spec)
	if err != nil {
		return nil, err
	}
	r := &record{Spec: spec, Model: m.Name, Version: m.Version, Replicas: least, CreatedAt: time.Now().UTC()}
	if old != nil {
		r.Replicas = min(max(least, old.Replicas), b.config.MaxReplicas) // which may be smaller than it was
		r.UID = old.UID
		return r, nil
	}
	if r.UID, err = b.takeUID(); err != nil {
		return nil, err
	}
	return r, nil
}

// replace starts the new generation beside the old, makes it the function's in one step once it is
// ready and stored, and lets the old one finish in the background. The caller holds f.change.
func (b *Backend) replace(f *function, r *record, m backend.Model) error {
	ctx, cancel := withTimeout(b.alive, b.config.DeployTimeout)
	defer cancel()
	log := b.journal(f.ref)
	start := time.Now()
	l, err := b.plan(ctx, r.Spec, m, identity{r.UID}, log)
	if err != nil {
		return err
	}
	next, err := b.begin(ctx, l, r.Replicas, log)
	if err != nil {
		return err
	}
	if err := b.commit(f, r); err != nil {
		next.retire(0)
		return err
	}
	old, release := f.generation.Swap(next), f.release
	f.release = m.Release
	b.retireLater(old, release, 0)
	slog.Info("function deployed", "function", f.ref.String(), "version", r.Version, "replicas", r.Replicas, "took", time.Since(start).Round(time.Millisecond))
	return nil
}

// commit stores the record, unless a secret was deleted since the launch read it.
func (b *Backend) commit(f *function, r *record) error {
	b.names.Lock()
	defer b.names.Unlock()
	if err := b.checkSecrets(&r.Spec); err != nil {
		return err
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

// retireLater lets a generation that nobody can reach any more finish, then lets go of its model
// and, when it is not 0, of its user id.
func (b *Backend) retireLater(g *generation, release func(), uid int) {
	b.background.Go(func() {
		if g != nil {
			g.retire(b.config.DrainTimeout)
		}
		if release != nil {
			release()
		}
		b.freeUID(uid)
	})
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
	return b.changeExisting(ref, func(f *function, old *record) error {
		r := *old
		r.Replicas = replicas
		g := f.generation.Load()
		switch {
		case replicas == 0:
			if err := b.store.putFunction(&r); err != nil {
				return err
			}
			f.record.Store(&r)
			b.retireLater(f.generation.Swap(nil), nil, 0)
			return nil
		case g == nil:
			return b.wake(f, &r)
		}
		return b.resize(f, g, &r)
	})
}

// wake starts a function that was scaled to zero.
func (b *Backend) wake(f *function, r *record) error {
	m, err := b.models.Pin(r.Model, r.Version)
	if err != nil {
		return err
	}
	if err := b.replace(f, r, m); err != nil {
		m.Release()
		return err
	}
	return nil
}

// resize tells the running instance how many workers there are to be.
func (b *Backend) resize(f *function, g *generation, r *record) error {
	ctx, cancel := withTimeout(b.alive, b.config.DeployTimeout)
	defer cancel()
	before := g.wanted.Swap(r.Replicas)
	if i := g.current.Load(); i != nil {
		if err := i.setWorkers(ctx, r.Replicas); err != nil {
			select {
			case <-i.exited: // its successor starts with what is wanted
			default:
				g.wanted.Store(before)
				return fmt.Errorf("scale %s to %d: %w", f.ref, r.Replicas, err)
			}
		}
	}
	if err := b.store.putFunction(r); err != nil {
		return err
	}
	f.record.Store(r)
	return nil
}

// Delete implements backend.Functions.
func (b *Backend) Delete(_ context.Context, ref backend.Ref) error {
	return b.changeExisting(ref, func(f *function, r *record) error {
		if err := b.store.deleteFunction(ref); err != nil {
			return err
		}
		f.record.Store(nil)
		f.invoked.Store(0)
		g, release := f.generation.Swap(nil), f.release
		f.release = nil
		b.retireLater(g, release, r.UID)
		b.mu.Lock()
		if j := b.journals[ref]; j != nil {
			j.close()
			delete(b.journals, ref)
		}
		b.mu.Unlock()
		slog.Info("function deleted", "function", ref.String())
		return nil
	})
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
	s := types.FunctionStatus{
		Name:                   r.Spec.Service,
		Namespace:              r.Spec.Namespace,
		Image:                  r.Spec.Image,
		EnvProcess:             r.Spec.EnvProcess,
		EnvVars:                maps.Clone(r.Spec.EnvVars),
		Constraints:            r.Spec.Constraints,
		Secrets:                r.Spec.Secrets,
		Labels:                 r.Spec.Labels,
		Annotations:            r.Spec.Annotations,
		Limits:                 r.Spec.Limits,
		Requests:               r.Spec.Requests,
		ReadOnlyRootFilesystem: r.Spec.ReadOnlyRootFilesystem,
		InvocationCount:        float64(f.invoked.Load()),
		Replicas:               r.Replicas,
		CreatedAt:              r.CreatedAt,
	}
	g := f.generation.Load()
	if g == nil {
		return s
	}
	i := g.current.Load()
	if i == nil {
		return s
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if ready, err := i.workers(ctx); err == nil {
		s.AvailableReplicas = min(ready, r.Replicas)
	}
	if usage {
		s.Usage = i.meter.read(i.cmd.Process.Pid)
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

// Forward carries a call to the function and its answer back; see upstream.Pool.Forward. A function
// that exists but cannot be called now gives backend.ErrNotReady or backend.ErrScaledOff.
func (b *Backend) Forward(ref backend.Ref, w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error) {
	f, err := b.existing(ref)
	if err != nil {
		return 0, err
	}
	f.invoked.Add(1)
	i, err := f.enter()
	if err != nil {
		return 0, err
	}
	defer i.calls.Add(-1)
	return i.pool.Forward(w, r, target, host, header)
}

// enter returns the instance that is to take a call, with the call counted: an instance that was
// replaced waits for its count to be zero, so the call has to be counted before it is certain that
// the instance is still the one.
func (f *function) enter() (*instance, error) {
	for {
		g := f.generation.Load()
		if g == nil {
			if r := f.record.Load(); r != nil && r.Replicas == 0 {
				return nil, fmt.Errorf("function %s is %w: scale it up to call it", f.ref, backend.ErrScaledOff)
			}
			return nil, fmt.Errorf("function %s is %w: it is being started", f.ref, backend.ErrNotReady)
		}
		i := g.current.Load()
		if i == nil {
			return nil, fmt.Errorf("function %s is %w: it ended and is being started again", f.ref, backend.ErrNotReady)
		}
		i.calls.Add(1)
		if f.generation.Load() == g && g.current.Load() == i {
			return i, nil
		}
		i.calls.Add(-1)
	}
}
