package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"
)

// What a stored byte and a second of a core are against each other. A core costs 0.04 USD an hour and a
// gigabyte of object storage 0.023 USD a month; over a year a second is then worth as much as 40,000
// bytes. Each block is read twice.
const (
	secondInBytes = 40_000.0 // κ
	reads         = 2.0      // R
)

// measured is a row of measure.
type measured struct {
	root     string
	fold     int
	features features
	describe float64 // seconds
	outcomes []outcome
}

// outcome is what a codec does to a block.
type outcome struct{ bytes, compress, decompress float64 }

// cost is in bytes.
func (o outcome) cost() float64 { return o.bytes + secondInBytes*(o.compress+reads*o.decompress) }

func readMeasured(path string) ([]measured, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	r := csv.NewReader(in)
	head, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !slices.Equal(head, columns()) {
		return nil, fmt.Errorf("%s was not made by this program's measure: its columns are %v", path, head)
	}
	var all []measured
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		numbers := make([]float64, len(record)-1)
		for i, text := range record[1:] {
			if numbers[i], err = strconv.ParseFloat(text, 64); err != nil {
				return nil, fmt.Errorf("%s, column %s: %w", path, head[i+1], err)
			}
		}
		m := measured{root: record[0], fold: int(numbers[0])}
		rest := numbers[1:]
		rest = rest[copy(m.features[:], rest):]
		m.describe, rest = rest[0], rest[1:]
		for ; len(rest) >= 3; rest = rest[3:] {
			m.outcomes = append(m.outcomes, outcome{rest[0], rest[1], rest[2]})
		}
		all = append(all, m)
	}
}

// policy chooses among a block's outcomes, and adds what choosing costs.
type policy struct {
	name   string
	choose func(i int, m measured) (choice int, charged float64)
}

// judge prints what policies cost over the blocks that no training saw.
func judge(ctx context.Context, w io.Writer, choose chooser, path string) error {
	all, err := readMeasured(path)
	if err != nil {
		return err
	}
	blocks := slices.DeleteFunc(all, func(m measured) bool { return !tested(m.fold) })
	if len(blocks) == 0 {
		return fmt.Errorf("%s has no blocks of the folds for judging", path)
	}
	choices := make([]int, len(blocks))
	began := time.Now()
	for from := 0; from < len(blocks); from += batch {
		part := blocks[from:min(from+batch, len(blocks))]
		described := make([]features, len(part))
		for i, m := range part {
			described[i] = m.features
		}
		names, err := choose.choose(ctx, described)
		if err != nil {
			return err
		}
		for i, name := range names {
			choices[from+i] = position(name)
		}
	}
	called := time.Since(began).Seconds() / float64(len(blocks))
	report(w, blocks, policies(choices, called))
	fmt.Fprintf(w, "a call is %.1f µs a block, features %.1f µs; both are charged to the model\n", called*1e6, 1e6*mean(blocks, func(m measured) float64 { return m.describe }))
	return nil
}

func position(name string) int {
	return slices.IndexFunc(codecs, func(c codec) bool { return c.name == name })
}

func policies(choices []int, called float64) []policy {
	var all []policy
	for i, c := range codecs {
		all = append(all, policy{"always " + c.name, func(int, measured) (int, float64) { return i, 0 }})
	}
	none, best := position("none"), position("zstd-best")
	return append(all,
		policy{"rule: none above 7.9 bits, else zstd-best", func(_ int, m measured) (int, float64) {
			// The entropy alone takes a fraction of a pass; a quarter of the features' time is charged.
			if m.features[1] > 7.9 {
				return none, secondInBytes * m.describe / 4
			}
			return best, secondInBytes * m.describe / 4
		}},
		policy{"the model", func(i int, m measured) (int, float64) { return choices[i], secondInBytes * (m.describe + called) }},
		policy{"oracle", func(_ int, m measured) (int, float64) {
			cheapest := 0
			for i, o := range m.outcomes {
				if o.cost() < m.outcomes[cheapest].cost() {
					cheapest = i
				}
			}
			return cheapest, 0
		}},
	)
}

func report(w io.Writer, blocks []measured, all []policy) {
	raw := 0.0
	for _, m := range blocks {
		raw += m.features[0]
	}
	fmt.Fprintf(w, "%d blocks of %.1f MB in directories that no training saw; κ = %.0f bytes/s, R = %g\n\n", len(blocks), raw/1e6, secondInBytes, reads)
	fmt.Fprintf(w, "| policy | bytes, MB | compression, s | decompression, s | cost, MB | against the best codec |\n|---|---|---|---|---|---|\n")
	fixed := 0.0
	for i, p := range all {
		var sum outcome
		cost := 0.0
		for j, m := range blocks {
			choice, charged := p.choose(j, m)
			o := m.outcomes[choice]
			sum.bytes, sum.compress, sum.decompress = sum.bytes+o.bytes, sum.compress+o.compress, sum.decompress+o.decompress
			cost += o.cost() + charged
		}
		if i < len(codecs) && (fixed == 0 || cost < fixed) {
			fixed = cost
		}
		against := ""
		if i >= len(codecs) {
			against = fmt.Sprintf("%+.2f %%", 100*(cost/fixed-1))
		}
		fmt.Fprintf(w, "| %s | %.3f | %.2f | %.2f | %.3f | %s |\n", p.name, sum.bytes/1e6, sum.compress, sum.decompress, cost/1e6, against)
	}
	fmt.Fprintln(w)
}

func mean(blocks []measured, of func(measured) float64) float64 {
	sum := 0.0
	for _, m := range blocks {
		sum += of(m)
	}
	return sum / float64(len(blocks))
}
