package main

import (
	"context"
	"fmt"
	"time"

	"github.com/faas-predict/faas-predict/tests/experiments/running"
)

// openLoop is the paper's flow: 10,000 calls a second that arrive whether or not earlier ones are answered,
// by go-sdk's clients, each with a token of its own. An answer other than the model's ends it with an error.
func (b *bench) openLoop() error {
	const rate, length = 10_000, time.Minute
	ctx := context.Background()
	system, err := running.Start(ctx, "bin")
	if err != nil {
		return err
	}
	defer system.Close()
	r, err := system.Play(ctx, running.Load{Rate: rate, Length: length, Window: time.Second, Clients: 100, Seed: 1})
	if err != nil {
		return err
	}
	fmt.Printf("%d calls in %s, Poisson, %.0f/s, through the provider, each with a token: 0 errors; p50 %s, p99 %s from when each was due\n",
		r.Calls, r.Took.Round(time.Millisecond), float64(r.Calls)/r.Took.Seconds(), r.Latencies.Quantile(0.5), r.Latencies.Quantile(0.99))
	return nil
}
