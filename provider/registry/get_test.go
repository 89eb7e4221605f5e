package registry

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// records writes n records of a model as pushes would, and no files.
func (b *bench) records(t testing.TB, name string, n int) {
	t.Helper()
	files := list(map[string]string{"model.yml": "", "requirements.txt": "", "coefficients/w": "", "README.md": ""})
	if err := b.db.Update(func(tx *bbolt.Tx) error {
		for i := range n {
			id := fmt.Sprintf("1.0.0_%05d", i)
			raw, err := json.Marshal(Version{Version: model.Version{ID: id}, Model: name, Files: files, PushedAt: time.Unix(int64(i), 0)})
			if err != nil {
				return err
			}
			if err := tx.Bucket(bucket).Put(key(name, id), raw); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

const manyVersions = 1000

// fastest is the shortest of some runs: what a machine that does other things as well can do.
func fastest(run func()) time.Duration {
	best := time.Hour
	for range 5 {
		start := time.Now()
		run()
		best = min(best, time.Since(start))
	}
	return best
}

func TestModelWithAThousandVersionsIsListedAtOnce(t *testing.T) {
	b := newBench(t, plenty)
	b.records(t, "iris", manyVersions)
	took := fastest(func() {
		if m, err := b.Get("iris"); err != nil || len(m.Versions) != manyVersions || m.Latest != "1.0.0_00999" {
			t.Fatalf("%d versions, latest %s, %v", len(m.Versions), m.Latest, err)
		}
	})
	if took > raceSlowdown*100*time.Millisecond {
		t.Errorf("%d versions took %s", manyVersions, took)
	}
	t.Logf("%d versions took %s", manyVersions, took)
}

func TestOtherModelsCostAModelNothing(t *testing.T) {
	b := newBench(t, plenty)
	for _, name := range []string{"a", "iris-2", "iri", "z"} {
		b.records(t, name, manyVersions)
	}
	b.records(t, "iris", 1)
	one := fastest(func() {
		if m, err := b.Get("iris"); err != nil || len(m.Versions) != 1 {
			t.Fatalf("%+v, %v", m, err)
		}
	})
	all := fastest(func() {
		if _, err := b.List(); err != nil {
			t.Fatal(err)
		}
	})
	if one > all/20 {
		t.Errorf("one model with one version took %s, all with %d took %s", one, 4*manyVersions+1, all)
	}
}

func BenchmarkGetModelWithAThousandVersions(b *testing.B) {
	r := newBench(b, plenty)
	r.records(b, "iris", manyVersions)
	for b.Loop() {
		if _, err := r.Get("iris"); err != nil {
			b.Fatal(err)
		}
	}
}
