package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"
	"go.uber.org/goleak"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAVersionReplacesAnotherUnderLoadWithoutALoss(t *testing.T) {
	m := newEngine(t)
	p := open(t, m)
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	stop := p.load(t)
	for _, image := range []string{"iris:2_1", "slow:3_1", "iris:1_1"} {
		must(t, p.Update(t.Context(), spec(image)))
		_, version, _ := strings.Cut(image, ":")
		if _, got := p.call(t); got != version {
			t.Errorf("after %s was deployed, %s answers", image, got)
		}
	}
	for _, n := range []uint64{5, 1, 3} {
		must(t, p.Scale(t.Context(), iris, n))
	}
	_, err := p.Rollback(t.Context(), iris)
	must(t, err)
	calls, failed := stop()
	if len(failed) > 0 || calls < 100 {
		t.Errorf("%d of %d calls failed: %s", len(failed), calls, failed[0])
	}
	if _, got := p.call(t); got != "3_1" {
		t.Errorf("after a rollback %s answers", got)
	}
	// 2_1, which would be kept warm now, was not when 3_1 was.
	eventually(t, "the version in force is loaded and nothing else", func() bool { _, n := m.left(); return n == 1 })
}

func TestAFailedVersionChangesNothing(t *testing.T) {
	for image, want := range map[string]string{
		"fails:2_1": "init raised ValueError: no\nTraceback: main.py, line 3",
		"exits:2_1": "container ended with exit code 3; its log ends with:\nTraceback: main.py, line 7",
		"unlabeled": "carries no version",
	} {
		t.Run(image, func(t *testing.T) {
			m := newEngine(t)
			p := open(t, m)
			if err := p.Create(t.Context(), spec(image)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("creating it gives %v, not %q", err, want)
			}
			eventually(t, "nothing is left of it", func() bool { r, w := m.left(); return r+w == 0 })
			must(t, p.Create(t.Context(), spec("iris:1_1")))
			if err := p.Update(t.Context(), spec(image)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("updating to it gives %v, not %q", err, want)
			}
			if _, got := p.call(t); got != "1_1" {
				t.Errorf("%s answers", got)
			}
			eventually(t, "one workload is left", func() bool { r, w := m.left(); return r == 1 && w == 1 })
			status, err := p.Traffic(t.Context(), iris)
			must(t, err)
			if image == "unlabeled" {
				return
			}
			if v := status.Versions[1]; v.State != backend.Failed || !strings.Contains(v.Reason, want) {
				t.Errorf("the version is said to be %+v", v)
			}
		})
	}
}

func TestAVersionDoesNotComeBackWithOtherContent(t *testing.T) {
	p := open(t, newEngine(t))
	must(t, p.Create(t.Context(), spec("iris:1_1--a")))
	must(t, p.Update(t.Context(), spec("iris:1_2--b")))
	if err := p.Update(t.Context(), spec("iris:1_1--c")); !errors.Is(err, backend.ErrInUse) || !strings.Contains(err.Error(), "version 1_1") {
		t.Errorf("a label that came back with other content: %v", err)
	}
	m, err := p.Get(t.Context(), iris, false)
	must(t, err)
	if m.Image != "iris:1_2--b" {
		t.Errorf("after it the image is %s", m.Image)
	}
	for _, image := range []string{"elsewhere/iris:1_1--a", "iris:1_2--b", "iris:1_1"} { // the same, wherever it is, or not known
		must(t, p.Update(t.Context(), spec(image)))
	}
}

func TestCreateAndUpdateAreNotTheSame(t *testing.T) {
	p := open(t, newEngine(t))
	if err := p.Update(t.Context(), spec("iris:1_1")); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("updating what is not there: %v", err)
	}
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	if err := p.Create(t.Context(), spec("iris:1_1")); !errors.Is(err, backend.ErrExists) {
		t.Errorf("creating what is there: %v", err)
	}
	bad := spec("iris:1_1")
	bad.EnvVars = map[string]string{"healthcheck_interval": "0"}
	if err := p.Update(t.Context(), bad); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("a reserved variable: %v", err)
	}
	bad = spec("iris:1_1")
	bad.Secrets = []string{"key"}
	if err := p.Update(t.Context(), bad); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("a secret that is not there: %v", err)
	}
	must(t, p.CreateSecret(t.Context(), types.Secret{Name: "key", Value: "x"}))
	must(t, p.Update(t.Context(), bad))
	if err := p.DeleteSecret(t.Context(), "key", ""); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("deleting a secret in use: %v", err)
	}
}

