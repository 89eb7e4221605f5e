package process

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/faas-predict/faas-predict/provider/traffic"
)

// The model of a function's splits is a list of them, the one in force last: moving appends, rolling
// back takes away.
func TestARecordKeepsSplitsAsAListDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		warm := rapid.IntRange(0, 3).Draw(t, "keep_warm")
		r := &record{}
		var splits []traffic.Split
		draw := func(t *rapid.T) traffic.Split {
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
		load := func() { // what apply does for versions that are not loaded
			for _, v := range r.Split.Versions() {
				if r.find(v) == nil {
					r.Versions = append(r.Versions, deployed{Model: "iris", Version: v})
				}
			}
			r.forget(warm)
		}
		t.Repeat(map[string]func(*rapid.T){
			"move": func(t *rapid.T) {
				s := draw(t)
				before := r.clone()
				r = r.clone()
				r.move(s)
				load()
				if len(splits) == 0 || !splits[len(splits)-1].Equal(s) {
					splits = append(splits, s)
				}
				if len(splits) > splitsKept+1 {
					splits = splits[1:]
				}
				if len(before.Before) > 0 && len(r.Before) == 0 {
					t.Fatal("history is gone")
				}
			},
			"roll back": func(t *rapid.T) {
				r = r.clone()
				if ok := r.rollback(); ok != (len(splits) > 1) {
					t.Fatalf("%d splits, and rolling back says %v", len(splits), ok)
				} else if ok {
					splits = splits[:len(splits)-1]
					load()
				}
			},
			"": func(t *rapid.T) {
				if len(splits) == 0 {
					return
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
				needed := r.Split.Versions()
				extra := 0
				for i, d := range r.Versions {
					if slices.ContainsFunc(r.Versions[i+1:], func(o deployed) bool { return o.Version == d.Version }) {
						t.Fatalf("%s is loaded twice", d.Version)
					}
					if !slices.Contains(needed, d.Version) {
						extra++
					}
				}
				if len(r.Versions)-extra != len(needed) || extra > warm {
					t.Fatalf("loaded %v for %s with keep_warm %d", r.Versions, r.Split, warm)
				}
			},
		})
	})
}
