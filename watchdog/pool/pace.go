package pool

import "time"

// bound is how much may lie ahead of a worker. A worker may be sent more than one call at a time only
// while predict is so short that handing calls over one by one would cost more than predict itself.
type bound struct {
	below  time.Duration // the predict time above which a worker is given one call at a time
	budget time.Duration // predict time that may lie ahead, by the measured pace
	calls  int
	bytes  int // of requests, which must fit in the pipe
}

var (
	aheadSingle = bound{below: 500 * time.Microsecond, budget: time.Millisecond, calls: 64, bytes: 64 << 10}
	// aheadBulk is for calls that wait for each other anyway. The longer their runs, the fewer
	// system calls and wake-ups a call costs, and a worker has its next run before this one ends even
	// when every core is busy and the watchdog has to wait for one.
	aheadBulk = bound{below: 5 * time.Millisecond, budget: 10 * time.Millisecond, calls: 256, bytes: 128 << 10}
)

// pace is the measured time of predict. One slow call alone is not believed: it may have been the
// kernel's doing, and what was sent ahead behind it is taken back. Two in a row are.
type pace struct {
	mean float64 // nanoseconds; 0: nothing measured
	slow bool    // the last call took far longer than the mean
}

func (p *pace) measured(d time.Duration) {
	sample := max(float64(d), 1)
	outlier := sample > 4*p.mean && sample > float64(aheadSingle.below)
	switch {
	case p.mean == 0, outlier && p.slow:
		p.mean = sample
	case outlier:
	default:
		p.mean += (sample - p.mean) / 64
	}
	p.slow = outlier
}

// ahead is how many calls a worker may have at once.
func (p *pace) ahead(b bound) int {
	if p.mean == 0 || p.mean > float64(b.below) {
		return 1
	}
	return min(max(int(float64(b.budget)/p.mean), 1), b.calls)
}
