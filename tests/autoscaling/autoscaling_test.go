package main

import (
	"context"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/faas-predict/faas-predict/tests/autoscaling/stage"
)

const files = "../../docs/autoscaling"

func TestShippedFilesAreValid(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(files)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "basic-auth-password"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, check := range [][]string{
		{"promtool", "check", "config", "prometheus.yml"},
		{"promtool", "test", "rules", "alert.rules.test.yml"},
		{"amtool", "check-config", "alertmanager.yml"},
		{"amtool", "check-config", "alertmanager.gateway.yml"},
	} {
		cmd := exec.Command(check[0], check[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", check, err, out)
		}
	}
}

func TestPoissonArrivalsHaveTheRatesAskedFor(t *testing.T) {
	phases := []Phase{{10 * time.Second, 100}, {5 * time.Second, 0}, {10 * time.Second, 400}}
	p := NewPoisson(7, phases...)
	var at []time.Duration
	for elapsed := time.Duration(0); ; {
		wait, stop := p.Pace(elapsed, uint64(len(at)))
		if stop {
			break
		}
		elapsed += wait
		at = append(at, elapsed)
	}
	count := func(from, to time.Duration) (n float64) {
		for _, a := range at {
			if a >= from && a < to {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		from, to time.Duration
		want     float64
	}{{0, 10 * time.Second, 1000}, {10 * time.Second, 15 * time.Second, 0}, {15 * time.Second, 25 * time.Second, 4000}} {
		// Four standard deviations of a Poisson count.
		if n := count(c.from, c.to); math.Abs(n-c.want) > 4*math.Sqrt(c.want) {
			t.Errorf("%s to %s: %v arrivals, want about %v", c.from, c.to, n, c.want)
		}
	}
	// Of exponential gaps the share below the mean is 1-1/e; of even ones it would be 0 or 1.
	below, gaps := 0.0, 0.0
	for i := 1; at[i] < 10*time.Second; i++ {
		if gaps++; at[i]-at[i-1] < 10*time.Millisecond {
			below++
		}
	}
	if share := below / gaps; math.Abs(share-(1-1/math.E)) > 0.06 {
		t.Errorf("%.2f of the gaps are shorter than their mean, want %.2f", share, 1-1/math.E)
	}
}

// faster than the shipped files the tests go: what takes five minutes there takes 15 seconds here.
const faster = 20

// A replica answers 50 calls a second, so 120 need three and 240 need five.
const load, needs, doubledNeeds = 120, 3, 5

func TestReplicasFollowTheLoad(t *testing.T) {
	bin := t.TempDir()
	if err := stage.Build(bin); err != nil {
		t.Fatal(err)
	}
	kill := func(p func(*stage.Stage) *stage.Program) func(context.Context, *stage.Stage) error {
		return func(_ context.Context, s *stage.Stage) error { return p(s).Kill() }
	}
	again := func(p func(*stage.Stage) *stage.Program) func(context.Context, *stage.Stage) error {
		return func(ctx context.Context, s *stage.Stage) error { return p(s).Start(ctx) }
	}
	alertmanager := func(s *stage.Stage) *stage.Program { return s.Alertmanager }
	prometheus := func(s *stage.Stage) *stage.Program { return s.Prometheus }
	type atLeast struct {
		from, to time.Duration
		replicas int
	}
	const idle = 28 // seconds; what was enough counts for 15
	seconds := func(n int) time.Duration { return time.Duration(n) * time.Second }
	for name, c := range map[string]struct {
		phases []Phase
		events []Event
		want   []atLeast
	}{
		"a load comes, stays and goes": {
			phases: []Phase{{seconds(4), 0}, {seconds(22), load}, {seconds(idle), 0}},
			want:   []atLeast{{seconds(14), seconds(26), needs}},
		},
		"the load doubles": {
			phases: []Phase{{seconds(17), load}, {seconds(17), 2 * load}, {seconds(idle), 0}},
			want:   []atLeast{{seconds(10), seconds(17), needs}, {seconds(27), seconds(34), doubledNeeds}},
		},
		"Alertmanager is killed, and back after the load has doubled": {
			phases: []Phase{{seconds(15), load}, {seconds(20), 2 * load}, {seconds(idle), 0}},
			events: []Event{{seconds(13), kill(alertmanager)}, {seconds(19), again(alertmanager)}},
			want:   []atLeast{{seconds(10), seconds(35), needs}, {seconds(29), seconds(35), doubledNeeds}},
		},
		"Prometheus is killed under load, and back after the load has doubled": {
			phases: []Phase{{seconds(15), load}, {seconds(20), 2 * load}, {seconds(idle), 0}},
			events: []Event{{seconds(13), kill(prometheus)}, {seconds(19), again(prometheus)}},
			want:   []atLeast{{seconds(10), seconds(35), needs}, {seconds(29), seconds(35), doubledNeeds}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // the calls sleep
			s, err := stage.Open(t.Context(), bin, files, faster)
			if err != nil {
				t.Fatal(err)
			}
			moments, err := Run(t.Context(), s, c.phases, c.events, time.Second)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err != nil {
				t.Error(err)
			}
			calls, lost := 0, 0
			for _, m := range moments {
				calls += m.Calls
				lost += m.Shed + m.Failed
			}
			for _, w := range c.want {
				for _, m := range moments {
					if m.At >= w.from && m.At < w.to && m.Replicas < w.replicas {
						t.Errorf("%d replicas after %s, want at least %d from %s to %s", m.Replicas, m.At, w.replicas, w.from, w.to)
					}
				}
			}
			if first := moments[0]; c.phases[0].Rate == 0 && first.Replicas != 1 {
				t.Errorf("%d replicas before any load, want 1", first.Replicas)
			}
			if last := moments[len(moments)-1]; last.Replicas != 1 {
				t.Errorf("%d replicas at the end, want 1", last.Replicas)
			}
			if lost > 0 || calls == 0 {
				t.Errorf("%d of %d calls did not get their answer", lost, calls)
			}
			if t.Failed() {
				for _, m := range moments {
					t.Logf("%4s: %3d calls, p99 %7s, %d shed, %d failed, %d replicas", m.At, m.Calls, m.P99.Round(time.Millisecond), m.Shed, m.Failed, m.Replicas)
				}
				t.Logf("Alertmanager: %.2000s", s.Alertmanager.Output())
				t.Logf("Prometheus: %.4000s", s.Prometheus.Output())
			}
		})
	}
}
