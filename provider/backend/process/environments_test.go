package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/watchdog/packages"
)

// builtEnvironment puts a finished environment in place of a real one, which takes seconds to build.
func builtEnvironment(t *testing.T, dir, name string, lastUsed time.Time) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, name, "bin"), 0o755))
	marker := filepath.Join(dir, name, completeMarker)
	must(t, os.WriteFile(marker, nil, 0o644))
	must(t, os.Chtimes(marker, lastUsed, lastUsed))
}

func environmentsIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// addRequirements gives a model a list, and the list its environment. It returns the environment's name.
func (b *bench) addRequirements(t *testing.T, model, list string, lastUsed time.Time) string {
	t.Helper()
	b.models.add(t, model, "answers")
	dir := b.models.path(parseFolder(model))
	must(t, os.WriteFile(filepath.Join(dir, packages.RequirementsFile), []byte(list), 0o644))
	_, digest, err := b.environments.wanted(dir)
	must(t, err)
	builtEnvironment(t, b.environments.dir, digest, lastUsed)
	return digest
}

func TestEnvironmentsGoWhenNoFunctionUsesThem(t *testing.T) {
	b := newBench(t)
	b.config.KeepWarm = 0 // a version that is kept for a rollback uses its environment
	dir, longAgo := b.environments.dir, time.Now().Add(-time.Hour)
	first := b.addRequirements(t, "first", "plants==1\n", longAgo)
	second := b.addRequirements(t, "second", "plants==2\n", longAgo)
	must(t, b.Create(t.Context(), spec("first")))
	must(t, b.Scale(t.Context(), iris, 0)) // nothing runs, and still it is used
	for i := range 6 {
		builtEnvironment(t, dir, fmt.Sprint("unused", i), longAgo.Add(time.Duration(i)*time.Minute))
	}
	b.shut(t)
	b.open(t)
	b.background.Wait()
	want := []string{first, "unused3", "unused4", "unused5"}
	slices.Sort(want)
	if diff := cmp.Diff(want, environmentsIn(t, dir)); diff != "" {
		t.Errorf("after the start: %s", diff)
	}

	builtEnvironment(t, dir, second, longAgo)
	must(t, b.Update(t.Context(), spec("second")))
	b.background.Wait()
	want = []string{first, second, "unused4", "unused5"} // first was used last
	slices.Sort(want)
	if diff := cmp.Diff(want, environmentsIn(t, dir)); diff != "" {
		t.Errorf("after the update: %s", diff)
	}

	must(t, b.Delete(t.Context(), iris))
	b.background.Wait()
	want = []string{first, second, "unused5"}
	slices.Sort(want)
	if diff := cmp.Diff(want, environmentsIn(t, dir)); diff != "" {
		t.Errorf("after the deletion: %s", diff)
	}
	if len(b.environments.held) != 0 {
		t.Errorf("still held: %v", b.environments.held)
	}
}

func TestEnvironmentOfAFailedDeploymentWaitsForTheNext(t *testing.T) {
	b := newBench(t)
	digest := b.addRequirements(t, "broken", "plants==1\n", time.Now().Add(-time.Hour))
	b.models.add(t, "broken", "# fail: no such petal")
	for i := range keptEnvironments {
		builtEnvironment(t, b.environments.dir, fmt.Sprint("unused", i), time.Now().Add(-time.Minute))
	}
	if err := b.Create(t.Context(), spec("broken")); !errors.Is(err, backend.ErrFailed) {
		t.Fatalf("got %v", err)
	}
	left := environmentsIn(t, b.environments.dir)
	if len(left) != keptEnvironments || !slices.Contains(left, digest) {
		t.Errorf("environments %v, the deployment's is %s", left, digest)
	}
}

// fakePython is an interpreter as far as a build can tell: it makes the environment with itself in it.
const fakePython = `#!/bin/sh
if [ "$2" = venv ]; then /bin/mkdir -p "$3/bin" && /bin/cp "$0" "$3/bin/python3"; fi
`

func TestEnvironmentIsThereForAsLongAsItIsHeld(t *testing.T) {
	root := t.TempDir()
	t.Setenv("PATH", root) // no uv here
	interpreter := filepath.Join(root, "python3")
	must(t, os.WriteFile(interpreter, []byte(fakePython), 0o755))
	e := &environments{dir: filepath.Join(root, "envs"), python: python{path: interpreter, tag: "t"}}
	must(t, os.Mkdir(e.dir, 0o755))
	models := heldModels{&folders{dir: root}, e}
	for i := range 3 * keptEnvironments {
		bundle := filepath.Join(root, fmt.Sprint(i)+"@1")
		must(t, os.Mkdir(bundle, 0o755))
		must(t, os.WriteFile(filepath.Join(bundle, packages.RequirementsFile), fmt.Appendf(nil, "p==%d\n", i), 0o644))
	}
	var deployments sync.WaitGroup
	for worker := range 6 {
		deployments.Go(func() {
			for round := range 20 {
				m, err := models.Pin(fmt.Sprint((worker+round)%(3*keptEnvironments)), "1")
				if err != nil {
					t.Error(err)
					return
				}
				built, err := e.prepare(t.Context(), m.Dir, func(string) {})
				e.trim()
				if _, gone := os.Stat(built); err != nil || gone != nil {
					t.Errorf("held, and yet: %v %v", err, gone)
				}
				m.Release()
			}
		})
	}
	deployments.Wait()
	if left := environmentsIn(t, e.dir); len(left) != keptEnvironments {
		t.Errorf("environments left: %v", left)
	}
}

// deletions lists the names that are deleted from dir, in their order, while do runs.
func deletions(t *testing.T, dir string, do func()) []string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, dir, unix.IN_DELETE)
	must(t, err)
	do()
	var out []string
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			return out
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[12:]))
			out = append(out, strings.TrimRight(string(rest[unix.SizeofInotifyEvent:size]), "\x00"))
			rest = rest[size:]
		}
	}
}

func TestRemovalThatIsCutOffLeavesNothingThatCounts(t *testing.T) {
	e := &environments{dir: t.TempDir()}
	builtEnvironment(t, e.dir, "old", time.Now())
	for i := range 50 {
		must(t, os.WriteFile(filepath.Join(e.dir, "old", fmt.Sprint(i)), nil, 0o644))
	}
	gone := deletions(t, filepath.Join(e.dir, "old"), func() { must(t, e.remove("old")) })
	if len(gone) < 50 || gone[0] != completeMarker {
		t.Errorf("deleted in this order: %v", gone)
	}
}
