package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/faas-predict/faas-predict/tests/experiments/figure"
)

// tables writes everything that was measured as tables.md.
func (e *experiments) tables() error {
	var b strings.Builder
	b.WriteString("# The experiments' series\n\nWritten by the step `draw` from the CSV files beside it; what it means is in [README.md](README.md).\n")
	for _, t := range []struct{ file, title, x, poisson string }{
		{modelFile, "Requests to the model, 1/s", "b", "√λ"}, {tokenFile, "Token requests, 1/s", "T, s", "√λ"}, {queueFile, "Mean wait in fwatchdog's queue, ms", "load", ""},
	} {
		rows, err := figure.Read(e.file(t.file + ".csv"))
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			continue
		}
		inside := 0
		fmt.Fprintf(&b, "\n## %s\n\n| line | %s | offered, 1/s | window, s | n | mean | s | √λ of as long a window | 95 %% interval | theory | inside | |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n", t.title, t.x)
		for _, r := range rows {
			poisson, within := "", "no"
			if t.poisson != "" {
				poisson = short4(r.SPoisson)
			}
			if r.Inside {
				within = "yes"
				inside++
			}
			fmt.Fprintf(&b, "| %s | %g | %.0f | %.3g | %d | %s | %s | %s | %s to %s | %s | %s | %s |\n", r.Line, r.X, r.Offered, r.Window, r.N,
				exact(r.Mean, r), short4(r.S), poisson, exact(r.Low, r), exact(r.High, r), exact(r.Theory, r), within, r.Remark)
		}
		fmt.Fprintf(&b, "\nTheory lies inside %d of %d intervals.\n", inside, len(rows))
	}
	return os.WriteFile(e.file("tables.md"), []byte(b.String()), 0o644)
}

func short4(v float64) string { return fmt.Sprintf("%.4g", v) }

// exact prints a value to a tenth of its interval.
func exact(v float64, r figure.Row) string {
	decimals := 0
	for half := (r.High - r.Low) / 2; half > 0 && half < 5 && decimals < 5; half *= 10 {
		decimals++
	}
	return fmt.Sprintf("%.*f", decimals, v)
}
