package server

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faas-predict/faas-predict/tests/guide"
	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/pool"
)

const guideFile = "../../docs/fwatchdog.md"

func TestGuideListsEverySettingWithItsDefault(t *testing.T) {
	var documented, read []string
	for _, cells := range guide.Table(t, guideFile, "## Settings") {
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
	for _, cells := range guide.Table(t, guideFile, "## Metrics") {
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
