package process

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// fallbackPython is where Linux distributions put an interpreter that everybody may run.
const fallbackPython = "/usr/bin/python3"

// python is the interpreter that models run on.
type python struct {
	path    string // real, not a shim
	version string
	tag     string // what an environment depends on: version and platform
}

// findPython looks for an interpreter that the identity may run. wanted is a path, a name on PATH,
// or "" for python3.
func findPython(ctx context.Context, wanted string, id identity) (python, error) {
	if wanted != "" {
		return askPython(ctx, wanted, id)
	}
	p, err := askPython(ctx, "python3", id)
	if err == nil {
		return p, nil
	}
	if p, fallbackErr := askPython(ctx, fallbackPython, id); fallbackErr == nil {
		return p, nil
	}
	return python{}, err
}

// askPython asks the interpreter itself where it is, since a shim or link says little.
func askPython(ctx context.Context, wanted string, id identity) (python, error) {
	const question = `import os, sys, sysconfig
print(os.path.realpath(sys.executable), sys.base_prefix, sys.version.split()[0], sys.implementation.cache_tag + "-" + sysconfig.get_platform(), sep="\n")`
	out, err := exec.CommandContext(ctx, wanted, "-I", "-c", question).Output()
	if err != nil {
		return python{}, fmt.Errorf("no Python 3 to run models on: %s: %w", wanted, err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[2], "3.") {
		return python{}, fmt.Errorf("no Python 3 to run models on: %s answered %q", wanted, out)
	}
	if err := errors.Join(id.canRun(lines[0]), id.canReach(lines[1])); err != nil {
		return python{}, fmt.Errorf("the Python at %s cannot run models, which have users of their own: %w; install a python3 for all users or set python", lines[0], err)
	}
	return python{path: lines[0], version: lines[2], tag: lines[2] + "-" + lines[3]}, nil
}

// environments are the virtual environments of bundles with a requirements.txt, one for each
// different list, shared by every version that asks for the same.
//
// One is built in the place where it stays, because its scripts hold that path, and it counts only
// when the marker file is in it, which is written last: a build that was cut off is built anew.
type environments struct {
	closed atomic.Bool
	dir    string
	python python
	id     identity // who builds: installing runs the packages' own code

	mu   sync.Mutex
	held map[string]*heldEnvironment // by digest; guarded by mu
}

const (
	requirementsFile = "requirements.txt"
	completeMarker   = ".complete"
)

// prepare returns the interpreter for the bundle: an environment's, or the plain one when the bundle
// asks for no packages. progress gets a line at a time. The caller holds the model, and with it the
// environment, for as long as it uses the interpreter.
func (e *environments) prepare(ctx context.Context, bundle string, progress func(string)) (string, error) {
	requirements, digest, err := e.wanted(bundle)
	if err != nil {
		return "", err
	}
	if digest == "" {
		return e.python.path, nil
	}
	env := filepath.Join(e.dir, digest)
	interpreter := filepath.Join(env, "bin", "python3")

	lock := &e.hold(digest).building
	defer e.letGo(digest)
	lock.Lock()
	defer lock.Unlock()
	if _, err := os.Stat(filepath.Join(env, completeMarker)); err == nil {
		return interpreter, nil
	}
	progress("building the Python environment " + digest + " for " + requirementsFile)
	start := time.Now()
	if err := e.build(ctx, env, requirements, progress); err != nil {
		return "", errors.Join(err, os.RemoveAll(env))
	}
	progress(fmt.Sprintf("the Python environment %s is ready after %s", digest, time.Since(start).Round(100*time.Millisecond)))
	return interpreter, nil
}

// wanted returns the bundle's list and the name of its environment, "" when it asks for no packages.
func (e *environments) wanted(bundle string) (requirements []byte, digest string, err error) {
	requirements, err = os.ReadFile(filepath.Join(bundle, requirementsFile))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !asksForPackages(requirements) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read %s: %w", requirementsFile, err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n", e.python.tag)
	sum.Write(requirements)
	return requirements, hex.EncodeToString(sum.Sum(nil))[:32], nil
}

