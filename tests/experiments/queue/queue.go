// Package queue has what queueing theory says of one function: Poisson calls, so many workers, one queue
// that is served in the order of arrival. Times are in seconds.
package queue

import (
	"math"

	"gonum.org/v1/gonum/mathext"
	"gonum.org/v1/gonum/stat/distuv"
)

// ErlangC is the probability that a call has to wait in M/M/c: workers c, offered load a = λ·S < c.
func ErlangC(workers int, offered float64) float64 {
	c := float64(workers)
	// Erlang's B by the regularised incomplete gamma function: B = pmf(c)/cdf(c) of a Poisson variable.
	poisson := distuv.Poisson{Lambda: offered}
	blocked := poisson.Prob(c) / mathext.GammaIncRegComp(c+1, offered)
	return blocked / (1 - offered/c*(1-blocked))
}

// MMC is the mean wait in M/M/c: calls/s λ, mean service time S, workers c, λ·S < c.
func MMC(rate, service float64, workers int) float64 {
	return ErlangC(workers, rate*service) * service / (float64(workers) - rate*service)
}

// MDC is the mean wait in M/D/c. With a service time D that never varies, whatever is served at some
// time is gone a time D later, and nothing that came since is, so that the number of calls in the
// system follows L' = max(L − c, 0) + Poisson(λD) (Crommelin). The stationary distribution of that chain
// gives the mean queue, and Little's law the wait.
func MDC(rate, service float64, workers int) float64 {
	a := rate * service
	// The tail falls by exp(−2(1−ρ)/…) or faster; this holds all but less than 1e−12 up to ρ = 0.98.
	states := workers + int(30/(1-a/float64(workers))) + 60
	arrive := make([]float64, 0, states)
	poisson := distuv.Poisson{Lambda: a}
	for k := range states {
		p := poisson.Prob(float64(k))
		if float64(k) > a && p < 1e-16 {
			break
		}
		arrive = append(arrive, p)
	}
	now, next := make([]float64, states), make([]float64, states)
	now[0] = 1
	for range 1_000_000 {
		clear(next)
		for l, p := range now {
			left := max(l-workers, 0)
			for k, q := range arrive {
				next[min(left+k, states-1)] += p * q
			}
		}
		change := 0.0
		for l := range now {
			change += math.Abs(next[l] - now[l])
		}
		now, next = next, now
		if change < 1e-12 {
			break
		}
	}
	waiting := 0.0
	for l, p := range now {
		waiting += float64(max(l-workers, 0)) * p
	}
	return waiting / rate
}

// Call is one that an ideal queue serves.
type Call struct{ Arrives, Service float64 }

// Waits are those of an ideal queue for exactly these calls, in the order of their arrival: each goes to
// the worker that is free first (Kiefer and Wolfowitz). What a real queue differs from it is its own,
// and not the chance of these arrivals.
func Waits(calls []Call, workers int) []float64 {
	free := make([]float64, workers)
	waits := make([]float64, len(calls))
	for i, c := range calls {
		first := 0
		for w := range free {
			if free[w] < free[first] {
				first = w
			}
		}
		begins := math.Max(c.Arrives, free[first])
		waits[i] = begins - c.Arrives
		free[first] = begins + c.Service
	}
	return waits
}