func TestSplitsPinsAndSessions(t *testing.T) {
	p := open(t, newEngine(t))
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	must(t, p.Update(t.Context(), spec("iris:2_1", traffic.SplitAnnotation, "canary=50")))
	seen := map[string]int{}
	for range 200 {
		_, got := p.call(t)
		seen[got]++
	}
	if seen["1_1"] < 60 || seen["2_1"] < 60 {
		t.Errorf("a split in half answers %v", seen)
	}
	for i := range 8 {
		session := fmt.Sprint("session ", i)
		_, first := p.call(t, traffic.SessionHeader, session)
		for range 5 {
			if _, got := p.call(t, traffic.SessionHeader, session); got != first {
				t.Errorf("%s answered by %s, then by %s", session, first, got)
			}
		}
	}
	if _, got := p.call(t, traffic.PinHeader, "2_1"); got != "2_1" {
		t.Errorf("a call for 2_1 is answered by %s", got)
	}
	if _, err := p.Backend.route(iris).Pick(http.Header{traffic.PinHeader: {"9_1"}}); !errors.Is(err, backend.ErrNoVersion) {
		t.Errorf("a version that is not there: %v", err)
	}
	// A version that was never deployed is looked for as a tag.
	status, err := p.SetTraffic(t.Context(), iris, traffic.Split{Targets: []traffic.Target{{Version: "3_1", Weight: 1000}}, Mirror: "2_1"})
	must(t, err)
	if status.String() != "3_1=100" || status.Mirror != "2_1" {
		t.Errorf("the split is %s with mirror %s", status.Split, status.Mirror)
	}
	p.call(t)
	eventually(t, "the mirror got a copy", func() bool {
		status, err := p.Traffic(t.Context(), iris)
		must(t, err)
		for _, v := range status.Versions {
			if v.Version == "2_1" && v.Mirrored != nil && v.Mirrored.Differed == 1 {
				return true
			}
		}
		return false
	})
	if err := p.Unload(t.Context(), "iris", "3_1"); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("unloading a version in use: %v", err)
	}
}

func (b *Backend) route(ref backend.Ref) *route { return b.known(ref).route.Load() }

func TestARollbackDoesNotWaitForADeployment(t *testing.T) {
	p := open(t, newEngine(t))
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	must(t, p.Update(t.Context(), spec("iris:2_1")))
	deployed := make(chan error, 1)
	go func() { deployed <- p.Update(context.Background(), spec("slow:3_1")) }()
	eventually(t, "it loads", func() bool {
		status, err := p.Traffic(t.Context(), iris)
		must(t, err)
		return len(status.Versions) == 3
	})
	status, err := p.Rollback(t.Context(), iris)
	must(t, err)
	select {
	case <-deployed:
		t.Error("the rollback waited")
	default:
	}
	if status.String() != "1_1=100" {
		t.Errorf("the rollback led to %s", status.Split)
	}
	must(t, <-deployed)
	status, err = p.Rollback(t.Context(), iris)
	must(t, err)
	if status.String() != "1_1=100" {
		t.Errorf("the deployment went on from %s, not from what the rollback made", status.Split)
	}
}

