package process

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/upstream"
)

// The files of an instance's directory. Names are short: a socket's path has 107 bytes at most.
const (
	functionSocket = "f"
	adminSocket    = "a"
	homeDir        = "home"
	tempDir        = "tmp"
	secretsDir     = "secrets"
	maxSocketPath  = 107
	instanceIDSize = 4 // random bytes
)

// launch is everything that decides how an instance runs. It does not change.
type launch struct {
	ref         backend.Ref
	model       backend.Model // pinned until the generation has retired
	interpreter string
	id          identity
	limits      limits
	env         map[string]string // from the spec
	secrets     []string
}

// instance is one running fwatchdog: a directory, a process and the connections to it.
type instance struct {
	id     string
	dir    string
	cmd    *exec.Cmd
	pool   *upstream.Pool
	calls  atomic.Int64 // in progress
	exited chan struct{}
	end    string // how the process ended; set before exited is closed
	meter  meter
}

// start makes the instance's directory and starts fwatchdog in it with so many workers. It does not
// wait until the model is ready.
func (b *Backend) start(l *launch, replicas uint64, log *journal) (_ *instance, err error) {
	var random [instanceIDSize]byte
	rand.Read(random[:])
	short := hex.EncodeToString(random[:])
	i := &instance{
		id:     l.ref.Name + "-" + short,
		dir:    filepath.Join(b.runDir, short),
		exited: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start %s: %w", l.ref, err), os.RemoveAll(i.dir))
		}
	}()
	if err := b.furnish(i, l); err != nil {
		return nil, err
	}
	i.pool = upstream.NewPool(filepath.Join(i.dir, functionSocket), filepath.Join(i.dir, adminSocket), b.config.MaxIdleConns)

	cmd := b.cgroups.fallback(b.fwatchdog, l.limits)
	cmd.Dir = i.dir
	cmd.Env = environment(l, i.dir, replicas)
	stdout := &lineWriter{journal: log, instance: i.id}
	stderr := &lineWriter{journal: log, instance: i.id}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.WaitDelay = 2 * time.Second // a stray grandchild may hold the pipes open
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true, // a Ctrl-C at our terminal is for us alone
		Pdeathsig:  syscall.SIGTERM,
		Credential: l.id.credential(),
	}
	i.cmd = cmd
	i.meter.from = time.Now()
	lacking, err := b.cgroups.prepare(i.id, l.limits)
	if err == nil {
		err = b.launcher.start(func() error { return b.cgroups.start(cmd, i.id, l.limits) })
	}
	if err != nil {
		b.cgroups.remove(i.id) // with the child, if there is one already
		return nil, err
	}
	go func() {
		err := cmd.Wait()
		stdout.flush(false)
		stderr.flush(false)
		i.end = "exit status 0"
		if err != nil {
			i.end = err.Error()
		}
		close(i.exited)
	}()
	if lacking != "" {
		log.add(i.id, "warning: "+lacking)
		slog.Warn("limits of a function are not fully enforced", "function", l.ref.String(), "lacking", lacking)
	}
	return i, nil
}

