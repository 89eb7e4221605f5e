package main

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/faas-predict/faas-predict/tests/experiments/figure"
	"github.com/faas-predict/faas-predict/tests/experiments/flow"
)

// draw makes the figures of what the files have.
func (e *experiments) draw(context.Context) error {
	for _, draw := range []func() error{e.drawModel, e.drawTokens, e.drawQueue, e.tables} {
		if err := draw(); err != nil {
			return err
		}
	}
	return nil
}

// lines returns the rows of a file by their line.
func (e *experiments) lines(file string) (map[string][]figure.Row, error) {
	rows, err := figure.Read(e.file(file + ".csv"))
	byLine := map[string][]figure.Row{}
	for _, r := range rows {
		byLine[r.Line] = append(byLine[r.Line], r)
	}
	return byLine, err
}

// rates are the intensities that rows were offered, without those alike.
func rates(rows map[string][]figure.Row) []float64 {
	var all []float64
	for _, line := range rows {
		for _, r := range line {
			if !slices.Contains(all, r.Offered) {
				all = append(all, r.Offered)
			}
		}
	}
	slices.SortFunc(all, func(a, b float64) int { return int(math.Copysign(1, b-a)) })
	return all
}

func (e *experiments) drawModel() error {
	lines, err := e.lines(modelFile)
	if err != nil {
		return err
	}
	p := figure.Plot{
		LegendLeft: true, LegendBottom: true,
		Title: "Requests that reach the model, by the probability of a bad token",
		X:     figure.Axis{Label: "probability of a bad token b"}, Y: figure.Axis{Label: "requests to the model λp, 1/s"},
	}
	for i, rate := range rates(lines) {
		p.Curves = append(p.Curves, figure.Curve{
			Name: fmt.Sprintf("theory, G = %.0f/s", rate), Points: [][2]float64{{0, rate}, {1, 0}}, Like: i, Dashed: i > 0,
		})
	}
	for i, name := range []string{"simulation", runningLine} {
		p.Points = append(p.Points, figure.Points{Name: name, Rows: lines[name], Like: min(i, len(p.Curves)-1), Hollow: i > 0})
	}
	return p.Draw(e.file(modelFile + ".svg"))
}

func (e *experiments) drawTokens() error {
	lines, err := e.lines(tokenFile)
	if err != nil {
		return err
	}
	p := figure.Plot{
		LegendLeft: true, LegendBottom: true,
		Title: "Token requests, by the lifetime of a token",
		X:     figure.Axis{Label: "lifetime of a token T, s", Log: true, Min: 0.008, Max: 130},
		Y:     figure.Axis{Label: "token requests λt, 1/s", Log: true, Min: 0.1, Max: 20_000},
	}
	for i, rate := range rates(lines) {
		for k, clients := range long.clients {
			c := figure.Curve{Like: k, Dashed: i > 0, Name: fmt.Sprintf("theory, G = %.0f/s, N = %d", rate, clients)}
			for exponent := -2.1; exponent <= 2.11; exponent += 0.05 {
				lifetime := math.Pow(10, exponent)
				c.Points = append(c.Points, [2]float64{lifetime, flow.TokenFlow(rate, lifetime, clients)})
			}
			p.Curves = append(p.Curves, c)
		}
	}
	for k, clients := range long.clients {
		for i, name := range []string{"simulation", runningLine} {
			line := fmt.Sprintf("%s, N = %d", name, clients)
			p.Points = append(p.Points, figure.Points{Name: line, Rows: lines[line], Like: k, Hollow: i > 0})
		}
	}
	return p.Draw(e.file(tokenFile + ".svg"))
}

// runningLine is the running system's line in both figures.
const runningLine = "running system"
