package main

import (
	"context"
	"encoding/csv"
	"flag"
	"fmt"
	"image/color"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/faas-predict/faas-predict/tests/autoscaling/stage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "autoscaling:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	files := flag.String("files", "docs/autoscaling", "folder with the configuration of Prometheus and Alertmanager")
	out := flag.String("out", "docs/autoscaling", "folder for scenario.csv and scenario.svg")
	faster := flag.Int("faster", 1, "divide the times in the configuration, and the scenario's, by this")
	flag.Parse()
	bin, err := os.MkdirTemp("", "autoscaling-bin")
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	if err := stage.Build(bin); err != nil {
		return err
	}
	s, err := stage.Open(ctx, bin, *files, *faster)
	if err != nil {
		return err
	}
	defer func() {
		if err := s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "autoscaling:", err)
		}
	}()
	minutes := func(n float64) time.Duration { return time.Duration(n*float64(time.Minute)) / time.Duration(*faster) }
	phases := []Phase{{minutes(0.5), 0}, {minutes(3), 80}, {minutes(3), 160}, {minutes(6), 80}, {minutes(6.5), 0}}
	fmt.Println("a function of 20 ms, 1 to 8 replicas; load in calls a second, Poisson:")
	for _, p := range phases {
		fmt.Printf("  %g for %s\n", p.Rate, p.For)
	}
	moments, err := Run(ctx, s, phases, nil, 5*time.Second/time.Duration(*faster))
	if err != nil {
		return err
	}
	calls, shed, failed := 0, 0, 0
	for _, m := range moments {
		calls, shed, failed = calls+m.Calls, shed+m.Shed, failed+m.Failed
	}
	fmt.Printf("%d calls, %d of them answered 429, %d failed\n", calls, shed, failed)
	if err := writeCSV(filepath.Join(*out, "scenario.csv"), moments); err != nil {
		return err
	}
	return drawSVG(filepath.Join(*out, "scenario.svg"), moments)
}

func writeCSV(path string, moments []Moment) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := csv.NewWriter(f)
	rows := [][]string{{"seconds", "calls", "p99_ms", "answered_429", "failed", "replicas"}}
	for _, m := range moments {
		rows = append(rows, []string{
			strconv.FormatFloat(m.At.Seconds(), 'g', -1, 64), strconv.Itoa(m.Calls),
			strconv.FormatFloat(float64(m.P99.Microseconds())/1000, 'f', 1, 64),
			strconv.Itoa(m.Shed), strconv.Itoa(m.Failed), strconv.Itoa(m.Replicas),
		})
	}
	if err := w.WriteAll(rows); err != nil {
		return err
	}
	return f.Close()
}

// drawSVG draws four panels over the same time: load, replicas, p99 and calls that were turned away.
func drawSVG(path string, moments []Moment) error {
	interval := moments[1].At.Seconds()
	panels := []struct {
		what  string
		value func(Moment) float64
	}{
		{"calls/s", func(m Moment) float64 { return float64(m.Calls) / interval }},
		{"replicas", func(m Moment) float64 { return float64(m.Replicas) }},
		{"p99, ms", func(m Moment) float64 { return float64(m.P99.Microseconds()) / 1000 }},
		{"429 and failed", func(m Moment) float64 { return float64(m.Shed + m.Failed) }},
	}
	plots := make([][]*plot.Plot, len(panels))
	for i, panel := range panels {
		p := plot.New()
		p.Y.Label.Text = panel.what
		p.Y.Min = 0
		p.Add(plotter.NewGrid())
		points := make(plotter.XYs, len(moments))
		for j, m := range moments {
			points[j] = plotter.XY{X: m.At.Minutes(), Y: panel.value(m)}
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return err
		}
		line.StepStyle = plotter.PostStep
		line.Color = color.RGBA{R: 31, G: 119, B: 180, A: 255}
		p.Add(line)
		if p.Y.Max < 1 {
			p.Y.Max = 1
		}
		plots[i] = []*plot.Plot{p}
	}
	plots[len(plots)-1][0].X.Label.Text = "minutes"
	canvas := vgsvg.New(22*vg.Centimeter, 22*vg.Centimeter)
	cells := plot.Align(plots, draw.Tiles{Rows: len(plots), Cols: 1, PadY: 4 * vg.Millimeter}, draw.New(canvas))
	for i := range plots {
		plots[i][0].Draw(cells[i][0])
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := canvas.WriteTo(f); err != nil {
		return err
	}
	return f.Close()
}
