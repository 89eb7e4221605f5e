package conformance

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// TwoProviders holds two providers of one engine to one mind: what one is told the other does, and no call
// of either is lost on the way. second is where the other one serves; its admin is the same.
func TwoProviders(t *testing.T, h Harness, second string) {
	a := &suite{Harness: h, images: map[string]string{}}
	b := &suite{Harness: elsewhere{h, second}, images: a.images}
	status, err := a.client(t).Deploy(t.Context(), a.spec(t, "1"))
	if err != nil || status != http.StatusAccepted {
		t.Fatalf("deploy: %d %v", status, err)
	}
	b.update(t, b.spec(t, "2")) // at once
	wanted := splitBody{Split: []target{{id("1"), 50}, {id("2"), 50}}}
	if status := b.api(t, http.MethodPut, "/system/models/"+function+"/traffic", wanted, nil); status != http.StatusOK {
		t.Fatalf("split: %d", status)
	}
	eventually(t, "calls of the first go where the second has moved them", func() bool {
		_, _, version := a.call(t.Context(), "x")
		return version == id("2")
	})
	loads := []*load{a.startLoad(t), b.startLoad(t)}
	// Both move the calls at once, over and over, while one deploys.
	var all sync.WaitGroup
	for i, s := range []*suite{a, b} {
		all.Go(func() {
			for round := range 10 {
				weight := float64(5 + i + 9*round)
				split := splitBody{Split: []target{{id("1"), weight}, {id("2"), 100 - weight}}}
				if status := s.api(t, http.MethodPut, "/system/models/"+function+"/traffic", split, nil); status != http.StatusOK {
					t.Errorf("split: %d", status)
				}
			}
		})
	}
	deploy := func(s *suite, spec types.FunctionDeployment) {
		if status, err := s.client(t).Update(context.WithoutCancel(t.Context()), spec); err != nil || status != http.StatusOK {
			t.Errorf("update: %d %v", status, err)
		}
	}
	spec := a.spec(t, "3")
	all.Go(func() { deploy(a, spec) })
	all.Wait()
	// Both deploy at once, over and over, and both scale.
	for i, s := range []*suite{a, b} {
		spec := a.spec(t, strconv.Itoa(1+i))
		all.Go(func() {
			for range 3 {
				deploy(s, spec)
			}
		})
		all.Go(func() {
			for n := range uint64(3) {
				if err := s.client(t).ScaleFunction(context.WithoutCancel(t.Context()), function, "", n+1); err != nil {
					t.Errorf("scale: %v", err)
				}
			}
		})
	}
	all.Wait()
	time.Sleep(5 * time.Second) // containers leave
	for _, l := range loads {
		l.end(t)
	}
	eventually(t, "both say the same", func() bool {
		x, y := a.standing(t), b.standing(t)
		return x == y && strings.HasSuffix(x, "3 of 3")
	})
	must(t, b.client(t).DeleteFunction(t.Context(), function, ""))
	eventually(t, "the first has forgotten it", func() bool {
		status, _, _ := a.call(t.Context(), "x")
		return status == http.StatusNotFound
	})
	eventually(t, "nothing is left", func() bool { return len(h.Left(t)) == 0 })
}

// standing is what a provider says of the function.
func (s *suite) standing(t *testing.T) string {
	t.Helper()
	var split splitBody
	s.api(t, http.MethodGet, "/system/models/"+function+"/traffic", nil, &split)
	got, err := s.client(t).GetFunction(t.Context(), function, "")
	must(t, err)
	return fmt.Sprintf("%v %s %d of %d", split.Split, got.Image, got.AvailableReplicas, got.Replicas)
}

// elsewhere is a harness whose provider is another one.
type elsewhere struct {
	Harness
	url string
}

func (e elsewhere) URL() string { return e.url }
