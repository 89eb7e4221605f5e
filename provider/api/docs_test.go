package api

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// documentedRoutes returns "METHOD /path" for each row of the guide's table of endpoints. Code marks
// are taken off.
func documentedRoutes(t *testing.T) []string {
	t.Helper()
	guide, err := os.ReadFile("../../docs/provider.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(guide), "\n## Endpoints\n")
	if !found {
		t.Fatal("the guide has no heading ## Endpoints")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var rows []string
	for line := range strings.Lines(section) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "|") {
			if rows != nil {
				break
			}
			continue
		}
		cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "|"), "`", ""), "|")
		rows = append(rows, strings.TrimSpace(cells[0])+" "+strings.TrimSpace(cells[1]))
	}
	if len(rows) < 3 {
		t.Fatal("the guide has no table below ## Endpoints")
	}
	return rows[2:]
}

func TestGuideListsEveryRoute(t *testing.T) {
	documented := documentedRoutes(t)
	var served []string
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
