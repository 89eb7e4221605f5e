package queue

import (
	"math"
	"math/rand/v2"
	"testing"
)

func near(t *testing.T, what string, got, want, relative float64) {
	t.Helper()
	if math.Abs(got-want) > relative*want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestOneWorkerWaitsAsPollaczekAndKhinchineSay(t *testing.T) {
	for _, rho := range []float64{0.1, 0.5, 0.9, 0.95} {
		near(t, "M/M/1", MMC(rho/2, 2, 1), 2*rho/(1-rho), 1e-12)
		near(t, "M/D/1", MDC(rho/2, 2, 1), 2*rho/(2*(1-rho)), 1e-6)
	}
}

func TestErlangCHasKnownValues(t *testing.T) {
	// C(2, a) = a²/(2 + a) for two workers; C(c, a) = 1 at the limit.
	near(t, "C(2, 1)", ErlangC(2, 1), 1.0/3, 1e-12)
	near(t, "C(2, 1.8)", ErlangC(2, 1.8), 1.8*1.8/3.8, 1e-12)
	near(t, "C(1, 0.7)", ErlangC(1, 0.7), 0.7, 1e-12)
	near(t, "C(4, 3.9999)", ErlangC(4, 3.9999), 1, 1e-3)
}

func TestFormulasAgreeWithAnIdealQueue(t *testing.T) {
	for _, workers := range []int{1, 2, 4} {
		for _, rho := range []float64{0.5, 0.8} {
			rate := rho * float64(workers)
			for name, draw := range map[string]func(*rand.Rand) float64{
				"M/M/c": (*rand.Rand).ExpFloat64, "M/D/c": func(*rand.Rand) float64 { return 1 },
			} {
				rng := rand.New(rand.NewPCG(1, uint64(workers)))
				calls := make([]Call, 150_000)
				now := 0.0
				for i := range calls {
					now += rng.ExpFloat64() / rate
					calls[i] = Call{now, draw(rng)}
				}
				sum := 0.0
				for _, w := range Waits(calls, workers) {
					sum += w
				}
				want := MMC(rate, 1, workers)
				if name == "M/D/c" {
					want = MDC(rate, 1, workers)
				}
				near(t, name, sum/float64(len(calls)), want, 0.06)
			}
		}
	}
}

func TestAnIdealQueueServesInOrder(t *testing.T) {
	calls := []Call{{0, 10}, {1, 2}, {2, 5}, {2.5, 1}, {20, 1}}
	for i, want := range []float64{0, 0, 1, 5.5, 0} {
		if got := Waits(calls, 2)[i]; got != want {
			t.Errorf("call %d waits %v, want %v", i, got, want)
		}
	}
}
