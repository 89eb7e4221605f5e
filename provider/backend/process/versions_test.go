package process

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/backend/mirror"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// withVersions is a bench whose function iris runs version 1_1, with versions 2_1 to n_1 pushed. Each
// answers /words with its own name.
func withVersions(t *testing.T, n int) *bench {
	t.Helper()
	b := newBench(t)
	for v := 1; v <= n; v++ {
		b.models.add(t, fmt.Sprintf("iris:%d_1", v), fmt.Sprintf("%d_1", v))
	}
	if err := b.Create(t.Context(), spec("iris:1_1")); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) answering(t *testing.T, headers ...string) string {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/function/iris", strings.NewReader("x"))
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	if _, err := b.Forward(iris, w, r, "/words", "host", r.Header); err != nil {
		return err.Error()
	}
	return w.Body.String()
}

func split(t *testing.T, text string) traffic.Split {
	t.Helper()
	s, _, err := traffic.Deploy(map[string]string{traffic.SplitAnnotation: text}, traffic.Split{}, "none_none")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (b *bench) states(t *testing.T) string {
	t.Helper()
	status, err := b.Traffic(t.Context(), iris)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, v := range status.Versions {
		out = append(out, fmt.Sprintf("%s %s %s", v.Version, v.State, v.Weight))
	}
	return strings.Join(out, ", ")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come true", what)
		}
	}
}

func annotated(image, annotation string) types.FunctionDeployment {
	s := spec(image)
	if annotation != "" {
		s.Annotations = &map[string]string{traffic.SplitAnnotation: annotation}
	}
	return s
}

func TestASplitSharesCallsAndAPinOrSessionChoosesOne(t *testing.T) {
	b := withVersions(t, 3)
	if err := b.Update(t.Context(), annotated("iris:2_1", "canary=30")); err != nil {
		t.Fatal(err)
	}
	if got := b.states(t); got != "1_1 active 70, 2_1 active 30" {
		t.Fatal(got)
	}
	counts := map[string]int{}
	for range 600 {
		counts[b.answering(t)]++
	}
	// Six standard deviations of 600 calls at 30 %.
	if counts["1_1"]+counts["2_1"] != 600 || counts["2_1"] < 180-67 || counts["2_1"] > 180+67 {
		t.Errorf("30 %% of 600 calls were %v", counts)
	}
	if got := b.answering(t, "X-Model-Version: 2_1"); got != "2_1" {
		t.Errorf("pinned to 2_1: %s", got)
	}
	if got := b.answering(t, "X-Model-Version: 3_1"); !strings.Contains(got, backend.ErrNoVersion.Error()) {
		t.Errorf("pinned to what is not loaded: %s", got)
	}
	for s := range 20 {
		session := fmt.Sprintf("X-Session-Id: %d", s)
		first := b.answering(t, session)
		for range 5 {
			if again := b.answering(t, session); again != first {
				t.Errorf("session %d went to %s and to %s", s, first, again)
			}
		}
	}
}

func TestAVersionThatFailsNeverGetsACallAndSaysWhy(t *testing.T) {
	b := withVersions(t, 1)
	b.models.add(t, "iris:2_1", "# fail: Traceback: no petals")
	for name, try := range map[string]func() error{
		"deploy":  func() error { return b.Update(t.Context(), annotated("iris:2_1", "canary=50")) },
		"traffic": func() error { _, err := b.SetTraffic(t.Context(), iris, split(t, "1_1=50,2_1=50")); return err },
	} {
		if err := try(); !errors.Is(err, backend.ErrFailed) || !strings.Contains(err.Error(), "no petals") {
			t.Errorf("%s: %v", name, err)
		}
		if got := b.states(t); got != "1_1 active 100, 2_1 failed 0" {
			t.Errorf("after %s: %s", name, got)
		}
		for range 20 {
			if got := b.answering(t); got != "1_1" {
				t.Fatalf("after %s %s answered", name, got)
			}
		}
	}
	list, err := b.Get(t.Context(), iris, false)
	if err != nil || list.Image != "iris:1_1" {
		t.Errorf("%s is said to be deployed, %v", list.Image, err)
	}
}

