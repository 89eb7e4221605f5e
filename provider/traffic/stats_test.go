package traffic

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestACallIsCountedInTheBucketThatHoldsIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		took := time.Duration(rapid.Int64Range(0, int64(300*time.Second)).Draw(t, "took"))
		i := bucket(took)
		if i < bounds && took > upper[i] {
			t.Fatalf("%s is in the bucket up to %s", took, upper[i])
		}
		if i > 0 && took <= upper[i-1] {
			t.Fatalf("%s is above the bucket up to %s", took, upper[i-1])
		}
	})
}

func TestAQuantileIsAtMostAStepAboveTheTrueOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Stats
		times := rapid.SliceOfN(rapid.Int64Range(int64(time.Millisecond), int64(60*time.Second)), 1, 200).Draw(t, "times")
		for _, n := range times {
			s.Count(200, time.Duration(n))
		}
		slices.Sort(times)
		q := rapid.Float64Range(0.01, 1).Draw(t, "q")
		want := time.Duration(times[int(math.Ceil(q*float64(len(times))))-1])
		if got := s.Read().Quantile(q); got < want || float64(got) > float64(want)*growth*1.0001 {
			t.Fatalf("quantile %g is %s, not %s", q, got, want)
		}
	})
}

func TestASnapshotCountsWhatCameSince(t *testing.T) {
	var s Stats
	s.Count(200, time.Second)
	s.Count(502, time.Second)
	before := s.Read()
	s.Count(200, time.Millisecond)
	s.Count(404, time.Millisecond)
	s.Count(500, time.Millisecond)
	s.Count(0, time.Millisecond) // cut off
	got := s.Read().Since(before)
	if got.Calls != 4 || got.Errors != 2 || got.Codes[200] != 1 || got.Codes[502] != 0 || got.Quantile(0.99) > 2*time.Millisecond {
		t.Errorf("got %+v, p99 %s", got, got.Quantile(0.99))
	}
	buckets, count := s.Read().Buckets()
	if count != 6 || buckets[upper[60].Seconds()] != 6 {
		t.Errorf("%d in %v", count, buckets)
	}
}

func BenchmarkCount(b *testing.B) {
	var s Stats
	for b.Loop() {
		s.Count(200, 3*time.Millisecond)
	}
}
