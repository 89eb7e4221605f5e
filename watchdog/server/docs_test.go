package server

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/pool"
)

// docTable returns the cells of the first table below a heading of the guide, without its head. Code
// marks are taken off, so that the guide may set what is literal as code.
func docTable(t *testing.T, heading string) [][]string {
	t.Helper()
	guide, err := os.ReadFile("../../docs/fwatchdog.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(guide), "\n"+heading+"\n")
	if !found {
		t.Fatalf("the guide has no heading %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var rows [][]string
	for line := range strings.Lines(section) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "|") {
			if rows != nil {
				break
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.ReplaceAll(strings.TrimSpace(cells[i]), "`", "")
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 {
		t.Fatalf("the guide has no table below %q", heading)
	}
	return rows[2:]
}

func TestGuideListsEverySettingWithItsDefault(t *testing.T) {
	var documented, read []string
	for _, cells := range docTable(t, "## Settings") {
		documented = append(documented, cells[0]+" = "+cells[1])
	}
	for _, v := range Variables {
		read = append(read, v.Name+" = "+v.Default)
	}
	slices.Sort(documented)
	slices.Sort(read)
	if diff := cmp.Diff(read, documented); diff != "" {
		t.Errorf("settings that are read (-) and settings in docs/fwatchdog.md (+):\n%s", diff)
	}
}

func TestGuideListsEveryMetric(t *testing.T) {
	m := newMetrics(model.Version{}, "", func() pool.Stats { return pool.Stats{} })
	m.served(200, "GET", 0)
	m.deaths.WithLabelValues("crash")
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var documented, gathered []string
	for _, cells := range docTable(t, "## Metrics") {
		documented = append(documented, cells[0]+" "+cells[1])
	}
	for _, f := range families {
		if name := f.GetName(); !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			gathered = append(gathered, name+" "+strings.ToLower(f.GetType().String()))
		}
	}
	slices.Sort(documented)
	slices.Sort(gathered)
	if diff := cmp.Diff(gathered, documented); diff != "" {
		t.Errorf("metrics that are served (-) and metrics in docs/fwatchdog.md (+):\n%s", diff)
	}
}
