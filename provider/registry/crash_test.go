package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// A process of its own does one operation on a registry and is killed at one step of it. These
// variables tell it so; without them the test binary runs tests.
const (
	crashRoot      = "REGISTRY_CRASH_ROOT"
	crashOperation = "REGISTRY_CRASH_OPERATION"
	crashStep      = "REGISTRY_CRASH_STEP" // counted from 0; -1: live, and print the name of each step
)

func TestMain(m *testing.M) {
	if os.Getenv(crashRoot) != "" {
		operate()
	}
	os.Exit(m.Run())
}

// The versions of the tests, each of a model of its own. They share files with each other, and one
// has a content with both modes.
var (
	keptFiles   = map[string]string{"main.py": echoCode, "coefficients/w": "shared", "only.txt": "of kept"}
	doomedFiles = map[string]string{"main.py": echoCode, "coefficients/w": "shared", "a/one": "of doomed", "a/two": "of doomed too", "run.sh!": "#!"}
	pushedFiles = map[string]string{"main.py": echoCode + "#\n", "coefficients/w": "shared", "coefficients/v": "new", "b/c/run.sh!": "new"}
)

const uploaded = "uploaded"

// operation is one change to a registry that holds the models kept and doomed.
type operation struct {
	prepare  func(t *testing.T, b *bench) // in the parent, after the models are there; nil: nothing
	do       func(root string, r *Registry) error
	withOpen bool // the steps of Open count as well
	// done is the step from which on the operation shows; "": it never shows in the list of models.
	done  string
	after map[string]map[string]string // the models once it is done
}

var before = map[string]map[string]string{"kept": keptFiles, "doomed": doomedFiles}

func withPushed() map[string]map[string]string {
	after := maps.Clone(before)
	after["pushed"] = pushedFiles
	return after
}

