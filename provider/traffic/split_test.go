package traffic

import (
	"encoding/json"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func drawSplit(t *rapid.T) Split {
	n := rapid.IntRange(1, MaxTargets).Draw(t, "versions")
	left := int(Whole)
	var s Split
	for i := range n {
		w := left
		if i < n-1 {
			w = rapid.IntRange(0, left).Draw(t, "weight")
		}
		left -= w
		s.Targets = append(s.Targets, Target{fmt.Sprintf("c%d_k", i), Weight(w)})
	}
	return s
}

func TestAWeightIsAPercentageWithOneDecimal(t *testing.T) {
	for text, want := range map[string]Weight{"0": 0, "100": Whole, "0.1": 1, "99.9": 999, "10": 100, "12.5": 125, "100.0": Whole} {
		got, err := ParseWeight(text)
		if err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "100.1", "101", "0.05", "1e1", "ten", "1.", ".5", "+1", "1.-1", "256", "65536"} {
		if got, err := ParseWeight(text); err == nil {
			t.Errorf("%q was taken as %s", text, got)
		}
	}
	for w := range Whole + 1 {
		raw, err := json.Marshal(w)
		var back Weight
		if err != nil || json.Unmarshal(raw, &back) != nil || back != w {
			t.Fatalf("%d became %s and came back as %d", w, raw, back)
		}
	}
}

func TestEveryPositionBelongsToTheVersionThatItsWeightSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSplit(t)
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for i := range 200 {
			session := fmt.Sprintf("s%d", i)
			v := s.Pick(session)
			if s.Weight(v) == 0 || s.Pick(session) != v {
				t.Fatalf("session %s went to %q of %s", session, v, s)
			}
			random := s.Pick("")
			if s.Weight(random) == 0 {
				t.Fatalf("a call went to %q of %s", random, s)
			}
			got[v] = true
		}
	})
}

// The 99.9th percentile of chi-square with one degree of freedom is 10.83: a fair split of sessions
// fails this once in a thousand choices of names, and these names are fixed.
func TestSessionsSpreadByWeight(t *testing.T) {
	s := Split{Targets: []Target{{"a_1", 900}, {"b_1", 100}}}
	const n = 100_000
	second := 0
	for i := range n {
		if s.Pick(fmt.Sprintf("user-%d@example.org", i)) == "b_1" {
			second++
		}
	}
	d := float64(second) - 0.1*n
	if chi := d*d/(0.1*n) + d*d/(0.9*n); chi > 10.83 {
		t.Errorf("%d of %d sessions, chi-square %.1f", second, n, chi)
	}
}

func TestACanaryTakesItsShareAndLeavesTheOthersTheirProportion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSplit(t)
		if len(s.Targets) == MaxTargets {
			s.Targets = All("c0_k").Targets
		}
		share := Weight(rapid.IntRange(0, int(Whole)).Draw(t, "share"))
		version := rapid.SampledFrom([]string{"new_k", "c0_k"}).Draw(t, "version")
		got := s.Canary(version, share)
		if err := got.Check(); err != nil {
			t.Fatalf("%s of %s became %s: %v", share, s, got, err)
		}
		alone := s.Weight(version) == Whole
		if share == Whole && !got.Equal(All(version)) {
			t.Fatalf("all of %s became %s", s, got)
		}
		if w := got.Weight(version); w != share && !alone {
			t.Fatalf("%s of %s became %s", share, s, got)
		}
		others := float64(Whole - s.Weight(version))
		for _, old := range s.Targets {
			if old.Version == version || alone || share == Whole {
				continue
			}
			want := float64(old.Weight) / others * float64(Whole-share)
			if d := float64(got.Weight(old.Version)) - want; d < -1 || d > float64(len(s.Targets)) {
				t.Fatalf("%s of %s became %s: %s has %s", share, s, got, old.Version, got.Weight(old.Version))
			}
		}
	})
}

func TestASplitThatBreaksARuleIsRefusedWithTheRule(t *testing.T) {
	many := Split{}
	for i := range MaxTargets + 1 {
		many.Targets = append(many.Targets, Target{fmt.Sprintf("c%d_k", i), 0})
	}
	for name, s := range map[string]Split{
		"empty": {}, "too many": many,
		"sum below": {Targets: []Target{{"a_1", 900}}}, "sum above": {Targets: []Target{{"a_1", 900}, {"b_1", 101}}},
		"twice": {Targets: []Target{{"a_1", 900}, {"a_1", 100}}}, "no version": {Targets: []Target{{"latest", Whole}}},
		"wraps around":   {Targets: []Target{{"a_1", 65535}, {"b_1", 1001}}},
		"busy mirror":    {Targets: []Target{{"a_1", Whole}}, Mirror: "a_1"},
		"unnamed mirror": {Targets: []Target{{"a_1", Whole}}, Mirror: "x"},
	} {
		if err := s.Check(); err == nil {
			t.Errorf("%s: %v was accepted", name, s)
		}
	}
}

