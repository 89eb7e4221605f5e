// Command experiments repeats the paper's experiments: by theory, by simulation, and with the running
// system. It writes CSV and SVG files, and prints where it is and what came out. bin/ must be built.
//
//	go run ./tests/experiments [flags] [step …]
//
// Steps can be run one by one, since each puts its rows into the files that are there:
//
//	simulate5 simulate6   the two figures by simulation
//	rate                  the highest rate that the machine holds without error
//	run5 run6             the two figures with issuer, provider, function and clients
//	cost                  calls with tokens against calls without
//	queue                 fwatchdog's queue against M/M/c and M/D/c
//	draw                  the figures and tables of what was measured
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "experiments:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("experiments", flag.ContinueOnError)
	e := &experiments{scale: long, say: os.Stdout}
	flags.StringVar(&e.out, "out", "docs/experiments", "directory of the CSV and SVG files")
	flags.StringVar(&e.bin, "bin", "bin", "directory of faas-predict and fwatchdog")
	flags.Float64Var(&e.rate, "rate", 0, "calls/s for run5 and cost; 0 is what a search finds at the start of each step")
	flags.Float64Var(&e.tokenRate, "token-rate", 0, "calls/s for run6, likewise")
	flags.IntVar(&e.onlyClients, "clients", 0, "run6 with so many clients only, to take it in pieces; 0 is all")
	flags.Float64Var(&e.onlyLoad, "load", 0, "queue with this load only, likewise")
	brief := flags.Bool("short", false, "the short form: fewer points, less exact, in under two minutes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *brief {
		e.scale = short
	}
	return e.steps(ctx, flags.Args())
}