func asksForPackages(requirements []byte) bool {
	for line := range bytes.Lines(requirements) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return true
		}
	}
	return false
}

func (e *environments) build(ctx context.Context, env string, requirements []byte, progress func(string)) error {
	if err := os.RemoveAll(env); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(e.dir, ".build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	list := filepath.Join(scratch, requirementsFile)
	if err := errors.Join(
		os.Chmod(scratch, 0o700),
		os.WriteFile(list, requirements, 0o600),
		os.Mkdir(env, 0o755), os.Chmod(env, 0o755),
		e.id.own(scratch, list, env),
	); err != nil {
		return err
	}
	for _, command := range e.commands(env, list) {
		if err := e.run(ctx, scratch, command, progress); err != nil {
			return err
		}
	}
	if err := e.seal(env); err != nil {
		return fmt.Errorf("finish the Python environment: %w", err)
	}
	return os.WriteFile(filepath.Join(env, completeMarker), []byte(e.python.tag+"\n"), 0o644)
}

// commands are the steps of a build: by uv where it is installed and the builder may run it, since
// it is many times faster, else by what Python brings along.
func (e *environments) commands(env, list string) [][]string {
	interpreter := filepath.Join(env, "bin", "python3")
	if uv, err := exec.LookPath("uv"); err == nil && e.id.canRun(uv) == nil {
		return [][]string{
			{uv, "venv", "--quiet", "--allow-existing", "--python", e.python.path, env},
			{uv, "pip", "install", "--python", interpreter, "--requirement", list},
		}
	}
	return [][]string{
		{e.python.path, "-m", "venv", env},
		{interpreter, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--requirement", list},
	}
}

// buildVariables may reach a build besides the basic ones: they say where packages come from.
var buildVariables = []string{"PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}

func (e *environments) run(ctx context.Context, scratch string, command []string, progress func(string)) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = scratch
	cmd.Env = append(basicEnvironment(), "HOME="+scratch, "TMPDIR="+scratch)
	for _, variable := range os.Environ() {
		for _, allowed := range buildVariables {
			if strings.HasPrefix(variable, allowed) {
				cmd.Env = append(cmd.Env, variable)
				break
			}
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: e.id.credential()}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	output := newTail(20, progress)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%w: %s cannot be installed: %s: %w\n%s", backend.ErrFailed, requirementsFile, filepath.Base(command[0]), err, output.text())
	}
	return nil
}

// seal takes the environment away from the builder, so that no function and no later build can
// change what another function runs.
func (e *environments) seal(env string) error {
	if e.id.uid == 0 {
		return nil
	}
	// The builder owns these files until the walk is through: a link that it puts in one's place
	// must not lead root out of the environment.
	root, err := os.OpenRoot(env)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := root.Lchown(path, 0, 0); err != nil {
			return err
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		perm := info.Mode().Perm()&^0o022 | 0o444
		if entry.IsDir() || perm&0o100 != 0 {
			perm |= 0o111
		}
		return root.Chmod(path, perm)
	})
}

// tail passes lines on and remembers the last ones.
type tail struct {
	mu       sync.Mutex
	keep     int
	lines    []string
	progress func(string)
	rest     []byte
}

func newTail(keep int, progress func(string)) *tail { return &tail{keep: keep, progress: progress} }

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest = append(t.rest, p...)
	for {
		advance, line, _ := bufio.ScanLines(t.rest, false)
		if advance == 0 {
			break
		}
		t.add(string(line))
		t.rest = t.rest[advance:]
	}
	if len(t.rest) > maxLineBytes {
		t.add(string(t.rest))
		t.rest = nil
	}
	return len(p), nil
}

func (t *tail) add(line string) {
	if t.lines = append(t.lines, line); len(t.lines) > t.keep {
		t.lines = t.lines[1:]
	}
	t.progress(line)
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.rest) > 0 {
		t.add(string(t.rest))
		t.rest = nil
	}
	return strings.Join(t.lines, "\n")
}
