package main

import (
	"context"
	"encoding/csv"
	"math"
	"os"
	"strconv"
	"time"

	"github.com/faas-predict/faas-predict/tests/experiments/running"
	"github.com/faas-predict/faas-predict/tests/experiments/series"
)

// costHead are the columns of token-cost.csv: a pair of rounds, one without tokens and one with.
var costHead = []string{"pair", "rate", "most_without", "most_with", "median_ms_without", "median_ms_with", "p99_ms_without", "p99_ms_with"}

// tokenCost is the paper's conclusion measured: calls that carry a token, of a function that wants one,
// against calls without, of one that does not. Rounds alternate, and which comes first does too, so that
// what the machine does meanwhile meets both.
func (e *experiments) tokenCost(ctx context.Context) error {
	return e.withSystem(ctx, func(s *running.System) error {
		rate, err := e.findRate(ctx, s, e.rate, running.Load{Clients: 1000}, running.Load{Clients: 1000, Open: true})
		if err != nil {
			return err
		}
		records := [][]string{costHead}
		var throughput, median, tail []float64
		for pair := range e.pairs {
			// By rate and then without and with: full load for the throughput, half of the held rate for latencies,
			// where a call meets few others.
			var results [2][2]running.Result
			for k, offered := range []float64{math.Inf(1), rate / 2} {
				for i := range 2 {
					with := (i + pair) % 2
					l := running.Load{Rate: offered, Length: e.round, Window: time.Second / 10, Clients: 1000, Open: with == 0, Seed: uint64(pair + 1)}
					if results[k][with], err = s.Play(ctx, l); err != nil {
						return err
					}
				}
			}
			most := func(with int) float64 { return float64(results[0][with].Calls) / results[0][with].Took.Seconds() }
			ms := func(with int, share float64) float64 {
				return results[1][with].Latencies.Quantile(share).Seconds() * 1000
			}
			record := []string{strconv.Itoa(pair + 1), strconv.FormatFloat(rate/2, 'f', 0, 64)}
			for _, v := range []float64{most(0), most(1), ms(0, 0.5), ms(1, 0.5), ms(0, 0.99), ms(1, 0.99)} {
				record = append(record, strconv.FormatFloat(v, 'f', 3, 64))
			}
			e.sayf("pair %2d: %v\n", pair+1, record[2:])
			records = append(records, record)
			throughput = append(throughput, 100*(most(1)/most(0)-1))
			median = append(median, ms(1, 0.5)-ms(0, 0.5))
			tail = append(tail, ms(1, 0.99)-ms(0, 0.99))
		}
		for _, c := range []struct {
			what   string
			values []float64
		}{{"most calls/s, with tokens against without, %", throughput}, {"median latency, ms more", median}, {"99th percentile, ms more", tail}} {
			result := series.Evaluate(c.values, confidence)
			e.sayf("%-50s %+8.3f, %g interval %+.3f to %+.3f\n", c.what, result.Mean, confidence, result.Low(), result.High())
		}
		file, err := os.Create(e.file("token-cost.csv"))
		if err != nil {
			return err
		}
		defer file.Close()
		if err := csv.NewWriter(file).WriteAll(records); err != nil {
			return err
		}
		return file.Close()
	})
}
