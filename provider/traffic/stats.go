package traffic

import (
	"math"
	"sync/atomic"
	"time"
)

// Latency is counted in buckets that grow by a quarter, fine enough that a quantile read from them is
// off by an eighth at most: 0.1 ms to about 100 s, and one for all above.
const (
	firstBound = 100 * time.Microsecond
	growth     = 1.25
	bounds     = 62
)

var upper = func() (b [bounds]time.Duration) {
	for i := range b {
		b[i] = time.Duration(float64(firstBound) * math.Pow(growth, float64(i)))
	}
	return b
}()

// Stats counts the calls of one version. It is safe for concurrent use; its zero value is ready.
type Stats struct {
	codes   [600]atomic.Uint64
	buckets [bounds + 1]atomic.Uint64
	nanos   atomic.Uint64
}

// StatusCutOff is what a call counts as whose answer did not arrive whole.
const StatusCutOff = 0

// Count adds a call that was answered with an HTTP status.
func (s *Stats) Count(status int, took time.Duration) {
	if status < 0 || status >= len(s.codes) {
		status = 0
	}
	s.codes[status].Add(1)
	s.nanos.Add(uint64(max(took, 0)))
	s.buckets[bucket(took)].Add(1)
}

// bucket finds the bucket by a logarithm, and corrects for its rounding.
func bucket(took time.Duration) int {
	if took <= firstBound {
		return 0
	}
	i := int(math.Log(float64(took)/float64(firstBound)) / math.Log(growth))
	i = min(max(i, 0), bounds)
	for i < bounds && upper[i] < took {
		i++
	}
	for i > 0 && upper[i-1] >= took {
		i--
	}
	return i
}

// Snapshot is what was counted up to a moment.
type Snapshot struct {
	Codes   map[int]uint64
	Calls   uint64
	Errors  uint64 // status 500 and above, and calls that were cut off (status 0)
	Seconds float64
	buckets [bounds + 1]uint64
}

// Read returns what was counted so far. Calls counted meanwhile may be in it in part.
func (s *Stats) Read() Snapshot {
	out := Snapshot{Codes: map[int]uint64{}, Seconds: time.Duration(s.nanos.Load()).Seconds()}
	for code := range s.codes {
		if n := s.codes[code].Load(); n > 0 {
			out.Codes[code] = n
			out.Calls += n
			if code == 0 || code >= 500 {
				out.Errors += n
			}
		}
	}
	for i := range s.buckets {
		out.buckets[i] = s.buckets[i].Load()
	}
	return out
}

// Since is what was counted after an earlier snapshot of the same Stats.
func (s Snapshot) Since(earlier Snapshot) Snapshot {
	out := Snapshot{Codes: map[int]uint64{}, Calls: s.Calls - earlier.Calls, Errors: s.Errors - earlier.Errors, Seconds: s.Seconds - earlier.Seconds}
	for code, n := range s.Codes {
		if d := n - earlier.Codes[code]; d > 0 {
			out.Codes[code] = d
		}
	}
	for i := range s.buckets {
		out.buckets[i] = s.buckets[i] - earlier.buckets[i]
	}
	return out
}

// Quantile is an upper bound of the latency that a share q of the calls stayed within; 0 when there
// were none.
func (s Snapshot) Quantile(q float64) time.Duration {
	total := uint64(0)
	for _, n := range s.buckets {
		total += n
	}
	if total == 0 {
		return 0
	}
	rank := uint64(math.Ceil(q * float64(total)))
	seen := uint64(0)
	for i, n := range s.buckets {
		if seen += n; seen >= max(rank, 1) {
			return upper[min(i, bounds-1)]
		}
	}
	return upper[bounds-1]
}

// Buckets are cumulative counts by upper bound in seconds, every third of those kept, as Prometheus
// takes them.
func (s Snapshot) Buckets() (cumulative map[float64]uint64, count uint64) {
	cumulative = map[float64]uint64{}
	for i, n := range s.buckets {
		count += n
		if i < bounds && i%3 == 0 {
			cumulative[upper[i].Seconds()] = count
		}
	}
	return cumulative, count
}

// Mirrored counts the copies of calls that a mirror got.
type Mirrored struct {
	Matched  uint64 `json:"matched"`  // same status, same body
	Differed uint64 `json:"differed"` // another status or body
	Failed   uint64 `json:"failed"`   // no answer
	Skipped  uint64 `json:"skipped"`  // not sent: too large, streamed, or too many under way
}
