package api

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faas-predict/faas-predict/tests/guide"
)

func TestGuideListsEveryRoute(t *testing.T) {
	var documented, served []string
	for _, cells := range guide.Table(t, "../../docs/provider.md", "## Endpoints") {
		documented = append(documented, cells[0]+" "+cells[1])
	}
	for _, route := range Routes {
		method := route.Method
		if method == "" {
			method = "any"
		}
		served = append(served, method+" "+route.Path)
	}
	slices.Sort(documented)
	slices.Sort(served)
	if diff := cmp.Diff(served, documented); diff != "" {
		t.Errorf("routes that are served (-) and routes in docs/provider.md (+):\n%s", diff)
	}
}
