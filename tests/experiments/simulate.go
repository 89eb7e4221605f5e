package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/faas-predict/faas-predict/tests/experiments/figure"
	"github.com/faas-predict/faas-predict/tests/experiments/flow"
	"github.com/faas-predict/faas-predict/tests/experiments/series"
	"github.com/faas-predict/faas-predict/tests/experiments/simulation"
)

// point is one point of a figure by simulation.
type point struct {
	line   string
	x      float64
	cfg    simulation.Config
	count  func(simulation.Window) int
	theory float64
}

// simulate plays points, as many at once as there are cores, and puts their rows into a file.
func (e *experiments) simulate(ctx context.Context, file string, relative float64, points []point) error {
	rows := make([]figure.Row, len(points))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	var mu sync.Mutex
	for i, p := range points {
		group.Go(func() error {
			s, err := simulation.New(p.cfg)
			if err != nil {
				return err
			}
			result, err := series.Plan{Confidence: confidence, Relative: relative}.Run(func(n int) ([]float64, error) {
				values := make([]float64, 0, n)
				for len(values) < n {
					if err := ctx.Err(); err != nil {
						return nil, err
					}
					s.Run(1, func(w simulation.Window) { values = append(values, float64(p.count(w))/p.cfg.Window) })
				}
				return values, nil
			})
			if err != nil {
				return err
			}
			rows[i] = row(p.line, p.x, p.cfg.Offered, p.cfg.Window, relative, p.theory, result)
			mu.Lock()
			defer mu.Unlock()
			e.sayRow(rows[i])
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return figure.Put(e.file(file+".csv"), rows)
}

// simulateModel is Fig. 5.
func (e *experiments) simulateModel(ctx context.Context) error {
	var points []point
	for i, b := range e.bad {
		f, err := flow.System{Offered: offered, Bad: b, Clients: 1000, Instances: 1, Lifetime: 1}.Flows()
		if err != nil {
			return err
		}
		points = append(points, point{
			line: "simulation", x: b, theory: f.Predict,
			cfg:   simulation.Config{Offered: offered, Bad: b, Caches: 1000, Lifetime: 1, Window: 1, Seed: uint64(i) + 1},
			count: func(w simulation.Window) int { return w.Model },
		})
	}
	return e.simulate(ctx, modelFile, e.simulated[0], points)
}

// simulateTokens is Fig. 6. Windows are many lifetimes long where that makes them longer than a second:
// the flow is then so even that a few hundred of them are enough.
func (e *experiments) simulateTokens(ctx context.Context) error {
	var points []point
	for _, clients := range e.clients {
		for i, lifetime := range e.lifetimes {
			theory, err := tokenTheory(offered, lifetime, clients)
			if err != nil {
				return err
			}
			points = append(points, point{
				line: fmt.Sprintf("simulation, N = %d", clients), x: lifetime, theory: theory,
				cfg:   simulation.Config{Offered: offered, Caches: clients, Lifetime: lifetime, Window: max(1, 10*lifetime), Seed: uint64(clients + i)},
				count: func(w simulation.Window) int { return w.Tokens },
			})
		}
	}
	return e.simulate(ctx, tokenFile, e.simulated[1], points)
}