// furnish makes the instance's private directory.
func (b *Backend) furnish(i *instance, l *launch) error {
	if err := os.Mkdir(i.dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{homeDir, tempDir, secretsDir} {
		dir := filepath.Join(i.dir, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := l.id.own(dir); err != nil {
			return err
		}
	}
	for _, name := range l.secrets {
		value, err := b.secretValue(l.ref.Namespace, name)
		if err != nil {
			return err
		}
		if err := writeSecret(i.dir, name, value, l.id); err != nil {
			return err
		}
	}
	return l.id.own(i.dir)
}

// writeSecret replaces a secret's file in one step: the model reads the old value or the new one.
func writeSecret(instanceDir, name string, value []byte, id identity) error {
	part := filepath.Join(instanceDir, secretsDir, ".part")
	_ = os.Remove(part)
	if err := os.WriteFile(part, value, 0o400); err != nil {
		return err
	}
	if err := id.own(part); err != nil {
		return err
	}
	return os.Rename(part, filepath.Join(instanceDir, secretsDir, name))
}

// reserved variables are the provider's to set; a spec that sets one is refused.
var reserved = map[string]bool{
	"model_path": true, "socket_path": true, "admin_socket": true, "interpreter": true, "workers": true,
	"suppress_lock": true, "healthcheck_interval": true, "secret_mount_path": true, "port": true, "metrics_port": true,
	"OPENFAAS_NAME": true, "OPENFAAS_NAMESPACE": true, "HOME": true, "TMPDIR": true,
}

// basicEnvironment is all that a child sees of the provider's own environment.
func basicEnvironment() []string {
	var out []string
	for _, name := range []string{"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			out = append(out, name+"="+value)
		}
	}
	return out
}

// coresPerWatchdogThread sizes the Go side of a watchdog: it only passes calls on to workers, and on
// a machine that it shares with them and the provider, idle threads that look for work cost more
// than they bring (measured: a third of its time). A spec that sets GOMAXPROCS wins.
const coresPerWatchdogThread = 4

func environment(l *launch, dir string, replicas uint64) []string {
	env := append(basicEnvironment(), "GOMAXPROCS="+strconv.Itoa(max(1, runtime.NumCPU()/coresPerWatchdogThread)))
	names := make([]string, 0, len(l.env))
	for name := range l.env {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		env = append(env, name+"="+l.env[name])
	}
	return append(env,
		"HOME="+filepath.Join(dir, homeDir),
		"TMPDIR="+filepath.Join(dir, tempDir),
		"PYTHONDONTWRITEBYTECODE=1", // the bundle is read-only
		"OPENFAAS_NAME="+l.ref.Name,
		"OPENFAAS_NAMESPACE="+l.ref.Namespace,
		"secret_mount_path="+filepath.Join(dir, secretsDir),
		"model_path="+l.model.Dir,
		"interpreter="+l.interpreter,
		"socket_path="+filepath.Join(dir, functionSocket),
		"admin_socket="+filepath.Join(dir, adminSocket),
		"workers="+strconv.FormatUint(replicas, 10),
		"suppress_lock=true",
		"healthcheck_interval=0s", // so that SIGTERM drains at once
	)
}

// awaitReady returns nil once the model answers, or why it never will.
func (i *instance) awaitReady(ctx context.Context) error {
	const first, last = 5 * time.Millisecond, 200 * time.Millisecond
	reason := "it has not answered yet"
	for pause := first; ; pause = min(pause*3/2, last) {
		r, err := i.ready(ctx)
		switch {
		case err == nil && r.status == http.StatusOK:
			return nil
		case err == nil:
			reason = r.Detail
			if r.Final {
				return fmt.Errorf("%w: %s", backend.ErrFailed, reason)
			}
		}
		select {
		case <-i.exited:
			if reason == "it has not answered yet" {
				return fmt.Errorf("%w: fwatchdog ended with %s before the model was ready", backend.ErrFailed, i.end)
			}
			return fmt.Errorf("%w: %s (%s)", backend.ErrFailed, reason, i.end)
		case <-ctx.Done():
			return fmt.Errorf("%w: not ready within deploy_timeout: %s", backend.ErrFailed, reason)
		case <-time.After(pause):
		}
	}
}

// readiness is what fwatchdog says of itself; see its guide on /_/ready.
type readiness struct {
	status int
	Detail string
	Final  bool // it will never be ready
}

func (i *instance) ready(ctx context.Context) (readiness, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	status, body, err := upstream.Get(ctx, filepath.Join(i.dir, adminSocket), "/ready")
	if err != nil {
		return readiness{}, err
	}
	var r readiness
	if json.Unmarshal(body, &r) != nil || r.Detail == "" {
		r.Detail = strings.TrimSpace(string(body))
	}
	r.status = status
	return r, nil
}

// workers asks how many workers are ready; setWorkers changes how many there are and waits for them.
func (i *instance) workers(ctx context.Context) (ready uint64, err error) {
	status, body, err := upstream.Get(ctx, filepath.Join(i.dir, adminSocket), "/workers")
	return readWorkers(status, body, err)
}

func (i *instance) setWorkers(ctx context.Context, n uint64) error {
	status, body, err := upstream.Put(ctx, filepath.Join(i.dir, adminSocket), "/workers", fmt.Appendf(nil, `{"workers":%d}`, n))
	_, err = readWorkers(status, body, err)
	return err
}

func readWorkers(status int, body []byte, err error) (uint64, error) {
	if err != nil {
		return 0, err
	}
	if status != http.StatusOK {
		return 0, fmt.Errorf("fwatchdog answered %d: %s", status, strings.TrimSpace(string(body)))
	}
	var answer struct{ Ready uint64 }
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, fmt.Errorf("fwatchdog answered %.100q: %w", body, err)
	}
	return answer.Ready, nil
}

// drain lets the calls in progress end, then ends the process, both within timeout: it must already
// be unreachable for new calls. Past the timeout it is killed.
func (i *instance) drain(timeout time.Duration) {
	deadline := time.Now().Add(timeout)
	for i.calls.Load() > 0 && time.Now().Before(deadline) {
		select {
		case <-i.exited:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
	_ = i.cmd.Process.Signal(syscall.SIGTERM)
	const least = 2 * time.Second
	select {
	case <-i.exited:
	case <-time.After(max(least, time.Until(deadline))):
		i.kill()
	}
}

func (i *instance) kill() {
	_ = syscall.Kill(-i.cmd.Process.Pid, syscall.SIGKILL)
	_ = i.cmd.Process.Kill()
	<-i.exited
}

// clear removes all that an ended instance leaves: connections, processes, directory.
func (b *Backend) clear(i *instance) {
	if i.pool != nil {
		i.pool.Close()
	}
	b.cgroups.remove(i.id)
	if err := os.RemoveAll(i.dir); err != nil {
		slog.Warn("directory of an ended instance stays", "instance", i.id, "error", err)
	}
}
