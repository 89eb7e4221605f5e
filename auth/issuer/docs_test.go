package issuer

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/tests/guide"
)

const guideFile = "../../docs/auth.md"

// wantTable compares the first cells of a table with what there is.
func wantTable(t *testing.T, heading string, columns int, there []string) {
	t.Helper()
	var documented []string
	for _, cells := range guide.Table(t, guideFile, heading) {
		documented = append(documented, strings.Join(cells[:columns], " "))
	}
	slices.Sort(documented)
	slices.Sort(there)
	if diff := cmp.Diff(there, documented); diff != "" {
		t.Errorf("what there is (-) and what docs/auth.md has under %s (+):\n%s", heading, diff)
	}
}

func TestGuideListsEveryRoute(t *testing.T) {
	for heading, routes := range map[string][]Route{"## Endpoints": Routes, "## Administration": AdminRoutes} {
		var there []string
		for _, r := range routes {
			there = append(there, r.Method+" "+r.Path)
			if !strings.HasSuffix(r.Doc, ".") {
				t.Errorf("%s %s: its text is no sentence: %q", r.Method, r.Path, r.Doc)
			}
		}
		wantTable(t, heading, 2, there)
	}
}

func TestGuideListsEveryError(t *testing.T) {
	wantTable(t, "## Errors", 1, []string{
		codeInvalidRequest, codeInvalidClient, codeInvalidGrant, codeUnsupportedGrant, codeInvalidScope, codeInvalidTarget, codeUnauthorized,
		codeUnavailable, codeServerError,
	})
}

func TestGuideListsEveryMetric(t *testing.T) {
	registry := prometheus.NewRegistry()
	b := newBench(t, func(c *Config) { c.Metrics = registry })
	b.token(t, "shop", b.add(t, "shop", "*"))
	b.attempt(t, "shop", "wrong")
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var there []string
	for _, f := range families {
		there = append(there, f.GetName()+" "+strings.ToLower(f.GetType().String()))
	}
	wantTable(t, "## Metrics", 2, there)
}
