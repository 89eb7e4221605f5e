package deployment

import (
	"fmt"
	"slices"
	"testing"

	"github.com/openfaas/faas-provider/types"
	"pgregory.net/rapid"

	"github.com/faas-predict/faas-predict/provider/traffic"
)

func drawSplit(t *rapid.T) traffic.Split {
	var s traffic.Split
	left := int(traffic.Whole)
	versions := rapid.Permutation([]int{1, 2, 3, 4, 5, 6}).Draw(t, "versions")[:rapid.IntRange(1, 4).Draw(t, "n")]
	for i, v := range versions {
		w := left
		if i < len(versions)-1 {
			w = rapid.IntRange(0, left).Draw(t, "weight")
		}
		left -= w
		s.Targets = append(s.Targets, traffic.Target{Version: fmt.Sprintf("%d_1", v), Weight: traffic.Weight(w)})
	}
	return s
}

// The model of a function's splits is a list of them, the one in force last: moving appends, rolling
// back takes away. A rollout is one entry, whatever its step, until it is taken back.
func TestARecordKeepsSplitsAsAListDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		warm := rapid.IntRange(0, 3).Draw(t, "keep_warm")
		rules := Rules{MaxReplicas: 256}
		r := &Record{}
		var splits []traffic.Split
		push := func(s traffic.Split) {
			if len(splits) == 0 || !splits[len(splits)-1].Equal(s) {
				splits = append(splits, s)
			}
			if len(splits) > splitsKept+1 {
				splits = splits[1:]
			}
		}
		abandon := func() {
			if r.Rollout == nil {
				return
			}
			if n := len(splits); n > 1 && splits[n-2].Equal(r.Rollout.Base) {
				splits = splits[:n-1]
			} else {
				splits[n-1] = r.Rollout.Base
			}
		}
		deploy := func(t *rapid.T, annotations map[string]string) {
			version := fmt.Sprintf("%d_1", rapid.IntRange(1, 6).Draw(t, "deployed"))
			spec := types.FunctionDeployment{Service: "iris", Annotations: &annotations}
			old := r
			if len(splits) == 0 {
				old = nil
			}
			next, err := rules.Deploy(old, Deployed{Model: "iris", Version: version, Spec: spec})
			if err != nil {
				t.Fatal(err)
			}
			abandon()
			r = next
			push(r.Split)
		}
		t.Repeat(map[string]func(*rapid.T){
			"deploy":  func(t *rapid.T) { deploy(t, map[string]string{}) },
			"rollout": func(t *rapid.T) { deploy(t, map[string]string{traffic.RolloutAnnotation: "steps=10,50,100 errors=1"}) },
			"step": func(t *rapid.T) {
				if r.Rollout == nil {
					return
				}
				r = r.Clone()
				if r.Rollout.Step == len(r.Rollout.Steps)-1 {
					r.Rollout = nil
					return
				}
				step := *r.Rollout
				step.Step++
				r.Rollout, r.Split = &step, step.Split()
				splits[len(splits)-1] = r.Split
			},
			"break": func(*rapid.T) {
				abandon()
				r = r.Clone()
				r.abandon()
			},
			"move": func(t *rapid.T) {
				if len(splits) == 0 {
					return
				}
				s := drawSplit(t)
				abandon()
				r = r.Clone()
				r.abandon()
				for _, v := range s.Versions() {
					if r.Find(v) == nil {
						r.Versions = append(r.Versions, Deployed{Model: "iris", Version: v})
					}
				}
				r.move(s)
				push(s)
			},
			"roll back": func(t *rapid.T) {
				possible := r.Rollout != nil || len(splits) > 1
				if r.Rollout != nil {
					abandon()
				} else if possible {
					splits = splits[:len(splits)-1]
				}
				r = r.Clone()
				if ok := r.Rollback(); ok != possible {
					t.Fatalf("%d splits, and rolling back says %v", len(splits), ok)
				}
			},
			"": func(t *rapid.T) {
				if len(splits) == 0 {
					return
				}
				if err := r.Tidy(); err != nil {
					t.Fatal(err)
				}
				if err := r.Split.Check(); err != nil {
					t.Fatal(err)
				}
				if !r.Split.Equal(splits[len(splits)-1]) {
					t.Fatalf("split %s, not %s", r.Split, splits[len(splits)-1])
				}
				if len(r.Before) != len(splits)-1 {
					t.Fatalf("%d splits before, not %d", len(r.Before), len(splits)-1)
				}
				for i, s := range r.Before {
					if !s.Equal(splits[len(splits)-2-i]) {
						t.Fatalf("before %d: %s, not %s", i, s, splits[len(splits)-2-i])
					}
				}
				seen := map[string]bool{}
				for _, d := range r.Versions {
					if seen[d.Version] {
						t.Fatalf("%s is known twice", d.Version)
					}
					seen[d.Version] = true
				}
				needs, keeps := r.Needs(), r.Keeps(warm)
				if len(keeps) > len(needs)+warm || !slices.Equal(keeps[:len(needs)], needs) {
					t.Fatalf("needs %v, keeps %v with keep_warm %d", needs, keeps, warm)
				}
			},
		})
	})
}
