package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/faas-predict/faas-predict/tests/experiments/figure"
	"github.com/faas-predict/faas-predict/tests/experiments/queue"
	"github.com/faas-predict/faas-predict/tests/experiments/running"
	"github.com/faas-predict/faas-predict/tests/experiments/series"
)

// queueFile is the file of fwatchdog's queue.
const queueFile = "queue"

// service is the mean time in predict, in seconds.
const service = 0.050

// kinds of service times.
var kinds = []struct {
	name   string
	draw   func(*rand.Rand) float64
	theory func(rate, service float64, workers int) float64
}{
	{"M/M/c", func(r *rand.Rand) float64 { return r.ExpFloat64() * service }, queue.MMC},
	{"M/D/c", func(*rand.Rand) float64 { return service }, queue.MDC},
}

// batches are parts of a load whose means are taken for independent, for an interval of the mean wait.
const batches = 20

// queueing compares fwatchdog's Server-Timing with theory. Since predict sleeps, all kinds and numbers
// of workers are measured at the same time.
func (e *experiments) queueing(ctx context.Context) error {
	for _, load := range e.loads {
		if e.onlyLoad != 0 && e.onlyLoad != load {
			continue
		}
		length := e.queueFor
		if load > 0.9 {
			length *= 2 // its queue takes long to forget
		}
		e.sayf("%.0f %% load, for %v\n", 100*load, length)
		rows := make([]figure.Row, len(kinds)*e.workers)
		var group errgroup.Group
		for k := range kinds {
			for workers := 1; workers <= e.workers; workers++ {
				group.Go(func() error {
					row, err := e.queueRow(ctx, k, workers, load, length)
					rows[k*e.workers+workers-1] = row
					return err
				})
			}
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for _, r := range rows {
			e.sayf("%-14s load %.2f: waits %8.3f ms ± %-7.3f theory %8.3f, inside: %-5v %s\n", r.Line, r.X, r.Mean, (r.High-r.Low)/2, r.Theory, r.Inside, r.Remark)
		}
		if err := figure.Put(e.file(queueFile+".csv"), rows); err != nil {
			return err
		}
	}
	return nil
}

// queueRow measures one kind with so many workers at one load. Times in the row are milliseconds.
func (e *experiments) queueRow(ctx context.Context, k, workers int, load float64, length time.Duration) (figure.Row, error) {
	w, err := running.StartWatchdog(ctx, e.bin, workers)
	if err != nil {
		return figure.Row{}, err
	}
	defer w.Close()
	rate := load * float64(workers) / service
	served, err := w.Serve(ctx, rate, length, uint64(1000*load)+uint64(10*workers+k), kinds[k].draw)
	if err != nil {
		return figure.Row{}, err
	}
	calls := make([]queue.Call, len(served))
	var waits, means []float64
	busy := 0.0
	for i, s := range served {
		calls[i] = s.Call
		busy += s.Service
		waits = append(waits, s.Queue*1000)
	}
	for i := range batches {
		means = append(means, mean(waits[i*len(waits)/batches:(i+1)*len(waits)/batches]))
	}
	ideal := 1000 * mean(queue.Waits(calls, workers))
	theory := 1000 * kinds[k].theory(rate, service, workers)
	r := row(fmt.Sprintf("%s, c = %d", kinds[k].name, workers), load, rate, length.Seconds()/batches, 0, theory, series.Evaluate(means, confidence))
	r.SPoisson = 0
	r.Remark = fmt.Sprintf("an ideal queue with these %d calls %.3f ms; in predict %.3f ms, measured load %.3f",
		len(served), ideal, 1000*busy/float64(len(served)), busy/float64(workers)/served[len(served)-1].Arrives)
	return r, nil
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// drawQueue draws what queueing measured: mean waits by load.
func (e *experiments) drawQueue() error {
	lines, err := e.lines(queueFile)
	if err != nil || len(lines) == 0 {
		return err
	}
	p := figure.Plot{
		LegendLeft: true,
		Title:      "Mean wait before a predict of 50 ms",
		X:          figure.Axis{Label: "load ρ", Min: 0.45, Max: 1}, Y: figure.Axis{Label: "mean wait, ms", Log: true, Min: 1, Max: 10_000},
	}
	for k, kind := range kinds {
		for workers := 1; workers <= long.workers; workers++ {
			c := figure.Curve{Like: workers - 1, Dashed: k > 0}
			for load := 0.48; load < 0.965; load += 0.01 {
				c.Points = append(c.Points, [2]float64{load, 1000 * kind.theory(load*float64(workers)/service, service, workers)})
			}
			if workers == 1 {
				c.Name = kind.name + ", theory"
			}
			p.Curves = append(p.Curves, c)
			line := fmt.Sprintf("%s, c = %d", kind.name, workers)
			p.Points = append(p.Points, figure.Points{Name: line, Rows: lines[line], Like: workers - 1, Hollow: k > 0})
		}
	}
	return p.Draw(e.file(queueFile + ".svg"))
}
