// Package process runs functions as children of the provider: one fwatchdog a function, on Unix
// sockets in a private directory, with a user and a control group of its own where the provider may
// make them.
//
// What is to be kept is in the database before a call is answered; everything else (processes,
// sockets, secrets' files, control groups) is made from it, so a provider that is killed at any
// instant comes back with the same functions. No HTTP routes and no bundle rules may enter here.
package process

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/config"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// Backend implements backend.Backend.
type Backend struct {
	config       *config.Config
	models       backend.Models
	store        store
	runDir       string
	fwatchdog    string
	environments *environments
	rscript      rscript
	cgroups      *cgroups
	launcher     *launcher
	alive        context.Context // ends with Close; deployments outlive the request that asked for them
	end          context.CancelFunc

	mu        sync.RWMutex
	functions map[backend.Ref]*function
	journals  map[backend.Ref]*journal
	uids      map[int]bool // taken

	rollouts   *prometheus.CounterVec
	names      sync.Mutex // held to change a secret or namespace, and to make a function rely on one
	background sync.WaitGroup
}

var _ backend.Backend = (*Backend)(nil)

// startsAtOnce bounds how many functions start together when the provider comes back: each start
// loads a model.
const startsAtOnce = 4

// Open returns a backend with every stored function started or being started. It does not wait until
// they are ready.
func Open(ctx context.Context, cfg *config.Config, db *bbolt.DB, models backend.Models) (*Backend, error) {
	b := &Backend{
		config:    cfg,
		functions: map[backend.Ref]*function{},
		journals:  map[backend.Ref]*journal{},
		uids:      map[int]bool{},
		rollouts:  traffic.NewRollouts(),
	}
	b.alive, b.end = context.WithCancel(context.Background())
	var err error
	if b.store, err = openStore(db); err != nil {
		return nil, err
	}
	if err := b.prepareDirs(ctx); err != nil {
		return nil, err
	}
	if err := b.ensureDefaultNamespace(); err != nil {
		return nil, err
	}
	b.models = heldModels{models, b.environments}
	b.cgroups = openCgroups(b.shortName())
	b.launcher = newLauncher()
	if err := b.restore(); err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	b.background.Go(b.environments.trim) // every function holds its own by now
	return b, nil
}

// shortName tells the providers of one machine apart.
func (b *Backend) shortName() string {
	h := fnv.New32a()
	h.Write([]byte(b.config.DataDir))
	return fmt.Sprintf("%08x", h.Sum32())
}