func TestTwoProvidersAreOfOneMind(t *testing.T) {
	m := newEngine(t)
	a, b := open(t, m), open(t, m)
	must(t, a.Create(t.Context(), spec("iris:1_1")))
	must(t, b.Update(t.Context(), spec("iris:2_1")))
	stopA, stopB := a.load(t), b.load(t)
	var all sync.WaitGroup
	for i, p := range []*provider{a, b, a, b} {
		all.Go(func() {
			for round := range 3 {
				w := traffic.Weight(100 * (i + 1 + round))
				_, err := p.SetTraffic(context.Background(), iris, traffic.Split{Targets: []traffic.Target{{Version: "1_1", Weight: w}, {Version: "2_1", Weight: traffic.Whole - w}}})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Go(func() {
		if err := b.Update(context.Background(), spec("slow:3_1", traffic.SplitAnnotation, "canary=10")); err != nil {
			t.Error(err)
		}
	})
	all.Wait()
	must(t, a.Scale(t.Context(), iris, 2))
	for _, stop := range []func() (int, []string){stopA, stopB} {
		if calls, failed := stop(); len(failed) > 0 {
			t.Errorf("%d of %d calls failed: %s", len(failed), calls, failed[0])
		}
	}
	x, err := a.Traffic(t.Context(), iris)
	must(t, err)
	y, err := b.Traffic(t.Context(), iris)
	must(t, err)
	if !x.Equal(y.Split) || len(x.Before) != len(y.Before) {
		t.Errorf("one says %s, the other %s", x.Split, y.Split)
	}
	must(t, b.Delete(t.Context(), iris))
	if err := a.Delete(t.Context(), iris); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("deleting it again at the other: %v", err)
	}
	eventually(t, "nothing is left", func() bool { r, w := m.left(); return r+w == 0 })
	eventually(t, "both have forgotten it", func() bool { return a.known(iris) == nil && b.known(iris) == nil })
}

// What one provider scales and waits for, another may replace meanwhile.
func TestAScaleDoesNotWaitForWhatAnotherProviderRemoves(t *testing.T) {
	m := newEngine(t)
	a, b := open(t, m), open(t, m)
	must(t, a.Create(t.Context(), spec("slow:1_1")))
	eventually(t, "the other knows of it", func() bool { _, err := b.existing(iris); return err == nil })
	scaled := make(chan error, 1)
	go func() { scaled <- b.Scale(context.Background(), iris, 3) }()
	eventually(t, "it scales", func() bool {
		f, err := m.Read(t.Context(), iris)
		return err == nil && len(f.Workloads) == 1 && f.Workloads[0].Replicas == 3
	})
	began := time.Now()
	for _, image := range []string{"iris:2_1", "iris:3_1", "iris:4_1"} {
		must(t, a.Update(t.Context(), spec(image)))
	}
	must(t, <-scaled)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	got, err := b.Get(t.Context(), iris, false)
	must(t, err)
	if got.Replicas != 3 || got.Image != "iris:4_1" {
		t.Errorf("the function is %+v", got)
	}
}

func TestAProviderComesBack(t *testing.T) {
	m := newEngine(t)
	before := open(t, m)
	must(t, before.Create(t.Context(), spec("iris:1_1")))
	must(t, before.Update(t.Context(), spec("iris:2_1", traffic.SplitAnnotation, "1_1=30,canary=70")))
	must(t, before.Scale(t.Context(), iris, 3))
	after := open(t, m)
	if status, said := after.call(t); status != http.StatusOK {
		t.Errorf("the first call: %d %s", status, said)
	}
	got, err := after.Get(t.Context(), iris, false)
	must(t, err)
	if got.Replicas != 3 || got.AvailableReplicas != 3 {
		t.Errorf("%d of %d replicas", got.AvailableReplicas, got.Replicas)
	}
	split, err := after.Traffic(t.Context(), iris)
	must(t, err)
	if split.String() != "1_1=30,2_1=70" {
		t.Errorf("the split is %s", split.Split)
	}
}

func TestScaledToZeroAndBack(t *testing.T) {
	m := newEngine(t)
	p := open(t, m)
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	must(t, p.Scale(t.Context(), iris, 0))
	if _, said := p.call(t); !strings.Contains(said, "scaled to zero") {
		t.Errorf("a call gets %q", said)
	}
	eventually(t, "nothing runs", func() bool { r, w := m.left(); return r == 1 && w == 0 })
	must(t, p.Scale(t.Context(), iris, 2))
	if _, got := p.call(t); got != "1_1" {
		t.Errorf("%s answers", got)
	}
	if err := p.Scale(t.Context(), iris, 17); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
}

func TestACallGoesToAnotherContainerWhenOneIsGone(t *testing.T) {
	m := newEngine(t)
	p := open(t, m)
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	must(t, p.Scale(t.Context(), iris, 2))
	m.crash(iris)
	for range 50 {
		if status, said := p.call(t); status != http.StatusOK {
			t.Fatalf("%d %s", status, said)
		}
	}
}

// As when a function is scaled down, before this provider has heard of it.
func TestACallFindsTheOneContainerOfManyThatIsThere(t *testing.T) {
	m := newEngine(t)
	p := open(t, m)
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	must(t, p.Scale(t.Context(), iris, 12))
	eventually(t, "all are ready", func() bool {
		got, err := p.Get(t.Context(), iris, false)
		return err == nil && got.AvailableReplicas == 12
	})
	m.crashed(iris, 11)
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() {
			if status, said := p.call(t); status != http.StatusOK {
				t.Errorf("%d %s", status, said)
			}
		})
	}
	calls.Wait()
}

// Until the engine says that it is gone, a container that cannot be reached is no different from none.
func TestCallsWaitForAnotherContainerWhereTheOnlyOneIsGone(t *testing.T) {
	m := newEngine(t)
	p := open(t, m)
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	m.crash(iris)
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() {
			if status, said := p.call(t); status != http.StatusOK {
				t.Errorf("%d %s", status, said)
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	m.replace(iris)
	calls.Wait()
	m.crash(iris)
	if status, said := p.call(t); status != http.StatusServiceUnavailable || !strings.Contains(said, "none of 1 containers could be reached") {
		t.Errorf("without another one: %d %s", status, said)
	}
}

// A version that is kept warm may have calls that wait for it, though by now others answer.
func TestACallThatWaitsGoesWhereCallsAreMoved(t *testing.T) {
	m := newEngine(t)
	p := open(t, m)
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	m.crash(iris)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if status, said := p.call(t); status != http.StatusOK || said != "1_2" {
			t.Errorf("%d %s", status, said)
		}
	}()
	time.Sleep(100 * time.Millisecond)
	must(t, p.Update(t.Context(), spec("iris:1_2")))
	<-ended
}

func TestWhatADeadProviderLeftBehindIsRemoved(t *testing.T) {
	m := newEngine(t)
	past := time.Now().Add(-time.Minute).Unix()
	must(t, m.Apply(t.Context(), Workload{Ref: iris, ID: "lost", Image: "iris:9_1", Version: "9_1", Replicas: 1, Lease: past}))
	must(t, m.Apply(t.Context(), Workload{Ref: iris, ID: "awaited", Image: "iris:9_1", Version: "9_1", Replicas: 1, Lease: time.Now().Add(time.Hour).Unix()}))
	p := open(t, m)
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	eventually(t, "the one whose time is over is removed", func() bool { _, w := m.left(); return w == 2 })
	seen, err := m.Read(t.Context(), iris)
	must(t, err)
	for _, s := range seen.Workloads {
		if s.ID == "lost" {
			t.Error("it is the wrong one")
		}
	}
}

func TestDeletingStopsADeployment(t *testing.T) {
	m := newEngine(t)
	p := open(t, m)
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	deployed := make(chan error, 1)
	go func() { deployed <- p.Update(context.Background(), spec("slow:2_1")) }()
	eventually(t, "it loads", func() bool { _, w := m.left(); return w == 2 })
	must(t, p.Delete(t.Context(), iris))
	if err := <-deployed; err == nil {
		t.Error("the deployment says that it succeeded")
	}
	eventually(t, "nothing is left", func() bool { r, w := m.left(); return r+w == 0 })
}

func TestARolloutLeadsBackWhenItsBoundIsBroken(t *testing.T) {
	p := open(t, newEngine(t))
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	must(t, p.Update(t.Context(), spec("iris:2_1", traffic.RolloutAnnotation, "steps=50,100 every=50ms calls=20 errors=1")))
	stop := p.load(t)
	eventually(t, "the rollout is over", func() bool {
		status, err := p.Traffic(t.Context(), iris)
		must(t, err)
		return status.Rollout == nil && status.String() == "2_1=100"
	})
	if _, failed := stop(); len(failed) > 0 {
		t.Error(failed[0])
	}
	must(t, p.Update(t.Context(), spec("iris:3_1", traffic.RolloutAnnotation, "steps=50,100 every=1h errors=1")))
	bad := p.Backend.route(iris).Version("3_1")
	eventually(t, "it is rolled back", func() bool {
		bad.stats.Count(http.StatusInternalServerError, time.Millisecond)
		status, err := p.Traffic(t.Context(), iris)
		must(t, err)
		return status.String() == "2_1=100" && strings.Contains(status.RolloutNote, "rolled back")
	})
}

func TestFollowingALogEndsWithTheProvider(t *testing.T) {
	p := open(t, newEngine(t))
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	lines, err := p.Logs(t.Context(), logs.Request{Name: "iris", Follow: true})
	must(t, err)
	p.EndStreams()
	select {
	case _, open := <-lines:
		if open {
			t.Error("a line")
		}
	case <-time.After(5 * time.Second):
		t.Error("the stream goes on")
	}
}
