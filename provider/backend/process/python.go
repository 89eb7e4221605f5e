package process

import (
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
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/watchdog/packages"
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

const completeMarker = ".complete"

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
	interpreter := packages.Interpreter(env)

	lock := &e.hold(digest).building
	defer e.letGo(digest)
	lock.Lock()
	defer lock.Unlock()
	if _, err := os.Stat(filepath.Join(env, completeMarker)); err == nil {
		return interpreter, nil
	}
	progress("building the Python environment " + digest + " for " + packages.RequirementsFile)
	start := time.Now()
	if err := e.build(ctx, env, requirements, progress); err != nil {
		return "", errors.Join(err, os.RemoveAll(env))
	}
	progress(fmt.Sprintf("the Python environment %s is ready after %s", digest, time.Since(start).Round(100*time.Millisecond)))
	return interpreter, nil
}

// wanted returns the bundle's list and the name of its environment, "" when it asks for no packages.
func (e *environments) wanted(bundle string) (requirements []byte, digest string, err error) {
	requirements, err = packages.Requirements(bundle)
	if err != nil || requirements == nil {
		return nil, "", err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n", e.python.tag)
	sum.Write(requirements)
	return requirements, hex.EncodeToString(sum.Sum(nil))[:32], nil
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
	list := filepath.Join(scratch, packages.RequirementsFile)
	if err := errors.Join(
		os.Chmod(scratch, 0o700),
		os.WriteFile(list, requirements, 0o600),
		os.Mkdir(env, 0o755), os.Chmod(env, 0o755),
		e.id.own(scratch, list, env),
	); err != nil {
		return err
	}
	install := packages.Installer{
		Python: e.python.path, Variables: append(basicEnvironment(), packages.Sources(os.Environ())...),
		Credential: e.id.credential(), Progress: progress,
	}
	if uv, err := exec.LookPath("uv"); err == nil && e.id.canRun(uv) == nil {
		install.UV = uv
	}
	if err := install.Install(ctx, env, list, scratch); err != nil {
		return fmt.Errorf("%w: %w", backend.ErrFailed, err)
	}
	if err := e.seal(env); err != nil {
		return fmt.Errorf("finish the Python environment: %w", err)
	}
	return os.WriteFile(filepath.Join(env, completeMarker), []byte(e.python.tag+"\n"), 0o644)
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
