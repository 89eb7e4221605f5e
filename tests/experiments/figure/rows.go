// Package figure keeps the experiments' measurements as CSV and draws them as SVG. It measures nothing.
package figure

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
)

// Row is one point of one line of a figure: a series of measurements and what theory says of it.
type Row struct {
	Line     string  // what was measured how: "simulation, N = 1000"
	X        float64 // what was turned
	Offered  float64 // calls/s that clients offered
	Window   float64 // length of a measurement in seconds
	N        int     // measurements, as planned by (7) unless bounded
	Relative float64 // the accuracy that was planned for, δ over the mean
	Mean     float64 // (3)
	S        float64 // (4), measured
	SPoisson float64 // √(λ/window): s of a Poisson flow of the same mean in windows of that length
	Low      float64 // the confidence interval's ends
	High     float64
	Theory   float64
	Inside   bool // theory lies in the interval
	Remark   string
}

var head = []string{"line", "x", "offered", "window_s", "n", "relative", "mean", "s", "s_poisson", "low", "high", "theory", "inside", "remark"}

func (r Row) record() []string {
	f := func(v float64) string { return strconv.FormatFloat(v, 'g', 7, 64) }
	return []string{r.Line, f(r.X), f(r.Offered), f(r.Window), strconv.Itoa(r.N), f(r.Relative), f(r.Mean), f(r.S), f(r.SPoisson),
		f(r.Low), f(r.High), f(r.Theory), strconv.FormatBool(r.Inside), r.Remark}
}

func parse(record []string) (r Row, err error) {
	f := func(i int) float64 {
		v, e := strconv.ParseFloat(record[i], 64)
		err = errors.Join(err, e)
		return v
	}
	r = Row{Line: record[0], X: f(1), Offered: f(2), Window: f(3), Relative: f(5), Mean: f(6), S: f(7), SPoisson: f(8),
		Low: f(9), High: f(10), Theory: f(11), Remark: record[13]}
	var e error
	r.N, e = strconv.Atoi(record[4])
	err = errors.Join(err, e)
	r.Inside, e = strconv.ParseBool(record[12])
	return r, errors.Join(err, e)
}

// Read returns a file's rows, and none if it is not there.
func Read(path string) ([]Row, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	reader := csv.NewReader(file)
	reader.FieldsPerRecord = len(head)
	records, err := reader.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var rows []Row
	for i, record := range records {
		if i == 0 {
			continue
		}
		row, err := parse(record)
		if err != nil {
			return nil, fmt.Errorf("%s, record %d: %w", path, i+1, err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// Put writes rows into a file in the place of those with the same line and x, so that a figure can be
// measured in pieces.
func Put(path string, rows []Row) error {
	old, err := Read(path)
	if err != nil {
		return err
	}
	kept := slices.DeleteFunc(old, func(o Row) bool {
		return slices.ContainsFunc(rows, func(n Row) bool {
			return n.Line == o.Line && math.Abs(n.X-o.X) <= 1e-6*math.Abs(n.X)
		})
	})
	all := slices.Concat(kept, rows)
	slices.SortStableFunc(all, func(a, b Row) int {
		if a.Line != b.Line {
			if a.Line < b.Line {
				return -1
			}
			return 1
		}
		switch {
		case a.X < b.X:
			return -1
		case a.X > b.X:
			return 1
		}
		return 0
	})
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	w := csv.NewWriter(file)
	records := [][]string{head}
	for _, r := range all {
		records = append(records, r.record())
	}
	if err := w.WriteAll(records); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return file.Close()
}
