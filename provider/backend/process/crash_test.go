package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// What a child that is killed in the midst of an operation is told.
const (
	crashDir       = "CRASH_DIR"
	crashOperation = "CRASH_OPERATION"
	crashStep      = "CRASH_STEP"
)

// operations start from version 2_1 with all calls and 1_1 before it; want is the split that each
// leads to, "" for no function.
var operations = map[string]struct {
	do   func(b *Backend) error
	want string
}{
	"deploy": {func(b *Backend) error { return b.Update(context.Background(), spec("iris:3_1")) }, "3_1=100"},
	"canary": {func(b *Backend) error { return b.Update(context.Background(), annotated("iris:3_1", "canary=10")) }, "2_1=90,3_1=10"},
	"traffic": {func(b *Backend) error {
		_, err := b.SetTraffic(context.Background(), iris, traffic.Split{Targets: []traffic.Target{{Version: "3_1", Weight: 400}, {Version: "1_1", Weight: 600}}})
		return err
	}, "3_1=40,1_1=60"},
	"rollback": {func(b *Backend) error { _, err := b.Rollback(context.Background(), iris); return err }, "1_1=100"},
	"sleep":    {func(b *Backend) error { return b.Scale(context.Background(), iris, 0) }, "2_1=100"},
	"delete":   {func(b *Backend) error { return b.Delete(context.Background(), iris) }, ""},
}

// crash is the child: it does the operation and kills itself at the step.
func crash() {
	dir := os.Getenv(crashDir)
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	cfg, err := benchConfig(dir)
	check(err)
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, &bbolt.Options{Timeout: 5 * time.Second})
	check(err)
	b, err := Open(context.Background(), cfg, db, &folders{dir: filepath.Join(dir, "models")})
	check(err)
	for end := time.Now().Add(15 * time.Second); b.functions[iris].route.Load() == nil && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	step = func(name string) {
		if name == os.Getenv(crashStep) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		}
	}
	check(operations[os.Getenv(crashOperation)].do(b))
	os.Exit(0)
}

func TestKillAtEveryStepLeavesTheStateBeforeOrAfter(t *testing.T) {
	steps := []string{"computed", "loaded", "pinned", "stored", "moved", "never"}
	var killed atomic.Int64
	t.Run("all", func(t *testing.T) {
		for name := range operations {
			for _, at := range steps {
				t.Run(name+" killed at "+at, func(t *testing.T) {
					t.Parallel()
					if killAt(t, name, at) {
						killed.Add(1)
					}
				})
			}
		}
	})
	// Not every operation has every step.
	if n := killed.Load(); n < 20 {
		t.Errorf("only %d of %d runs met their step", n, len(steps)*len(operations))
	}
}

// killAt does an operation in a child that is killed at a step, and holds what is found afterwards to
// the state before the operation or after it. It reports whether the operation has that step.
func killAt(t *testing.T, name, at string) (died bool) {
	op := operations[name]
	b := withVersions(t, 3)
	if err := b.Update(t.Context(), spec("iris:2_1")); err != nil {
		t.Fatal(err)
	}
	b.shut(t)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), crashDir+"="+b.config.DataDir, crashOperation+"="+name, crashStep+"="+at)
	out, err := child.CombinedOutput()
	died = child.ProcessState.Sys().(syscall.WaitStatus).Signaled()
	if err != nil && !died {
		t.Fatalf("%v\n%s", err, out)
	}
	b.open(t)
	after := !died || at == "stored" || at == "moved"
	want := "2_1=100"
	if after {
		want = op.want
	}
	got := ""
	status, err := b.Traffic(t.Context(), iris)
	if err == nil {
		got = status.String()
	} else if !errors.Is(err, backend.ErrNotFound) {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("split %q, not %q", got, want)
	}
	if want != "" && (name != "sleep" || !after) {
		eventually(t, "the function answers", func() bool { return strings.Contains(want, b.answering(t)+"=") })
	}
	if !after { // what was not done can be done
		eventually(t, "the operation succeeds", func() bool { return op.do(b.Backend) == nil })
	}
	b.shut(t)
	if n := b.models.pins.Load(); n != 0 {
		t.Errorf("%d pins are left", n)
	}
	return died
}
