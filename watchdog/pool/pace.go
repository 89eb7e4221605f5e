package pool

import "time"

// Look-ahead: a worker may be sent more than one call at a time only while predict is so short that
// handing calls over one by one would cost more than predict itself.
// aheadBelow is the predict time above which a worker is given one call at a time.
const aheadBelow = 500 * time.Microsecond

// bound is how much may lie ahead of a worker: so many calls, so much predict time by the measured
// pace, so many bytes of requests, which must fit in the pipe.
type bound struct {
	calls  int
	budget time.Duration
	bytes  int
}

var (
	aheadSingle = bound{calls: 64, budget: time.Millisecond, bytes: 64 << 10}
	// aheadBulk is for calls that wait for each other anyway. The longer their runs, the fewer
	// system calls and wake-ups a call costs.
	aheadBulk = bound{calls: 64, budget: 4 * time.Millisecond, bytes: 128 << 10}
)

// pace is the measured time of predict. One slow call alone is not believed: it may have been the
// kernel's doing, and what was sent ahead behind it is taken back. Two in a row are.
type pace struct {
	mean float64 // nanoseconds; 0: nothing measured
	slow bool    // the last call took far longer than the mean
}

func (p *pace) measured(d time.Duration) {
	sample := max(float64(d), 1)
	outlier := sample > 4*p.mean && sample > float64(aheadBelow)
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
	if p.mean == 0 || p.mean > float64(aheadBelow) {
		return 1
	}
	return min(max(int(float64(b.budget)/p.mean), 1), b.calls)
}