func TestARollbackGoesBackSplitBySplitToWarmVersions(t *testing.T) {
	b := withVersions(t, 3)
	for _, image := range []string{"iris:2_1", "iris:3_1"} {
		if err := b.Update(t.Context(), spec(image)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "2_1 is warm and 1_1 gone", func() bool { return b.states(t) == "2_1 ready 0, 3_1 active 100" })
	// The bound is a median's: one disk flush may take long on a busy machine.
	var times []time.Duration
	for range 5 {
		began := time.Now()
		if _, err := b.Rollback(t.Context(), iris); err != nil {
			t.Fatal(err)
		}
		if got := b.answering(t); got != "2_1" {
			t.Errorf("%s answers after the first rollback", got)
		}
		times = append(times, time.Since(began))
		if err := b.Update(t.Context(), spec("iris:3_1")); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(times)
	if times[2] > 50*time.Millisecond {
		t.Errorf("rolling back to a warm version took %s", times)
	}
	if _, err := b.Rollback(t.Context(), iris); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Rollback(t.Context(), iris); err != nil {
		t.Fatal(err)
	}
	if got := b.answering(t); got != "1_1" {
		t.Errorf("%s answers after the second rollback", got)
	}
	if _, err := b.Rollback(t.Context(), iris); !errors.Is(err, backend.ErrNothingBefore) {
		t.Errorf("the third rollback: %v", err)
	}
}

func TestAVersionThatIsReplacedDrains(t *testing.T) {
	b := withVersions(t, 2)
	b.config.KeepWarm = 0
	answered := make(chan string, 1)
	go func() {
		_, body, err := b.call(t, "/slow?ms=700", "")
		answered <- fmt.Sprint(body, err)
	}()
	eventually(t, "the call is there", func() bool { return b.functions[iris].route.Load().Only.current.Load().calls.Load() == 1 })
	if err := b.Update(t.Context(), spec("iris:2_1")); err != nil {
		t.Fatal(err)
	}
	if got := b.states(t); got != "1_1 draining 0, 2_1 active 100" {
		t.Error(got)
	}
	if got := <-answered; got != "done<nil>" {
		t.Errorf("the call that was under way got %s", got)
	}
	eventually(t, "the old version is gone", func() bool { return b.states(t) == "2_1 active 100" })
}

func TestSplitsComeBackFromTheState(t *testing.T) {
	b := withVersions(t, 3)
	for _, s := range []string{"1_1=50,2_1=50", "1_1=20,3_1=80"} {
		if _, err := b.SetTraffic(t.Context(), iris, split(t, s)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := b.Traffic(t.Context(), iris)
	if err != nil {
		t.Fatal(err)
	}
	b.shut(t)
	b.open(t)
	eventually(t, "all versions are back", func() bool { return b.states(t) == "1_1 active 20, 2_1 ready 0, 3_1 active 80" })
	got, err := b.Traffic(t.Context(), iris)
	if err != nil || !got.Equal(want.Split) || len(got.Before) != len(want.Before) || !got.Before[0].Equal(want.Before[0]) {
		t.Errorf("%+v came back as %+v, %v", want, got, err)
	}
	if _, err := b.Rollback(t.Context(), iris); err != nil || !strings.HasPrefix(b.states(t), "1_1 active 50, 2_1 active 50") {
		t.Errorf("rolled back to %s, %v", b.states(t), err)
	}
}

func TestAVersionInASplitCannotBeUnloadedAndAWarmOneCan(t *testing.T) {
	b := withVersions(t, 2)
	if err := b.Update(t.Context(), spec("iris:2_1")); err != nil {
		t.Fatal(err)
	}
	if err := b.Unload(t.Context(), "iris", "2_1"); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("unloading what has calls: %v", err)
	}
	if n := b.models.pins.Load(); n != 2 {
		t.Errorf("%d pins of 2 versions", n)
	}
	if err := b.Unload(t.Context(), "iris", "1_1"); err != nil {
		t.Error(err)
	}
	if _, err := b.Rollback(t.Context(), iris); !errors.Is(err, backend.ErrNothingBefore) {
		t.Errorf("rolling back to what was unloaded: %v", err)
	}
	eventually(t, "one pin is left", func() bool { return b.models.pins.Load() == 1 })
}

func TestScalingReachesEveryVersionOfASplit(t *testing.T) {
	b := withVersions(t, 2)
	if _, err := b.SetTraffic(t.Context(), iris, split(t, "1_1=50,2_1=50")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{3, 0, 2} {
		if err := b.Scale(t.Context(), iris, n); err != nil {
			t.Fatal(err)
		}
		got, err := b.Get(t.Context(), iris, false)
		if err != nil || got.Replicas != n || got.AvailableReplicas != n {
			t.Errorf("scaled to %d: %d of %d, %v", n, got.AvailableReplicas, got.Replicas, err)
		}
	}
	for _, version := range []string{"1_1", "2_1"} {
		if got := b.answering(t, "X-Model-Version: "+version); got != version {
			t.Errorf("%s after scaling: %s", version, got)
		}
	}
}

func TestNoCallIsLostOrMisroutedWhileSplitsChange(t *testing.T) {
	b := withVersions(t, 2)
	var moving sync.RWMutex // held to write while a split changes: then either version may answer
	var allowed atomic.Value
	allowed.Store("1_1")
	var calls, wrong, failed atomic.Int64
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got := func() string {
					if !moving.TryRLock() {
						return b.answering(t)
					}
					defer moving.RUnlock()
					got := b.answering(t)
					if want := allowed.Load().(string); got != want {
						wrong.Add(1)
					}
					return got
				}()
				if got != "1_1" && got != "2_1" {
					failed.Add(1)
				}
				calls.Add(1)
			}
		})
	}
	for n := range 20 {
		version := []string{"2_1", "1_1"}[n%2]
		moving.Lock()
		if _, err := b.SetTraffic(t.Context(), iris, traffic.All(version)); err != nil {
			t.Error(err)
		}
		allowed.Store(version)
		moving.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
	close(stop)
	callers.Wait()
	if wrong.Load() > 0 || failed.Load() > 0 || calls.Load() < 100 {
		t.Errorf("of %d calls %d were answered by a version that the split forbids, %d failed", calls.Load(), wrong.Load(), failed.Load())
	}
}

func TestAMirrorGetsCopiesThatNobodySees(t *testing.T) {
	b := withVersions(t, 2)
	s := spec("iris:2_1")
	s.Annotations = &map[string]string{traffic.MirrorAnnotation: traffic.This}
	if err := b.Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got := b.states(t); got != "1_1 active 100, 2_1 ready 0" {
		t.Fatal(got)
	}
	for range 5 {
		if got := b.answering(t); got != "1_1" { // /words differs between versions
			t.Errorf("%s answered", got)
		}
	}
	if _, body, err := b.call(t, "/", "the same from both"); err != nil || body != "the same from both" {
		t.Errorf("%q, %v", body, err)
	}
	if _, _, err := b.call(t, "/", strings.Repeat("x", mirror.MaxBody+1)); err != nil {
		t.Error(err)
	}
	if _, body, err := b.call(t, "/lines", "an answer\nof unknown\nlength\n"); err != nil || strings.Count(body, "\n") != 3 {
		t.Errorf("%q, %v", body, err)
	}
	want := traffic.Mirrored{Matched: 2, Differed: 5, Skipped: 1}
	mirrored := func() traffic.Mirrored {
		status, err := b.Traffic(t.Context(), iris)
		if err != nil {
			t.Fatal(err)
		}
		if got := status.Versions[1].Mirrored; got != nil {
			return *got
		}
		return traffic.Mirrored{}
	}
	eventually(t, "every copy is counted", func() bool { return mirrored() == want })
	if _, _, err := b.call(t, "/slow?ms=500", ""); err != nil {
		t.Error(err)
	}
	if mirrored() != want {
		t.Error("a call waited for its copy")
	}
	want.Matched++
	eventually(t, "the slow copy is counted", func() bool { return mirrored() == want })
}

func TestACopyThatFailsIsCountedAndTheCallIsNot(t *testing.T) {
	b := withVersions(t, 2)
	mirror := traffic.All("1_1")
	mirror.Mirror = "2_1"
	if _, err := b.SetTraffic(t.Context(), iris, mirror); err != nil {
		t.Fatal(err)
	}
	i := b.functions[iris].route.Load().Mirror.current.Load()
	i.kill()
	for range 10 {
		if got := b.answering(t); got != "1_1" {
			t.Errorf("%s while the mirror is down", got)
		}
	}
	eventually(t, "every copy is counted", func() bool {
		status, err := b.Traffic(t.Context(), iris)
		if err != nil {
			t.Fatal(err)
		}
		m, calls := status.Versions[1].Mirrored, status.Versions[0].Calls
		return m != nil && calls == 10 && m.Failed+m.Skipped+m.Differed == 10 && status.Versions[0].Errors == 0
	})
}

func rolledOut(image, rollout string) types.FunctionDeployment {
	s := spec(image)
	s.Annotations = &map[string]string{traffic.RolloutAnnotation: rollout}
	return s
}

func TestARolloutGoesStepByStepToAllCalls(t *testing.T) {
	b := withVersions(t, 2)
	if err := b.Update(t.Context(), rolledOut("iris:2_1", "steps=10,50,100 every=100ms errors=1 calls=5")); err != nil {
		t.Fatal(err)
	}
	if got := b.states(t); got != "1_1 active 90, 2_1 active 10" {
		t.Fatal(got)
	}
	seen := map[string]bool{}
	eventually(t, "the rollout is complete", func() bool {
		b.answering(t)
		status, err := b.Traffic(t.Context(), iris)
		if err != nil {
			t.Fatal(err)
		}
		seen[status.Weight("2_1").String()] = true
		return status.Rollout == nil && strings.Contains(status.RolloutNote, "passed every step")
	})
	if !seen["10"] || !seen["50"] || !seen["100"] {
		t.Errorf("steps seen: %v", seen)
	}
	if _, err := b.Rollback(t.Context(), iris); err != nil || b.answering(t) != "1_1" {
		t.Errorf("a rollback after the rollout: %v", err)
	}
}

func TestARolloutThatBreaksABoundRollsBackAndSaysWhy(t *testing.T) {
	b := withVersions(t, 1)
	b.models.add(t, "iris:2_1", "# status: 500")
	if err := b.Update(t.Context(), rolledOut("iris:2_1", "steps=50,100 every=1m errors=1")); err != nil {
		t.Fatal(err)
	}
	failed := 0
	eventually(t, "the rollout is rolled back", func() bool {
		if b.answering(t) != "1_1" {
			failed++
		}
		return strings.HasPrefix(b.states(t), "1_1 active 100")
	})
	status, err := b.Traffic(t.Context(), iris)
	if err != nil || status.Rollout != nil || !strings.Contains(status.RolloutNote, "calls failed") || len(status.Before) != 0 {
		t.Errorf("%+v, %v", status, err)
	}
	if n := testutil.ToFloat64(b.rollouts.WithLabelValues(iris.String(), "rolled_back")); n != 1 {
		t.Errorf("%g rollouts are counted as rolled back", n)
	}
	messages, err := b.Logs(t.Context(), logs.Request{Name: "iris"})
	if err != nil {
		t.Fatal(err)
	}
	said := false
	for m := range messages {
		said = said || strings.Contains(m.Text, "rollout of version 2_1: rolled back at 50 %")
	}
	if !said {
		t.Error("the function's log does not say that it was rolled back")
	}
	if failed > 400 {
		t.Errorf("%d calls failed before the bound was seen to be broken", failed)
	}
	for range 50 {
		if got := b.answering(t); got != "1_1" {
			t.Fatalf("%s after the rollback", got)
		}
	}
}

func TestARolloutSurvivesARestartAndEndsWhenSomebodyMovesTheCalls(t *testing.T) {
	b := withVersions(t, 2)
	if err := b.Update(t.Context(), rolledOut("iris:2_1", "steps=10,100 every=300ms errors=1 calls=1")); err != nil {
		t.Fatal(err)
	}
	b.shut(t)
	b.open(t)
	eventually(t, "the second step", func() bool { b.answering(t); return strings.Contains(b.states(t), "2_1 active 100") })
	if err := b.Update(t.Context(), spec("iris:1_1")); err != nil {
		t.Fatal(err)
	}
	if err := b.Update(t.Context(), rolledOut("iris:2_1", "steps=10,100 every=100ms errors=1 calls=1")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.SetTraffic(t.Context(), iris, split(t, "1_1=70,2_1=30")); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		b.answering(t)
		time.Sleep(10 * time.Millisecond)
	}
	if got := b.states(t); got != "1_1 active 70, 2_1 active 30" {
		t.Errorf("%s: the rollout went on", got)
	}
}

func TestMetricsTellVersionsApart(t *testing.T) {
	b := withVersions(t, 2)
	if _, err := b.SetTraffic(t.Context(), iris, split(t, "1_1=50,2_1=50")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		b.answering(t, "X-Model-Version: 2_1")
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b.Backend)
	want := `
# HELP faas_predict_version_calls_total Calls that a version of a function had, by HTTP status; 0 is an answer that was cut off.
# TYPE faas_predict_version_calls_total counter
faas_predict_version_calls_total{code="200",function_name="iris.openfaas-fn",model_code="2",model_coefficients="1",version="2_1"} 3
# HELP faas_predict_version_weight Share of the function's calls that the version gets, 0 to 1.
# TYPE faas_predict_version_weight gauge
faas_predict_version_weight{function_name="iris.openfaas-fn",model_code="1",model_coefficients="1",version="1_1"} 0.5
faas_predict_version_weight{function_name="iris.openfaas-fn",model_code="2",model_coefficients="1",version="2_1"} 0.5
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "faas_predict_version_calls_total", "faas_predict_version_weight"); err != nil {
		t.Error(err)
	}
}

func TestARollbackDoesNotWaitForADeploymentThatLoads(t *testing.T) {
	b := withVersions(t, 2)
	if err := b.Update(t.Context(), spec("iris:2_1")); err != nil {
		t.Fatal(err)
	}
	b.models.add(t, "iris:3_1", "# slow: 1500")
	deployed := make(chan error, 1)
	go func() { deployed <- b.Update(t.Context(), annotated("iris:3_1", "canary=40")) }()
	eventually(t, "3_1 loads", func() bool { return strings.Contains(b.states(t), "3_1 loading") })
	if _, err := b.Rollback(t.Context(), iris); err != nil {
		t.Fatal(err)
	}
	if got := b.answering(t); got != "1_1" {
		t.Errorf("%s answers", got)
	}
	select {
	case err := <-deployed:
		t.Errorf("the rollback waited for the deployment (%v)", err)
	default:
	}
	if err := <-deployed; err != nil {
		t.Error(err)
	}
	// The deployment goes on from what the rollback made.
	if got := b.states(t); !strings.Contains(got, "1_1 active 60") || !strings.Contains(got, "3_1 active 40") {
		t.Error(got)
	}
	if status, err := b.Traffic(t.Context(), iris); err != nil || len(status.Before) != 1 || !status.Before[0].Equal(traffic.All("1_1")) {
		t.Errorf("before: %v, %v", status.Before, err)
	}
}

func TestARolloutLeadsBackToAVersionAndNotToItself(t *testing.T) {
	b := withVersions(t, 1)
	b.models.add(t, "iris:2_1", "# status: 500")
	for range 2 { // who sees a deployment fail repeats it
		if err := b.Update(t.Context(), rolledOut("iris:2_1", "steps=50,100 every=1m errors=1")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the rollout is rolled back", func() bool {
		b.answering(t)
		return strings.HasPrefix(b.states(t), "1_1 active 100")
	})
}

func TestACompleteRolloutLeavesTheOldVersionToRollbacks(t *testing.T) {
	b := withVersions(t, 2)
	b.config.KeepWarm = 0
	b.models.add(t, "iris:3_1", "# status: 500")
	if err := b.Update(t.Context(), rolledOut("iris:2_1", "steps=50,100 every=50ms errors=1 calls=1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the rollout is complete", func() bool { b.answering(t); return b.states(t) == "2_1 active 100" })
	if err := b.Unload(t.Context(), "iris", "1_1"); err != nil {
		t.Error(err)
	}
	if err := b.Update(t.Context(), rolledOut("iris:3_1", "steps=50,100 every=1m errors=1")); err != nil {
		t.Fatal(err)
	}
	if err := b.Unload(t.Context(), "iris", "2_1"); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("unloading what a rollout may lead back to: %v", err)
	}
	eventually(t, "the next rollout is rolled back", func() bool { b.answering(t); return strings.HasPrefix(b.states(t), "2_1 active 100") })
	if _, err := b.SetTraffic(t.Context(), iris, traffic.All("2_1")); err != nil {
		t.Error(err)
	}
}

func TestARolloutIsGuardedAfterARestartWhileScaledToZero(t *testing.T) {
	b := withVersions(t, 1)
	b.models.add(t, "iris:2_1", "# status: 500")
	if err := b.Update(t.Context(), rolledOut("iris:2_1", "steps=50,100 every=1m errors=1")); err != nil {
		t.Fatal(err)
	}
	if err := b.Scale(t.Context(), iris, 0); err != nil {
		t.Fatal(err)
	}
	b.shut(t)
	b.open(t)
	if err := b.Scale(t.Context(), iris, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the rollout is rolled back", func() bool {
		b.answering(t)
		return strings.HasPrefix(b.states(t), "1_1 active 100")
	})
}

func TestARollbackLeadsBackToTheModelAndDeploymentOfThen(t *testing.T) {
	b := newBench(t)
	b.config.KeepWarm = 0
	b.models.add(t, "rose:1_1", "rose")
	b.models.add(t, "rose:2_1", "rose")
	old, changed := spec("iris:1_1"), spec("rose:2_1")
	old.EnvVars, changed.EnvVars = map[string]string{"COLOUR": "blue"}, map[string]string{"COLOUR": "red"}
	if err := b.Create(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if err := b.Update(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Rollback(t.Context(), iris); err != nil {
		t.Fatal(err)
	}
	if _, words, err := b.call(t, "/words", ""); err != nil || words != "answers" {
		t.Errorf("%q answers, %v", words, err)
	}
	if _, env, err := b.call(t, "/env", ""); err != nil || !strings.Contains(env, "COLOUR=blue") {
		t.Errorf("environment %s, %v", env, err)
	}
}

func TestAFailedDeploymentLeavesTheWorkersAsTheyWere(t *testing.T) {
	b := withVersions(t, 1)
	b.models.add(t, "iris:2_1", "# fail: no petals")
	s := spec("iris:2_1")
	s.Labels = &map[string]string{deployment.ScaleMinLabel: "5"}
	if err := b.Update(t.Context(), s); !errors.Is(err, backend.ErrFailed) {
		t.Fatal(err)
	}
	ready, err := b.functions[iris].route.Load().Only.current.Load().workers(t.Context())
	if err != nil || ready != 1 {
		t.Errorf("%d workers, %v", ready, err)
	}
}

func TestARollbackAfterARestartDoesNotWaitForAWarmVersion(t *testing.T) {
	b := withVersions(t, 2)
	b.models.add(t, "iris:3_1", "3_1")
	b.config.KeepWarm = 2
	for _, s := range []string{"1_1=50,2_1=50", "3_1=100", "1_1=100"} {
		if _, err := b.SetTraffic(t.Context(), iris, split(t, s)); err != nil {
			t.Fatal(err)
		}
	}
	b.models.add(t, "iris:2_1", "# slow: 3000")
	b.shut(t)
	b.open(t)
	eventually(t, "3_1 is back", func() bool { return strings.Contains(b.states(t), "3_1 ready") })
	if _, err := b.Rollback(t.Context(), iris); err != nil {
		t.Fatal(err)
	}
	if got := b.states(t); strings.Contains(got, "2_1 ready") || b.answering(t) != "3_1" {
		t.Errorf("the rollback waited: %s", got)
	}
}

func TestCloseAndDeleteStopADeploymentThatLoads(t *testing.T) {
	b := withVersions(t, 1)
	b.models.add(t, "iris:2_1", "# slow: 60000")
	for _, stop := range []func(){
		func() {
			if err := b.Delete(t.Context(), iris); err != nil {
				t.Error(err)
			}
			if err := b.Create(t.Context(), spec("iris:1_1")); err != nil {
				t.Error(err)
			}
		},
		func() { b.shut(t) },
	} {
		deployed := make(chan error, 1)
		go func(b *Backend) { deployed <- b.Update(context.Background(), spec("iris:2_1")) }(b.Backend)
		eventually(t, "2_1 loads", func() bool { return strings.Contains(b.states(t), "2_1 loading") })
		stop()
		if err := <-deployed; err == nil {
			t.Error("the deployment succeeded")
		}
	}
	if left, err := os.ReadDir(filepath.Join(b.config.DataDir, "run")); err != nil || len(left) != 0 || b.models.pins.Load() != 0 {
		t.Errorf("left behind: %v, %d pins, %v", left, b.models.pins.Load(), err)
	}
}
