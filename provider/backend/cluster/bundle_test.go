package cluster

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// bundles are tags that hold what they gave until it is released.
type bundles struct{ held *atomic.Int32 }

func (b bundles) Inspect(ctx context.Context, image string) (Image, error) {
	found, err := tags{}.Inspect(ctx, image)
	if err != nil {
		return found, err
	}
	b.held.Add(1)
	found.Bundle = &deployment.Bundle{CodeDigest: "code of " + found.Version}
	found.Release = func() { b.held.Add(-1) }
	return found, nil
}

// holding is memory that tells whether bundles were held while their workloads were started.
type holding struct {
	*memory
	held    *atomic.Int32
	applied []Workload
	unheld  int
}

func (h *holding) Apply(ctx context.Context, w Workload) error {
	if h.held.Load() == 0 {
		h.unheld++
	}
	h.applied = append(h.applied, w)
	return h.memory.Apply(ctx, w)
}

func TestABundleIsHeldUntilTheRecordNamesIt(t *testing.T) {
	p := open(t, newEngine(t))
	held := new(atomic.Int32)
	h := &holding{memory: p.Engine.(*memory), held: held}
	p.Engine, p.Images = h, bundles{held}
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	must(t, p.Update(t.Context(), spec("iris:1_2")))
	_, err := p.SetTraffic(t.Context(), iris, traffic.All("1_3")) // found as a tag
	must(t, err)
	if err := p.Update(t.Context(), spec("fails:1_4")); !errors.Is(err, backend.ErrFailed) {
		t.Errorf("got %v", err)
	}
	if h.unheld > 0 || len(h.applied) != 4 {
		t.Errorf("%d of %d workloads were started with a bundle that may go", h.unheld, len(h.applied))
	}
	for _, w := range h.applied {
		if w.Bundle == nil || w.Bundle.CodeDigest != "code of "+w.Version {
			t.Errorf("version %s is started with %+v", w.Version, w.Bundle)
		}
	}
	if n := held.Load(); n != 0 {
		t.Errorf("%d are held afterwards", n)
	}
	// The record knows the bundle: nobody is asked for it when the function comes back from zero.
	must(t, p.Scale(t.Context(), iris, 0))
	p.Images = nil
	must(t, p.Scale(t.Context(), iris, 1))
	if last := h.applied[len(h.applied)-1]; last.Version != "1_3" || last.Bundle == nil {
		t.Errorf("after zero replicas it is %+v", last)
	}
}

func TestAVersionInUseIsNotUnloaded(t *testing.T) {
	p := open(t, newEngine(t))
	p.Images = bundles{new(atomic.Int32)}
	must(t, p.Create(t.Context(), spec("iris:1_1")))
	must(t, p.Update(t.Context(), spec("iris:1_2")))
	for _, replicas := range []uint64{1, 0} {
		must(t, p.Scale(t.Context(), iris, replicas))
		if err := p.Unload(t.Context(), "iris", "1_2"); !errors.Is(err, backend.ErrInUse) {
			t.Errorf("at %d replicas: %v", replicas, err)
		}
	}
	must(t, p.Unload(t.Context(), "iris", "1_1"))
	if err := p.Unload(t.Context(), "rose", "1_2"); err != nil {
		t.Error("another model's version of that name:", err)
	}
}
