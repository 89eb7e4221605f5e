// Command autoscaling drives a function through a load that rises and falls, while Prometheus and
// Alertmanager scale it with the files of docs/autoscaling, and draws what happened. Its tests do the same
// faster, and kill one or the other on the way.
package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/faas-predict/faas-predict/tests/autoscaling/stage"
)

// Phase is a load that lasts.
type Phase struct {
	For  time.Duration
	Rate float64 // calls a second
}

// Poisson is a vegeta.Pacer whose calls arrive independently of one another: the gaps are exponential, and a
// change of rate takes effect at once, since such gaps have no memory. Not safe for concurrent use.
type Poisson struct {
	phases []Phase
	random *rand.Rand
	next   time.Duration
	end    time.Duration // of the phase that next is in
}

// NewPoisson returns the arrivals of the phases one after the other; equal seeds give equal arrivals.
func NewPoisson(seed uint64, phases ...Phase) *Poisson {
	p := &Poisson{phases: phases, random: rand.New(rand.NewPCG(seed, 1))}
	if len(phases) > 0 {
		p.end = phases[0].For
	}
	p.draw()
	return p
}

// draw moves next to the next arrival, or phases to nothing.
func (p *Poisson) draw() {
	for len(p.phases) > 0 {
		if rate := p.phases[0].Rate; rate > 0 {
			if at := p.next + time.Duration(p.random.ExpFloat64()/rate*float64(time.Second)); at < p.end {
				p.next = at
				return
			}
		}
		p.next = p.end
		if p.phases = p.phases[1:]; len(p.phases) > 0 {
			p.end += p.phases[0].For
		}
	}
}

// Pace implements vegeta.Pacer.
func (p *Poisson) Pace(elapsed time.Duration, _ uint64) (wait time.Duration, stop bool) {
	if len(p.phases) == 0 {
		return 0, true
	}
	wait = max(0, p.next-elapsed)
	p.draw()
	return wait, false
}

// Rate implements vegeta.Pacer.
func (p *Poisson) Rate(time.Duration) float64 {
	if len(p.phases) == 0 {
		return 0
	}
	return p.phases[0].Rate
}

// Moment is what happened in one interval.
type Moment struct {
	At       time.Duration // its begin, since the load began
	Calls    int           // that arrived
	P99      time.Duration // of them
	Shed     int           // answered 429
	Failed   int           // any other answer than 200, or none
	Replicas int           // at its end
}

// Event is something done to the stage on the way.
type Event struct {
	At time.Duration
	Do func(context.Context, *stage.Stage) error
}

// Run drives the stage's function through the phases and the events, and returns the intervals of the
// given length. It blocks until every call has ended.
func Run(ctx context.Context, s *stage.Stage, phases []Phase, events []Event, interval time.Duration) ([]Moment, error) {
	var whole time.Duration
	for _, p := range phases {
		whole += p.For
	}
	began := time.Now()
	moments := make([]Moment, whole/interval)
	var background sync.WaitGroup
	failures := make(chan error, len(moments)+len(events)+1)
	background.Go(func() {
		for i := range moments {
			moments[i].At = time.Duration(i) * interval
			time.Sleep(time.Until(began.Add(moments[i].At + interval)))
			n, err := s.Replicas(ctx)
			if err != nil {
				failures <- err
			}
			moments[i].Replicas = n
		}
	})
	background.Go(func() {
		for _, e := range events {
			time.Sleep(time.Until(began.Add(e.At)))
			if err := e.Do(ctx, s); err != nil {
				failures <- fmt.Errorf("after %s: %w", e.At, err)
			}
		}
	})
	took := make([][]time.Duration, len(moments))
	attacker := vegeta.NewAttacker(vegeta.Timeout(time.Minute), vegeta.KeepAlive(true), vegeta.MaxWorkers(20_000))
	target := vegeta.NewStaticTargeter(vegeta.Target{Method: http.MethodPost, URL: s.URL(), Body: []byte("x")})
	for r := range attacker.Attack(target, NewPoisson(1, phases...), whole, "") {
		i := min(max(0, int(r.Timestamp.Sub(began)/interval)), len(moments)-1)
		moments[i].Calls++
		took[i] = append(took[i], r.Latency)
		switch {
		case r.Code == http.StatusTooManyRequests:
			moments[i].Shed++
		case r.Code != http.StatusOK || r.Error != "":
			moments[i].Failed++
		}
	}
	background.Wait()
	for i, t := range took {
		if len(t) > 0 {
			slices.Sort(t)
			moments[i].P99 = t[len(t)*99/100]
		}
	}
	close(failures)
	var errs []error
	for err := range failures {
		errs = append(errs, err)
	}
	return moments, errors.Join(errs...)
}
