package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/faas-predict/faas-predict/tests/experiments/figure"
	"github.com/faas-predict/faas-predict/tests/experiments/flow"
	"github.com/faas-predict/faas-predict/tests/experiments/running"
	"github.com/faas-predict/faas-predict/tests/experiments/series"
)

// within is what an operator would call held: 99 of 100 calls are answered so soon after they were due.
// A rate above what the machine can do shows at once, since its queue grows.
const within = 100 * time.Millisecond

// holds says whether the system holds a load: every call answered as it should be, soon enough.
func holds(ctx context.Context, s *running.System, l running.Load) (bool, time.Duration, error) {
	r, err := s.Play(ctx, l)
	if ctx.Err() != nil {
		return false, 0, ctx.Err()
	}
	if err != nil {
		return false, 0, err
	}
	p99 := r.Latencies.Quantile(0.99)
	return p99 <= within, p99, nil
}

// findRate is the highest rate, in steps of a tenth and from highest downwards, that holds for all of
// some loads. A call that fails is no rate that is too high: it is an error.
func (e *experiments) findRate(ctx context.Context, s *running.System, given float64, loads ...running.Load) (float64, error) {
	if given > 0 {
		return given, nil
	}
	for rate := e.highest; rate >= 100; rate = math.Floor(rate*0.9/100) * 100 {
		all := true
		for _, l := range loads {
			l.Rate, l.Length, l.Window, l.Seed = rate, e.search, time.Second/10, 1
			ok, p99, err := holds(ctx, s, l)
			e.sayf("%6.0f calls/s, b = %g, T = %v, N = %d: p99 %v, held: %v\n", rate, l.Share, l.Lifetime, l.Clients, p99.Round(100*time.Microsecond), ok && err == nil)
			if err != nil {
				return 0, err
			}
			if !ok {
				all = false
				break
			}
		}
		if all {
			return rate, nil
		}
	}
	return 0, errors.New("not even 100 calls/s are held")
}

// withSystem starts the system, does something with it, and ends it.
func (e *experiments) withSystem(ctx context.Context, do func(*running.System) error) error {
	s, err := running.Start(ctx, e.bin)
	if err != nil {
		return err
	}
	defer s.Close()
	return do(s)
}

// badLoads are those of the ends of Fig. 5.
func badLoads(bad []running.Bad) []running.Load {
	return []running.Load{{Clients: 1000}, {Clients: 1000, Bad: bad, Share: 1}}
}

// tokenLoad is where most tokens are asked for.
func (e *experiments) tokenLoad() running.Load {
	return running.Load{Clients: e.clients[len(e.clients)-1], Lifetime: time.Duration(e.liveTimes[0] * float64(time.Second))}
}

// findRates prints both rates.
func (e *experiments) findRates(ctx context.Context) error {
	return e.withSystem(ctx, func(s *running.System) error {
		bad, err := s.BadTokens(ctx)
		if err != nil {
			return err
		}
		model, err := e.findRate(ctx, s, e.rate, badLoads(bad)...)
		if err != nil {
			return err
		}
		tokens, err := e.findRate(ctx, s, e.tokenRate, e.tokenLoad())
		if err != nil {
			return err
		}
		e.sayf("held: %.0f calls/s with tokens that last, good or bad; %.0f calls/s when nearly each call asks for one\n", model, tokens)
		return nil
	})
}

// live plays a load until its series is as long as planned. It returns the last part's result too, and
// the remark that the load was not held, where others used the machine meanwhile.
func (e *experiments) live(ctx context.Context, s *running.System, l running.Load, relative float64, rates func(running.Result) []float64) (result series.Series, last running.Result, remark string, err error) {
	l.Window = time.Duration(e.window * float64(time.Second))
	result, err = series.Plan{Confidence: confidence, Relative: relative, Most: e.most}.Run(func(n int) ([]float64, error) {
		l.Seed++
		l.Length = time.Duration(n) * l.Window
		if last, err = s.Play(ctx, l); err != nil {
			return nil, err
		}
		if p99 := last.Latencies.Quantile(0.99); p99 > within {
			remark = fmt.Sprintf("not held: p99 %v; ", p99.Round(time.Millisecond))
		}
		return rates(last), nil
	})
	return result, last, remark, err
}

// runModel is Fig. 5 with the running system.
func (e *experiments) runModel(ctx context.Context) error {
	return e.withSystem(ctx, func(s *running.System) error {
		bad, err := s.BadTokens(ctx)
		if err != nil {
			return err
		}
		rate, err := e.findRate(ctx, s, e.rate, badLoads(bad)...)
		if err != nil {
			return err
		}
		var rows []figure.Row
		for i, b := range e.bad {
			f, err := flow.System{Offered: rate, Bad: b, Clients: 1000, Instances: 1, Lifetime: math.Inf(1)}.Flows()
			if err != nil {
				return err
			}
			l := running.Load{Rate: rate, Clients: 1000, Bad: bad, Share: b, Seed: uint64(i) * 1000}
			result, _, remark, err := e.live(ctx, s, l, e.running[0], func(r running.Result) []float64 { return r.ModelRates })
			if err != nil {
				return err
			}
			r := row(runningLine, b, rate, e.window, e.running[0], f.Predict, result)
			r.Remark = remark
			e.sayRow(r)
			rows = append(rows, r)
		}
		return figure.Put(e.file(modelFile+".csv"), rows)
	})
}

// runTokens is Fig. 6 with the running system.
func (e *experiments) runTokens(ctx context.Context) error {
	return e.withSystem(ctx, func(s *running.System) error {
		rate, err := e.findRate(ctx, s, e.tokenRate, e.tokenLoad())
		if err != nil {
			return err
		}
		for _, clients := range e.clients {
			if e.onlyClients != 0 && e.onlyClients != clients {
				continue
			}
			var rows []figure.Row
			for i, lifetime := range e.liveTimes {
				theory, err := tokenTheory(rate, lifetime, clients)
				if err != nil {
					return err
				}
				l := running.Load{Rate: rate, Clients: clients, Lifetime: time.Duration(lifetime * float64(time.Second)), Seed: uint64(clients+i) * 1000}
				result, last, remark, err := e.live(ctx, s, l, e.running[1], func(r running.Result) []float64 { return r.TokenRates })
				if err != nil {
					return err
				}
				r := row(fmt.Sprintf("%s, N = %d", runningLine, clients), lifetime, rate, e.window, e.running[1], theory, result)
				fetch := last.Fetch
				delayed := flow.TokenFlowDelayed(rate, lifetime, clients, fetch.Seconds())
				r.Remark = remark + fmt.Sprintf("a fetch takes %.2f ms; theory with it %.4g, inside: %v", fetch.Seconds()*1000, delayed, result.Holds(delayed))
				e.sayRow(r)
				e.sayf("    %s\n", r.Remark)
				rows = append(rows, r)
			}
			if err := figure.Put(e.file(tokenFile+".csv"), rows); err != nil {
				return err
			}
		}
		return nil
	})
}