func TestAnnotationsSayHowADeploymentGetsItsCalls(t *testing.T) {
	old := All("a_1")
	for _, c := range []struct {
		traffic, mirror string
		current         Split
		want            string
	}{
		{"", "", Split{}, "b_1=100"},
		{"", "", old, "b_1=100"},
		{"canary=10", "", old, "a_1=90,b_1=10"},
		{"canary=0.1", "", old, "a_1=99.9,b_1=0.1"},
		{"canary=10", "", Split{}, "b_1=100"},
		{"canary=10", "", All("b_1"), "b_1=100"},
		{"canary=20", "", Split{Targets: []Target{{"a_1", 500}, {"c_1", 500}}}, "a_1=40,c_1=40,b_1=20"},
		{"canary=20", "", Split{Targets: []Target{{"a_1", 900}, {"b_1", 100}}}, "a_1=80,b_1=20"},
		{"a_1=75, canary=25", "", old, "a_1=75,b_1=25"},
		{"", "canary", old, "a_1=100,b_1=0 mirror b_1"},
		{"", "canary", Split{}, "b_1=100"},
		{"", "a_1", old, "b_1=100 mirror a_1"},
		{"canary=10", "c_1", old, "a_1=90,b_1=10 mirror c_1"},
	} {
		got, _, err := Deploy(map[string]string{SplitAnnotation: c.traffic, MirrorAnnotation: c.mirror}, c.current, "b_1")
		text := got.String()
		if got.Mirror != "" {
			text += " mirror " + got.Mirror
		}
		if err != nil || text != c.want {
			t.Errorf("%q %q on %s gave %s, %v; want %s", c.traffic, c.mirror, c.current, text, err, c.want)
		}
	}
	if s, r, err := Deploy(map[string]string{RolloutAnnotation: "steps=10,100 errors=1"}, Split{Targets: []Target{{"a_1", 500}, {"b_1", 500}}}, "b_1"); err != nil ||
		s.String() != "a_1=90,b_1=10" || !r.Base.Equal(All("a_1")) {
		t.Errorf("a rollout of a version that has calls: %s, %+v, %v", s, r, err)
	}
	if s, r, err := Deploy(map[string]string{RolloutAnnotation: "steps=10,100 errors=1"}, Split{}, "b_1"); err != nil || !s.Equal(All("b_1")) || r != nil {
		t.Errorf("a rollout of the first version: %s, %+v, %v", s, r, err)
	}
	for _, bad := range []map[string]string{
		{RolloutAnnotation: "nonsense"}, {RolloutAnnotation: "steps=10,100 errors=1", SplitAnnotation: "canary=1"},
		{RolloutAnnotation: "steps=10,100 errors=1", MirrorAnnotation: "canary"},
	} {
		for _, current := range []Split{{}, old} {
			if s, _, err := Deploy(bad, current, "b_1"); err == nil {
				t.Errorf("%v on %s gave %s", bad, current, s)
			}
		}
	}
	for _, bad := range []string{"10", "canary", "canary=x", "canary=10,", "a_1=10,canary=10", "nonsense=100"} {
		if got, _, err := Deploy(map[string]string{SplitAnnotation: bad}, old, "b_1"); err == nil {
			t.Errorf("%q gave %s", bad, got)
		}
	}
}

func FuzzDeployAnnotation(f *testing.F) {
	f.Add("canary=10", "canary")
	f.Add("a_1=99.9,canary=0.1", "c_1")
	f.Fuzz(func(t *testing.T, text, mirror string) {
		s, _, err := Deploy(map[string]string{SplitAnnotation: text, MirrorAnnotation: mirror}, All("a_1"), "b_1")
		if err == nil && s.Check() != nil {
			t.Errorf("%q %q gave %s", text, mirror, s)
		}
	})
}

func BenchmarkPick(b *testing.B) {
	s := Split{Targets: []Target{{"a_1", 900}, {"b_1", 100}}}
	for b.Loop() {
		s.Pick("")
	}
}
