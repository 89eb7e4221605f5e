package traffic

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestARolloutIsReadFromItsAnnotation(t *testing.T) {
	r, err := ParseRollout("steps=1,10,50,100 every=30s errors=0.5% p99=200ms calls=40", "b_1", All("a_1"))
	if err != nil {
		t.Fatal(err)
	}
	if time.Duration(r.Every) != 30*time.Second || r.Errors != 5 || time.Duration(r.P99) != 200*time.Millisecond || r.Calls != 40 || len(r.Steps) != 4 || r.NoErrorBound {
		t.Errorf("%+v", r)
	}
	if got := r.Split().String(); got != "a_1=99,b_1=1" {
		t.Error(got)
	}
	for _, bad := range []string{
		"steps=1,10,50,100", "errors=1", "steps=1,10 errors=1", "steps=10,1,100 errors=1", "steps=0,100 errors=1", "steps=x errors=1",
		"steps=100 errors=101", "steps=100 p99=-1s", "steps=100 errors=1 every=0s", "steps=100 errors=1 speed=9", "steps=100 errors=1 calls=-1", "steps=100 errors=1 errors=2",
	} {
		if r, err := ParseRollout(bad, "b_1", All("a_1")); err == nil || !strings.Contains(err.Error(), RolloutAnnotation) {
			t.Errorf("%q gave %+v, %v", bad, r, err)
		}
	}
}

func TestAStepPassesOrBreaksByWhatItsCallsDid(t *testing.T) {
	counted := func(good, failed int, took time.Duration) Snapshot {
		var s Stats
		for range good {
			s.Count(200, took)
		}
		for range failed {
			s.Count(502, took)
		}
		return s.Read()
	}
	r, err := ParseRollout("steps=10,100 every=1m errors=5 p99=100ms calls=50", "b_1", All("a_1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what    string
		since   Snapshot
		elapsed time.Duration
		want    Verdict
	}{
		{"nothing yet", counted(0, 0, 0), time.Second, Wait},
		{"no calls ever", counted(0, 0, 0), time.Hour, Wait},
		{"too early", counted(100, 0, time.Millisecond), 59 * time.Second, Wait},
		{"too few calls", counted(49, 0, time.Millisecond), time.Hour, Wait},
		{"good", counted(50, 0, time.Millisecond), time.Minute, Passed},
		{"errors within the bound", counted(95, 5, time.Millisecond), time.Minute, Passed},
		{"errors", counted(94, 6, time.Millisecond), time.Second, Broken},
		{"errors, but too few calls to tell", counted(10, 6, time.Millisecond), time.Second, Wait},
		{"slow", counted(100, 0, 150*time.Millisecond), time.Second, Broken},
		{"one slow call of few", counted(49, 0, 150*time.Millisecond), time.Second, Wait},
		{"just within", counted(100, 0, 100*time.Millisecond), time.Minute, Passed},
	} {
		if got, why := r.Judge(c.since, c.elapsed); got != c.want {
			t.Errorf("%s: %d (%s), not %d", c.what, got, why, c.want)
		}
	}
}

func TestCallsThatFailFastDoNotPassABoundOnTime(t *testing.T) {
	r, err := ParseRollout("steps=10,100 every=1m p99=100ms", "b_1", All("a_1"))
	if err != nil {
		t.Fatal(err)
	}
	var s Stats
	for range 200 {
		s.Count(503, 0)
	}
	if got, why := r.Judge(s.Read(), time.Hour); got != Broken {
		t.Errorf("%d (%s)", got, why)
	}
}

func TestARolloutIsWrittenAsPeopleReadIt(t *testing.T) {
	r, err := ParseRollout("steps=0.5,100 every=90s p99=100ms", "b_1", All("a_1"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(r)
	var back Rollout
	if err != nil || !strings.Contains(string(raw), `"every":"1m30s"`) || json.Unmarshal(raw, &back) != nil || !reflect.DeepEqual(*r, back) {
		t.Errorf("%s became %+v, %v", raw, back, err)
	}
}

func FuzzRolloutAnnotation(f *testing.F) {
	f.Add("steps=1,10,50,100 every=30s errors=0.5% p99=200ms calls=40")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRollout(text, "b_1", All("a_1"))
		if err != nil {
			return
		}
		for r.Step = range r.Steps {
			if err := r.Split().Check(); err != nil {
				t.Errorf("step %d of %q: %v", r.Step, text, err)
			}
		}
	})
}