var operations = map[string]operation{
	"push a zip": {
		prepare: writeZip,
		do: func(root string, r *Registry) error {
			zip, err := os.ReadFile(filepath.Join(root, "push.zip"))
			if err != nil {
				return err
			}
			_, _, err = r.Push(context.Background(), "pushed", inHalves(string(zip)))
			return err
		},
		done: "recorded", after: withPushed(),
	},
	"push a list": {
		prepare: func(t *testing.T, b *bench) { b.upload(t, pushedFiles) },
		do: func(_ string, r *Registry) error {
			for _, content := range pushedFiles { // collected, if the last time got as far as that
				if _, err := r.StoreBlob(sum(content), strings.NewReader(content)); err != nil {
					return err
				}
			}
			_, _, err := r.PushFiles(context.Background(), "pushed", list(pushedFiles))
			return err
		},
		done: "recorded", after: withPushed(),
	},
	"upload": {
		do: func(_ string, r *Registry) error {
			_, err := r.StoreBlob(sum(uploaded), inHalves(uploaded))
			return err
		},
		after: before,
	},
	"delete": {
		do: func(_ string, r *Registry) error {
			m, err := r.Get("doomed")
			if err != nil {
				return nil // the last time got as far as that
			}
			return r.Delete("doomed", m.Latest)
		},
		done: "record removed", after: map[string]map[string]string{"kept": keptFiles},
	},
	"open": {
		prepare: func(t *testing.T, b *bench) {
			// What an older provider stored, what a push left, and what nobody pushed.
			m, err := b.Get("kept")
			if err != nil {
				t.Fatal(err)
			}
			b.plainVersion(t, m.Versions[0])
			if err := os.MkdirAll(b.path("pushed", "torn_torn"), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, content := range []string{"one that nobody needs", "another"} {
				if _, err := b.StoreBlob(sum(content), strings.NewReader(content)); err != nil {
					t.Fatal(err)
				}
				old := time.Now().Add(-2 * grace)
				if err := os.Chtimes(b.blobs.path(blob{sha256: sum(content)}), old, old); err != nil {
					t.Fatal(err)
				}
			}
		},
		do:       func(string, *Registry) error { return nil },
		withOpen: true, after: before,
	},
}

func writeZip(t *testing.T, b *bench) {
	if err := os.WriteFile(filepath.Join(b.root, "push.zip"), zipped(t, pushedFiles), 0o600); err != nil {
		t.Fatal(err)
	}
}

// inHalves gives text with a step between its halves.
func inHalves(text string) io.Reader {
	half := len(text) / 2
	return io.MultiReader(strings.NewReader(text[:half]), stepReader{}, strings.NewReader(text[half:]))
}

type stepReader struct{}

func (stepReader) Read([]byte) (int, error) {
	step("half a body came")
	return 0, io.EOF
}

// operate does not return.
func operate() {
	root := os.Getenv(crashRoot)
	fatal := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	last, err := strconv.Atoi(os.Getenv(crashStep))
	fatal(err)
	count := 0
	watch := func(name string) {
		if last < 0 {
			fmt.Println(name)
		}
		if count == last {
			die(root, name)
		}
		count++
	}
	op := operations[os.Getenv(crashOperation)]
	if op.withOpen {
		step = watch
	}
	db, err := bbolt.Open(filepath.Join(root, "state.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	fatal(err)
	r, err := Open(db, filepath.Join(root, "models"), model.DefaultLimits, plenty)
	fatal(err)
	step = watch
	fatal(op.do(root, r))
	os.Exit(0)
}

// die does not return. A directory that is on its way out is then halfway out.
func die(root, name string) {
	if name == "moved out of the way" {
		for _, file := range []string{"main.py", "a/one"} {
			found, _ := filepath.Glob(filepath.Join(root, "models", removed, "*", "*", file))
			for _, f := range found {
				os.Remove(f)
			}
		}
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// process runs the operation in a process of its own and returns what it printed.
func process(b *bench, operation string, step int) (string, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashRoot+"="+b.root, crashOperation+"="+operation, crashStep+"="+strconv.Itoa(step))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, &stderr)
	}
	return string(out), err
}

func killed(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "signal: killed") }

// prepared returns the root of a closed registry that the operation can start from.
func prepared(t *testing.T, op operation) *bench {
	t.Helper()
	b := newBench(t, plenty)
	for name, files := range before {
		if _, _, err := b.Push(t.Context(), name, bytes.NewReader(zipped(t, files))); err != nil {
			t.Fatal(err)
		}
	}
	if op.prepare != nil {
		op.prepare(t, b)
	}
	b.db.Close()
	return b
}

// wantModels holds the registry to having exactly these, byte for byte, in its list and on disk.
func (b *bench) wantModels(t *testing.T, want map[string]map[string]string) {
	t.Helper()
	models, err := b.List()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range models {
		names = append(names, m.Name)
		if len(m.Versions) != 1 {
			t.Errorf("%s has %d versions", m.Name, len(m.Versions))
		}
		b.wantFiles(t, b.path(m.Name, m.Latest), want[m.Name])
		if opened, err := model.Open(b.path(m.Name, m.Latest)); err != nil || opened.Version != m.Versions[0].Version {
			t.Errorf("%s is not what its record says: %v", m.Name, err)
		}
	}
	if !slices.Equal(names, slices.Sorted(maps.Keys(want))) {
		t.Errorf("models %v, want %v", names, slices.Sorted(maps.Keys(want)))
	}
	// Nothing torn is visible: what is on disk is in the list.
	dirs, err := filepath.Glob(filepath.Join(b.dir, "*", "*_*"))
	if err != nil || len(dirs) != len(want) {
		t.Errorf("%d versions on disk, want %d: %v, %v", len(dirs), len(want), dirs, err)
	}
	for _, scratch := range []string{incoming, removed} {
		if left, err := os.ReadDir(filepath.Join(b.dir, scratch)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", scratch, left, err)
		}
	}
}

// wantFiles holds dir to having exactly the files; a path that ends in ! is executable.
func (b *bench) wantFiles(t fataler, dir string, files map[string]string) {
	t.Helper()
	got := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if info.Mode()&0o111 != 0 {
			name += "!"
		}
		got[name] = string(content)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got, files) {
		t.Fatalf("%s has %q, want %q", dir, got, files)
	}
}

func TestKillAtAnyStepLosesNothing(t *testing.T) {
	kills := 0
	for name, op := range operations {
		out, err := process(prepared(t, op), name, -1)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		steps := strings.Fields(strings.ReplaceAll(strings.ReplaceAll(out, " ", "_"), "\n", " "))
		if op.done != "" && !slices.Contains(steps, strings.ReplaceAll(op.done, " ", "_")) || len(steps) < 3 {
			t.Fatalf("%s has the steps %v", name, steps)
		}
		for i, at := range steps {
			t.Run(fmt.Sprintf("%s/%02d %s", name, i, at), func(t *testing.T) {
				b := prepared(t, op)
				if _, err := process(b, name, i); !killed(err) {
					t.Fatalf("was not killed: %v", err)
				}
				kills++
				b.open(t, plenty)
				want := before
				if done := slices.Index(steps, strings.ReplaceAll(op.done, " ", "_")); op.done != "" && i >= done {
					want = op.after
				}
				b.wantModels(t, want)
				b.onDisk(t) // every blob is what its name says

				if err := op.do(b.root, b.Registry); err != nil {
					t.Fatalf("again: %v", err)
				}
				b.wantModels(t, op.after)
				b.wantOnlyUsedBlobs(t)
			})
		}
	}
	t.Logf("%d kills", kills)
	if kills < 40 {
		t.Errorf("only %d kills", kills)
	}
}
