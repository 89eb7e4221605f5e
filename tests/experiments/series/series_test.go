package series

import (
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"
)

func TestTComesFromTheLaplaceFunction(t *testing.T) {
	for p, want := range map[float64]float64{0.6827: 1.0000, 0.95: 1.9600, 0.99: 2.5758} {
		if got := (Plan{Confidence: p}).T(); math.Abs(got-want) > 1e-3 {
			t.Errorf("p = %v: t = %v, want %v", p, got, want)
		}
	}
}

func TestLengthFollowsTheMeasuredDeviation(t *testing.T) {
	// Mean 10,000 and s = 100: a Poisson flow of 10,000 in windows of a second.
	pilot := make([]float64, Pilot)
	for i := range pilot {
		pilot[i] = 10_000 + 100*math.Sqrt(99.0/100)*float64(1-2*(i%2))
	}
	for relative, want := range map[float64]int{0.0001: 38_415, 0.001: 385, 0.01: Pilot} {
		if got := (Plan{Confidence: 0.95, Relative: relative}).Length(pilot); got != want {
			t.Errorf("accuracy %v: n = %d, want %d", relative, got, want)
		}
	}
	if got := (Plan{Confidence: 0.95, Relative: 0.0001, Most: 500}).Length(pilot); got != 500 {
		t.Errorf("bounded: n = %d", got)
	}
	if got := (Plan{Confidence: 0.95, Relative: 0.0001}).Length(make([]float64, Pilot)); got != Pilot {
		t.Errorf("nothing ever happens: n = %d, want the pilot", got)
	}
}

func TestRunReachesItsAccuracyAndCoversTheMean(t *testing.T) {
	const rounds, mean = 400, 100.0
	source := distuv.Poisson{Lambda: mean, Src: rand.NewPCG(1, 2)}
	held := 0
	for range rounds {
		s, err := Plan{Confidence: 0.95, Relative: 0.01}.Run(func(n int) ([]float64, error) {
			values := make([]float64, n)
			for i := range values {
				values[i] = source.Rand()
			}
			return values, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		// n was taken from the pilot's deviation, which is itself a measurement.
		if s.Half > 0.0125*s.Mean {
			t.Fatalf("n = %d gave an interval of %v on each side of %v", s.N, s.Half, s.Mean)
		}
		if s.Holds(mean) {
			held++
		}
	}
	// 380 are expected, with a standard deviation of 4.4.
	if held < 362 || held > 396 {
		t.Errorf("%d of %d intervals hold the mean, want about 95 in 100", held, rounds)
	}
}

func TestEvaluateDividesByOneLess(t *testing.T) {
	s := Evaluate([]float64{2, 4, 4, 4, 5, 5, 7, 9}, 0.95)
	if s.N != 8 || s.Mean != 5 || math.Abs(s.S-math.Sqrt(32.0/7)) > 1e-12 {
		t.Errorf("%+v", s)
	}
	if !s.Holds(s.Low()) || !s.Holds(s.High()) || s.Holds(s.High()+0.001) {
		t.Errorf("the interval %v to %v", s.Low(), s.High())
	}
}
