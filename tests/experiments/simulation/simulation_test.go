package simulation

import (
	"math"
	"testing"

	"github.com/faas-predict/faas-predict/tests/experiments/flow"
	"github.com/faas-predict/faas-predict/tests/experiments/series"
)

// rates plays n windows and returns the intensities of calls to the model and for tokens in each.
func rates(t *testing.T, cfg Config, n int) (model, tokens []float64) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Run(n, func(w Window) {
		if w.Model+w.Refused != w.Calls {
			t.Fatalf("calls were lost: %+v", w)
		}
		model = append(model, float64(w.Model)/cfg.Window)
		tokens = append(tokens, float64(w.Tokens)/cfg.Window)
	})
	return model, tokens
}

// The seeds are fixed, so that an interval of 99.9 % may be asked for each time.
const sure = 0.999

func TestCallsToTheModelAgreeWithTheory(t *testing.T) {
	for step := range 11 {
		b := float64(step) / 10
		model, _ := rates(t, Config{Offered: 10_000, Bad: b, Caches: 100, Lifetime: 1, Window: 0.1, Seed: uint64(step)}, 200)
		if s := series.Evaluate(model, sure); !s.Holds((1 - b) * 10_000) {
			t.Errorf("b = %v: %v to %v, want %v", b, s.Low(), s.High(), (1-b)*10_000)
		}
	}
}

func TestTokenRequestsAgreeWithTheory(t *testing.T) {
	for _, caches := range []int{10, 1000} {
		for _, lifetime := range []float64{0, 0.001, 0.1, 1, 10} {
			_, tokens := rates(t, Config{Offered: 10_000, Bad: 0.2, Caches: caches, Lifetime: lifetime, Window: 0.5, Seed: 7}, 200)
			want := flow.TokenFlow(8000, lifetime, caches)
			if s := series.Evaluate(tokens, sure); !s.Holds(want) {
				t.Errorf("K = %d, T = %v: %v to %v, want %v", caches, lifetime, s.Low(), s.High(), want)
			}
		}
	}
}

func TestFetchesThatTakeTimeAgreeWithTheory(t *testing.T) {
	for _, delay := range []float64{0.001, 0.01, 0.1} {
		_, tokens := rates(t, Config{Offered: 10_000, Caches: 100, Lifetime: 0.5, Delay: delay, Window: 1, Seed: 11}, 200)
		tokens = tokens[10:] // the stationary start is for tokens that come at once
		want := flow.TokenFlowDelayed(10_000, 0.5, 100, delay)
		if s := series.Evaluate(tokens, sure); math.Abs(s.Mean-want) > s.Half+0.005*want {
			t.Errorf("delay %v: %v to %v, want %v", delay, s.Low(), s.High(), want)
		}
	}
}

// Over windows longer than a token's lifetime each cache fetches nearly the same number.
func TestTokenRequestsAreMoreEvenThanPoissonInLongWindows(t *testing.T) {
	cfg := Config{Offered: 10_000, Caches: 1000, Lifetime: 0.5, Window: 5, Seed: 3}
	_, tokens := rates(t, cfg, 200)
	s := series.Evaluate(tokens, sure)
	poisson := math.Sqrt(s.Mean / cfg.Window)
	if s.S > poisson/2 {
		t.Errorf("s = %v where √λ gives %v", s.S, poisson)
	}
}

func TestASimulationGoesOnWhereItIs(t *testing.T) {
	cfg := Config{Offered: 1000, Bad: 0.1, Caches: 10, Lifetime: 0.1, Delay: 0.01, Window: 0.1, Seed: 5}
	whole, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var a, b []Window
	whole.Run(20, func(w Window) { a = append(a, w) })
	for range 4 {
		parts.Run(5, func(w Window) { b = append(b, w) })
	}
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("window %d: %+v and %+v", i, a[i], b[i])
		}
	}
}

func TestConfigsThatMeanNothingAreRefused(t *testing.T) {
	good := Config{Offered: 1, Caches: 1, Window: 1}
	for _, change := range []func(*Config){
		func(c *Config) { c.Offered = 0 }, func(c *Config) { c.Bad = 1.1 }, func(c *Config) { c.Caches = 0 },
		func(c *Config) { c.Lifetime = -1 }, func(c *Config) { c.Delay = math.NaN() }, func(c *Config) { c.Window = 0 },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	s, err := New(Config{Offered: 10_000, Bad: 0.1, Caches: 1000, Lifetime: 1, Window: 1, Seed: 1})
	if err != nil {
		b.Fatal(err)
	}
	var w Window
	for b.Loop() {
		s.now = s.next
		s.next += s.rng.ExpFloat64() / s.cfg.Offered
		s.call(&w)
	}
}
