package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/faas-predict/faas-predict/tests/experiments/figure"
	"github.com/faas-predict/faas-predict/tests/experiments/flow"
	"github.com/faas-predict/faas-predict/tests/experiments/series"
)

// offered is G in theory and simulation, the paper's 10,000 requests/s.
const offered = 10_000.0

const confidence = 0.95

// The files of the two figures.
const (
	modelFile = "requests-to-model"
	tokenFile = "token-requests"
)

// scale is how much is measured.
type scale struct {
	bad       []float64 // shares of bad tokens
	lifetimes []float64 // of tokens, in seconds
	clients   []int

	simulated [2]float64 // accuracies, relative, of the two figures by simulation
	running   [2]float64 // and with the running system
	most      int        // measurements of a point with the running system
	window    float64    // and the length of one, in seconds
	liveTimes []float64  // lifetimes with the running system
	strict    bool       // whether a load that is not held ends the run
	search    time.Duration
	pairs     int           // pairs of rounds with tokens and without
	round     time.Duration // length of one of them
	loads     []float64     // of the queue
	workers   int           // of it, at most
	queueFor  time.Duration // length of a load of it
	highest   float64       // rate that the search begins with
}

var long = scale{
	bad:       steps(11, 0, 1),
	lifetimes: []float64{0.01, 0.0316, 0.1, 0.316, 1, 3.16, 10, 31.6, 100},
	clients:   []int{100, 1000, 10_000},
	simulated: [2]float64{0.0001, 0.001}, running: [2]float64{0.03, 0.1}, most: 250, window: 0.04,
	liveTimes: []float64{0.01, 0.1, 1, 10, 100},
	strict:    true, search: 2 * time.Second, pairs: 8, round: 2 * time.Second, highest: 10_000,
	loads: []float64{0.5, 0.7, 0.8, 0.9, 0.95}, workers: 4, queueFor: 20 * time.Second,
}

var short = scale{
	bad:       steps(3, 0, 1),
	lifetimes: []float64{0.01, 0.1, 1},
	clients:   []int{100, 1000},
	simulated: [2]float64{0.01, 0.02}, running: [2]float64{0.05, 0.1}, most: 100, window: 0.05,
	liveTimes: []float64{0.1, 10},
	search:    time.Second, pairs: 2, round: time.Second, highest: 1000,
	loads: []float64{0.5, 0.8}, workers: 2, queueFor: 8 * time.Second,
}

func steps(n int, from, to float64) []float64 {
	all := make([]float64, n)
	for i := range all {
		all[i] = from + (to-from)*float64(i)/float64(n-1)
	}
	return all
}

// experiments is one run of the program.
type experiments struct {
	scale
	out, bin    string
	rate        float64 // calls/s to the running system; 0 is what is found
	tokenRate   float64 // the same for run6
	onlyLoad    float64 // the load that queue is for, likewise
	onlyClients int     // the number of clients that run6 is for, so that it can be taken in pieces; 0 is all
	say         io.Writer
}

func (e *experiments) steps(ctx context.Context, wanted []string) error {
	all := []struct {
		name string
		do   func(context.Context) error
	}{
		{"simulate5", e.simulateModel}, {"simulate6", e.simulateTokens},
		{"rate", e.findRates}, {"run5", e.runModel}, {"run6", e.runTokens}, {"cost", e.tokenCost}, {"queue", e.queueing},
		{"draw", e.draw},
	}
	names := make([]string, len(all))
	for i, step := range all {
		names[i] = step.name
	}
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no step %q; there are %v", name, names)
		}
	}
	if err := os.MkdirAll(e.out, 0o755); err != nil {
		return err
	}
	for _, step := range all {
		if len(wanted) > 0 && !slices.Contains(wanted, step.name) {
			continue
		}
		began := time.Now()
		e.sayf("== %s\n", step.name)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		e.sayf("== %s took %v\n", step.name, time.Since(began).Round(time.Second))
	}
	return nil
}

func (e *experiments) sayf(format string, args ...any) { fmt.Fprintf(e.say, format, args...) }

func (e *experiments) file(name string) string { return filepath.Join(e.out, name) }

// row makes a figure's row of a series.
func row(line string, x, offered, window, relative, theory float64, s series.Series) figure.Row {
	return figure.Row{
		Line: line, X: x, Offered: offered, Window: window, Relative: relative, N: s.N, Mean: s.Mean, S: s.S,
		SPoisson: math.Sqrt(s.Mean / window), Low: s.Low(), High: s.High(), Theory: theory, Inside: s.Holds(theory),
	}
}

// sayRow prints a row as it comes.
func (e *experiments) sayRow(r figure.Row) {
	e.sayf("%-40s x = %-7.4g n = %-6d mean %10.3f ± %-9.3g s %-9.3g (√λ %-9.3g) theory %10.3f, inside: %v\n",
		r.Line, r.X, r.N, r.Mean, (r.High-r.Low)/2, r.S, r.SPoisson, r.Theory, r.Inside)
}

// tokenTheory is λt of N clients that hold their tokens.
func tokenTheory(good, lifetime float64, clients int) (float64, error) {
	f, err := flow.System{Offered: good, Clients: clients, Instances: 1, Lifetime: lifetime}.Flows()
	return f.Token, err
}
