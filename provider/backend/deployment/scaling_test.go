package deployment

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/faas-predict/faas-predict/provider/backend"
)

func TestScaleLabelsMeanWhatTheyMeanToOpenFaaS(t *testing.T) {
	const most = 256
	usual := Scaling{Min: 1, Max: 20, Factor: 20, Type: "capacity", Target: 1, ZeroAfter: 15 * time.Minute}
	with := func(change func(*Scaling)) Scaling {
		s := usual
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		labels map[string]string
		want   Scaling
	}{
		"none": {nil, usual},
		"all": {
			map[string]string{
				ScaleMinLabel: "2", ScaleMaxLabel: "8", ScaleFactorLabel: "50", ScaleTypeLabel: "capacity", ScaleTargetLabel: "2.5",
				ScaleZeroLabel: "true", ScaleZeroAfterLabel: "90s",
			},
			Scaling{Min: 2, Max: 8, Bounded: true, Factor: 50, Type: "capacity", Target: 2.5, Zero: true, ZeroAfter: 90 * time.Second},
		},
		"least number of 0":        {map[string]string{ScaleMinLabel: "0"}, usual},
		"least above the default":  {map[string]string{ScaleMinLabel: "30"}, with(func(s *Scaling) { s.Min, s.Max = 30, 30 })},
		"factor 0":                 {map[string]string{ScaleFactorLabel: "0"}, with(func(s *Scaling) { s.Factor = 0 })},
		"a target alone is of rps": {map[string]string{ScaleTargetLabel: "100"}, with(func(s *Scaling) { s.Type, s.Target = "rps", 100 })},
		"rps alone":                {map[string]string{ScaleTypeLabel: "rps"}, with(func(s *Scaling) { s.Type, s.Target = "rps", 50 })},
		"other labels":             {map[string]string{"colour": "blue", ScaleMaxLabel: ""}, usual},
	} {
		got, err := ParseScaling(&c.labels, most)
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	if got, err := ParseScaling(nil, 4); err != nil || got.Max != 4 {
		t.Errorf("where 4 replicas are the most: %+v, %v", got, err)
	}
}

func TestScaleLabelsThatCannotBeHonouredAreRefusedByName(t *testing.T) {
	for label, values := range map[string][]string{
		ScaleMinLabel:       {"many", "-1", "257", "1.5"},
		ScaleMaxLabel:       {"257", "x", "0"}, // 0 is less than the least
		ScaleFactorLabel:    {"101", "-1", "20%"},
		ScaleTypeLabel:      {"RPS", "a b", strings.Repeat("a", 100)},
		ScaleTargetLabel:    {"0", "-1", "NaN", "Inf", "fast"},
		ScaleZeroLabel:      {"yes", "1"},
		ScaleZeroAfterLabel: {"15", "0s", "10ms", "-1h", "soon"},
	} {
		for _, value := range values {
			_, err := ParseScaling(&map[string]string{label: value}, 256)
			if !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), label) {
				t.Errorf("%s=%s: %v", label, value, err)
			}
		}
	}
	_, err := ParseScaling(&map[string]string{ScaleMinLabel: "3", ScaleMaxLabel: "2"}, 256)
	if !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), ScaleMaxLabel) || !strings.Contains(err.Error(), ScaleMinLabel) {
		t.Errorf("max below min: %v", err)
	}
}

func TestStepsOfAnAlertReachTheLargestNumberAndStay(t *testing.T) {
	for most := uint64(1); most <= 256; most++ {
		for factor := uint64(1); factor <= 100; factor++ {
			s := Scaling{Min: 1, Max: most, Factor: factor}
			n, steps := uint64(1), 0
			for n < most {
				next := s.Within(n + s.Step())
				if next <= n || steps > 256 {
					t.Fatalf("max %d, factor %d: from %d to %d after %d steps", most, factor, n, next, steps)
				}
				n, steps = next, steps+1
			}
			if n != most || s.Within(n+s.Step()) != most {
				t.Fatalf("max %d, factor %d: ends at %d", most, factor, n)
			}
		}
	}
}
