// Package simulation plays the experiments event by event: calls that arrive, tokens that are fetched,
// come and expire. It knows no formula of package flow.
package simulation

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Config is one system. Intensities are in events/s, times in seconds.
type Config struct {
	Offered  float64 // calls/s of all clients together; arrivals are Poisson
	Bad      float64 // share of calls that carry a bad token
	Caches   int     // token caches; a call goes to any of them with the same probability
	Lifetime float64 // how long a fetched token is used
	Delay    float64 // how long fetching one takes; calls of the same cache fetch their own meanwhile
	Window   float64 // length of a window
	Seed     uint64
}

// Window is what happened in one.
type Window struct {
	Calls   int // arrived
	Model   int // reached the model
	Refused int // had a bad token
	Tokens  int // requests for tokens
}

// Simulation goes on from where it is: two runs of n windows are one of 2n. It is not for several
// goroutines at once.
type Simulation struct {
	cfg     Config
	rng     *rand.Rand
	now     float64
	next    float64   // the next call's arrival
	windows int       // ended so far
	expires []float64 // by cache: when its token does; in the past, there is none
	coming  fifo      // tokens on their way: all take as long, so they come in the order they were asked for
}

type fetched struct {
	at    float64
	cache int
}

// New starts a simulation in its stationary state, so that no windows have to be thrown away: a cache
// has a token for T of each T + 1/a seconds, of any age alike.
func New(cfg Config) (*Simulation, error) {
	if !(cfg.Offered > 0) || cfg.Bad < 0 || cfg.Bad > 1 || cfg.Caches < 1 || !(cfg.Lifetime >= 0) || !(cfg.Delay >= 0) || !(cfg.Window > 0) {
		return nil, fmt.Errorf("a simulation needs calls, caches and windows, a share from 0 to 1 and times of 0 or more: %+v", cfg)
	}
	s := &Simulation{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0x9e3779b97f4a7c15)), expires: make([]float64, cfg.Caches)}
	idle := math.Inf(1)
	if good := (1 - cfg.Bad) * cfg.Offered; good > 0 {
		idle = float64(cfg.Caches) / good
	}
	for i := range s.expires {
		if s.rng.Float64() < cfg.Lifetime/(cfg.Lifetime+idle) {
			s.expires[i] = s.rng.Float64() * cfg.Lifetime
		}
	}
	s.next = s.rng.ExpFloat64() / cfg.Offered
	return s, nil
}

// Run plays n more windows and gives each to each.
func (s *Simulation) Run(n int, each func(Window)) {
	for range n {
		s.windows++
		each(s.window(float64(s.windows) * s.cfg.Window))
	}
}

// window plays until end.
func (s *Simulation) window(end float64) (w Window) {
	for {
		arrives := s.coming.first()
		if s.next >= end && arrives >= end {
			return w
		}
		if arrives <= s.next {
			token := s.coming.pop()
			s.expires[token.cache] = token.at + s.cfg.Lifetime
			continue
		}
		s.now = s.next
		s.next += s.rng.ExpFloat64() / s.cfg.Offered
		s.call(&w)
	}
}

// call is one call now.
func (s *Simulation) call(w *Window) {
	w.Calls++
	if s.cfg.Bad > 0 && s.rng.Float64() < s.cfg.Bad {
		w.Refused++
		return
	}
	w.Model++
	cache := s.rng.IntN(len(s.expires))
	if s.expires[cache] > s.now {
		return
	}
	w.Tokens++
	if s.cfg.Delay == 0 {
		s.expires[cache] = s.now + s.cfg.Lifetime
		return
	}
	s.coming.push(fetched{at: s.now + s.cfg.Delay, cache: cache})
}

// fifo is a queue whose memory is used again.
type fifo struct {
	items []fetched
	head  int
}

// first is when the next token comes; never, if none is on its way.
func (q *fifo) first() float64 {
	if q.head == len(q.items) {
		return math.Inf(1)
	}
	return q.items[q.head].at
}

func (q *fifo) pop() fetched {
	item := q.items[q.head]
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return item
}

func (q *fifo) push(item fetched) {
	if q.head > 0 && len(q.items) == cap(q.items) {
		q.items, q.head = q.items[:copy(q.items, q.items[q.head:])], 0
	}
	q.items = append(q.items, item)
}
