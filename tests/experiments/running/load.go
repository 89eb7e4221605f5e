package running

import (
	"context"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// callers is how many calls may be under way. One that finds all of them busy waits, and its latency
// counts from when it should have been sent.
const callers = 64

// arrival is a call that is due.
type arrival struct {
	due time.Duration // since the load began
	n   int
}

// open sends an open, Poisson load: each call at its own time, whatever became of those before. With an
// infinite rate a call is due whenever a caller is free. It returns when all are answered, or at the
// first error.
func open(ctx context.Context, rate float64, length time.Duration, seed uint64, callers int, call func(caller int, a arrival, began time.Time) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	// All that the load has, so that sending never blocks the clock.
	waiting := 0
	if !math.IsInf(rate, 1) {
		waiting = int(rate*length.Seconds()*1.2) + 1000
	}
	due := make(chan arrival, waiting)
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			for a := range due {
				if ctx.Err() != nil {
					return
				}
				if err := call(caller, a, began); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	if math.IsInf(rate, 1) {
		full(ctx, length, began, due)
	} else {
		clock(ctx, rate, length, seed, began, due)
	}
	close(due)
	all.Wait()
	return context.Cause(ctx)
}

// clock puts arrivals into due when they are. It sleeps on a thread of its own: Go's timers may be a
// millisecond late, which is ten calls.
func clock(ctx context.Context, rate float64, length time.Duration, seed uint64, began time.Time, due chan<- arrival) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	rng := rand.New(rand.NewPCG(seed, 1))
	next := time.Duration(0)
	for n := 0; ; n++ {
		next += time.Duration(rng.ExpFloat64() / rate * float64(time.Second))
		if next >= length || ctx.Err() != nil {
			return
		}
		// The kernel sleeps 50 µs longer than asked; what is due within that goes now with the others.
		if wait := next - time.Since(began); wait > 50*time.Microsecond {
			pause := unix.NsecToTimespec(wait.Nanoseconds())
			_ = unix.Nanosleep(&pause, nil)
			for ctx.Err() == nil && time.Since(began) < next {
				runtime.Gosched()
			}
		}
		due <- arrival{due: next, n: n}
	}
}

// full puts an arrival into due whenever one is taken.
func full(ctx context.Context, length time.Duration, began time.Time, due chan<- arrival) {
	for n := 0; ; n++ {
		now := time.Since(began)
		if now >= length {
			return
		}
		select {
		case due <- arrival{due: now, n: n}:
		case <-ctx.Done():
			return
		}
	}
}

// Latencies are a load's, from when each call was due.
type Latencies []time.Duration

// Quantile is the least latency that so large a share of the calls stayed within.
func (l Latencies) Quantile(share float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(l))
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}