// prepareDirs makes the directories, empties those whose content does not outlive the provider, and
// checks that functions' users get where they must.
func (b *Backend) prepareDirs(ctx context.Context) error {
	id := builder(b.config.UIDRange)
	if id.uid == 0 {
		slog.Warn("the provider is not root: functions run as the provider's own user and are not kept apart", "uid", os.Geteuid())
	}
	if err := id.canReach(b.config.DataDir); err != nil {
		return fmt.Errorf("data_dir cannot hold functions, which have users of their own: %w; choose another data_dir or open that directory with chmod o+x", err)
	}
	b.runDir = filepath.Join(b.config.DataDir, "run")
	longest := filepath.Join(b.runDir, "01234567", functionSocket)
	if len(longest) > maxSocketPath {
		b.runDir = filepath.Join(os.TempDir(), fmt.Sprintf("faas-predict-%d-%s", os.Geteuid(), b.shortName()))
		slog.Info("data_dir's path is too long for sockets; they are elsewhere", "directory", b.runDir)
	}
	if err := os.RemoveAll(b.runDir); err != nil {
		return fmt.Errorf("clear run directory: %w", err)
	}
	envs, bin := filepath.Join(b.config.DataDir, "envs"), filepath.Join(b.config.DataDir, "bin")
	for _, dir := range []string{b.runDir, envs, bin} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := os.Chmod(dir, 0o711); err != nil { // MkdirAll obeyed the umask
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if err := b.findFwatchdog(id, bin); err != nil {
		return err
	}
	if err := sweepEnvironments(envs); err != nil {
		return fmt.Errorf("clear unfinished environments: %w", err)
	}
	py, err := findPython(ctx, b.config.Python, id)
	if err != nil {
		return err
	}
	slog.Info("models run on", "python", py.path, "version", py.version)
	b.environments = &environments{dir: envs, python: py, id: id}
	b.rscript = rscript{wanted: b.config.Rscript, id: id}
	return nil
}

// findFwatchdog settles which fwatchdog runs: the configured one, the one beside this program, or
// the one on PATH; a copy of it where functions' users may not run the file itself.
func (b *Backend) findFwatchdog(id identity, bin string) error {
	path := b.config.FwatchdogPath
	if path == "" {
		if self, err := os.Executable(); err == nil {
			beside := filepath.Join(filepath.Dir(self), "fwatchdog")
			if _, err := os.Stat(beside); err == nil {
				path = beside
			}
		}
	}
	if path == "" {
		path = "fwatchdog"
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return fmt.Errorf("fwatchdog not found beside this program or on PATH: put it there or set fwatchdog_path: %w", err)
	}
	if found, err = filepath.Abs(found); err != nil {
		return err
	}
	if reason := id.canRun(found); reason != nil {
		copied := filepath.Join(bin, "fwatchdog")
		slog.Info("functions run a copy of fwatchdog", "copy", copied, "because", reason.Error())
		if err := copyProgram(found, copied); err != nil {
			return fmt.Errorf("copy fwatchdog for functions' users: %w", err)
		}
		found = copied
	}
	b.fwatchdog = found
	return nil
}

// restore starts what the database holds. A function that cannot start stays known and is tried
// again and again; it must not keep the others from starting.
func (b *Backend) restore() error {
	records, err := b.store.functions()
	if err != nil {
		return err
	}
	starts := new(errgroup.Group)
	starts.SetLimit(startsAtOnce)
	var pending []func() error
	for _, r := range records {
		f := b.claim(r.Ref())
		f.record.Store(r)
		b.unclaim(f)
		if r.UID != 0 {
			b.uids[r.UID] = true
		}
		if f.pins, err = b.pin(r); err != nil {
			return fmt.Errorf("function %s needs a version that is gone: %w", r.Ref(), err)
		}
		if r.Rollout != nil {
			b.background.Go(func() { b.guard(f, r.Rollout) })
		}
		if r.Replicas > 0 {
			f.loading.Lock() // held until it is started once: changes wait, calls get "not ready"
			pending = append(pending, func() error {
				defer f.loading.Unlock()
				b.resume(f, r)
				return nil
			})
		}
	}
	b.background.Go(func() {
		for _, start := range pending {
			starts.Go(start)
		}
		_ = starts.Wait()
	})
	return nil
}

// resume starts a stored function, the version with most calls first, and leaves a version that does
// not start to be tried again. The caller holds f.loading.
func (b *Backend) resume(f *function, r *deployment.Record) {
	versions := r.Keeps(b.config.KeepWarm)
	slices.SortStableFunc(versions, func(x, y string) int { return int(r.Split.Weight(y)) - int(r.Split.Weight(x)) })
	for _, version := range versions {
		d := *r.Find(version)
		if err := b.resumeVersion(f, d, r, true); err != nil && b.alive.Err() == nil {
			b.background.Go(func() { b.retryVersion(f, d) })
		}
	}
	slog.Info("function is back", "function", f.ref.String(), "split", r.Split.String(), "replicas", r.Replicas)
	f.change.Lock()
	pins := f.pins
	if f.route.Load() != nil {
		f.pins = nil // every generation has its own
	} else {
		pins = nil
	}
	f.change.Unlock()
	release(pins)
}

// resumeVersion starts one version and adds it to the function's route, or with supervise, once it can
// be planned, whatever keeps trying to start it.
func (b *Backend) resumeVersion(f *function, d deployment.Deployed, r *deployment.Record, supervise bool) error {
	ctx, cancel := withTimeout(b.alive, b.config.DeployTimeout)
	defer cancel()
	log := b.journal(f.ref)
	failed := func(err error) error {
		if b.alive.Err() == nil {
			log.add(f.ref.Name, "provider: version "+d.Version+" cannot be started yet: "+err.Error())
			slog.Error("version cannot be started yet", "function", f.ref.String(), "version", d.Version, "error", err)
		}
		return err
	}
	m, err := b.models.Pin(d.Model, d.Version)
	if err != nil {
		return failed(err)
	}
	l, err := b.plan(ctx, d, m, identity{r.UID}, log)
	if err != nil {
		m.Release()
		return failed(err)
	}
	g, err := b.begin(ctx, l, r.Replicas, log)
	if err != nil {
		if b.alive.Err() != nil || !supervise {
			m.Release()
			return failed(err)
		}
		_ = failed(err)
		g = b.supervise(l, r.Replicas, log, nil)
	}
	b.addLoaded(f, g)
	return nil
}

// retryVersion keeps trying a version that could not even be planned, as long as it is needed.
func (b *Backend) retryVersion(f *function, d deployment.Deployed) {
	for backoff := firstBackoff; pause(b.alive, backoff); backoff = min(backoff*2, lastBackoff) {
		f.loading.Lock()
		r := f.record.Load()
		over := r == nil || r.Replicas == 0 || r.Find(d.Version) == nil || f.route.Load().Version(d.Version) != nil
		var err error
		if !over {
			err = b.resumeVersion(f, *r.Find(d.Version), r, true)
		}
		f.loading.Unlock()
		if over || err == nil {
			return
		}
	}
}

// addLoaded adds to a function's route what was started for it, unless somebody moved the calls
// meanwhile so that the function no longer keeps it, or the provider ends.
func (b *Backend) addLoaded(f *function, g *generation) {
	f.change.Lock()
	defer f.change.Unlock()
	r, version := f.record.Load(), g.launch.model.Version
	loaded := map[string]*generation{}
	if rt := f.route.Load(); rt != nil {
		maps.Copy(loaded, rt.Loaded)
	}
	if r == nil || b.alive.Err() != nil || loaded[version] != nil || !slices.Contains(r.Keeps(b.config.KeepWarm), version) {
		b.background.Go(func() { g.retire(0) })
		return
	}
	loaded[version] = g
	f.route.Store(deployment.NewRoute(r.Split, loaded))
	b.refreshSecrets(g)
}

// journal returns the function's log, a new one if need be.
func (b *Backend) journal(ref backend.Ref) *journal {
	b.mu.Lock()
	defer b.mu.Unlock()
	j := b.journals[ref]
	if j == nil {
		b.trimJournals()
		j = newJournal(ref.Name, ref.Namespace, b.config.LogBufferBytes)
		b.journals[ref] = j
	}
	return j
}

// trimJournals bounds the logs that are kept of deployments that failed and were never repeated.
func (b *Backend) trimJournals() {
	const kept = 64
	if len(b.journals) < len(b.functions)+kept {
		return
	}
	for ref, j := range b.journals {
		if b.functions[ref] == nil {
			j.close()
			delete(b.journals, ref)
		}
	}
}

// EndStreams ends the log streams that are open, which nothing else would end.
func (b *Backend) EndStreams() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, j := range b.journals {
		j.close()
	}
}

// Close implements backend.Backend.
func (b *Backend) Close(ctx context.Context) error {
	timeout := b.config.DrainTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, max(0, time.Until(deadline)))
	}
	b.end()
	b.environments.close()
	b.mu.Lock()
	functions := make([]*function, 0, len(b.functions))
	for _, f := range b.functions {
		functions = append(functions, f)
	}
	b.mu.Unlock()
	b.EndStreams()
	var all sync.WaitGroup
	for _, f := range functions {
		all.Go(func() {
			f.loading.Lock() // what loads has been told to stop
			defer f.loading.Unlock()
			f.change.Lock()
			defer f.change.Unlock()
			release(f.pins)
			f.pins = nil
			if rt := f.route.Swap(nil); rt != nil {
				var loaded sync.WaitGroup
				for _, g := range rt.Loaded {
					loaded.Go(func() { g.retire(timeout) })
				}
				loaded.Wait()
			}
		})
	}
	all.Wait()
	b.background.Wait()
	b.launcher.close()
	b.cgroups.close()
	return nil
}
