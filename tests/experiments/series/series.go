// Package series plans and evaluates a series of measurements by the paper's (3) to (7).
package series

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"
)

// Pilot is the least length of a preliminary series, from which the standard deviation is taken.
const Pilot = 100

// Plan is how sure and how exact a mean has to be.
type Plan struct {
	Confidence float64 // p: probability that the interval holds the expected value, between 0 and 1
	Relative   float64 // δ over the series' own mean, above 0
	Most       int     // bound on n; 0 is none
}

// T solves (5), 2Φ(t) = p, where Φ is the Laplace function: the normal density from 0 to t.
func (p Plan) T() float64 { return distuv.UnitNormal.Quantile((1 + p.Confidence) / 2) }

// Length is n by (7) from a pilot series: the least n ≥ (t·s/δ)², and no less than the pilot itself.
// s is the pilot's measured standard deviation. The paper's σ ≈ √λ holds for Poisson flows only: a flow
// of token requests is more even than that in windows that are not short against a token's lifetime,
// and √λ would ask for many times the measurements that it needs.
func (p Plan) Length(pilot []float64) int {
	s := Evaluate(pilot, p.Confidence)
	delta := p.Relative * s.Mean
	if s.S == 0 || delta == 0 {
		return len(pilot)
	}
	n := math.Ceil(math.Pow(p.T()*s.S/delta, 2))
	if p.Most > 0 {
		n = min(n, float64(p.Most))
	}
	return max(len(pilot), int(n))
}

// Run takes the pilot, computes n, and takes what is missing. measure returns so many values.
func (p Plan) Run(measure func(n int) ([]float64, error)) (Series, error) {
	pilot := Pilot
	if p.Most > 0 {
		pilot = min(pilot, p.Most)
	}
	values, err := measure(pilot)
	if err != nil {
		return Series{}, err
	}
	if len(values) != pilot {
		return Series{}, fmt.Errorf("the pilot has %d measurements, want %d", len(values), pilot)
	}
	planned := p.Length(values)
	if missing := planned - pilot; missing > 0 {
		more, err := measure(missing)
		if err != nil {
			return Series{}, err
		}
		values = append(values, more...)
	}
	return Evaluate(values, p.Confidence), nil
}

// Series is what a series of measurements says.
type Series struct {
	N    int     // n
	Mean float64 // (3)
	S    float64 // (4), with n − 1
	Half float64 // δ by (6): half of the confidence interval
}

// Evaluate computes (3), (4) and (6).
func Evaluate(values []float64, confidence float64) Series {
	s := Series{N: len(values)}
	s.Mean, s.S = stat.MeanStdDev(values, nil)
	if s.N < 2 {
		s.S = 0
	}
	s.Half = Plan{Confidence: confidence}.T() * s.S / math.Sqrt(float64(s.N))
	return s
}

// Low and High are the ends of the confidence interval.
func (s Series) Low() float64 { return s.Mean - s.Half }

// High is its upper end.
func (s Series) High() float64 { return s.Mean + s.Half }

// Holds says whether a value lies within the interval. A series without any spread holds its mean only,
// but for rounding.
func (s Series) Holds(value float64) bool {
	return math.Abs(value-s.Mean) <= s.Half+1e-12*math.Abs(s.Mean)
}
