package config

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// derived are the defaults that depend on the machine; the guide describes them in words.
var derived = map[string]string{"data_dir": "see below"}

// documentedSettings returns "name flag = default" for each row of the guide's table of settings.
// Code marks are taken off.
func documentedSettings(t *testing.T) []string {
	t.Helper()
	guide, err := os.ReadFile("../../docs/provider.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(guide), "\n## Settings\n")
	if !found {
		t.Fatal("the guide has no heading ## Settings")
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
		rows = append(rows, strings.TrimSpace(cells[0])+" = "+strings.TrimSpace(cells[1]))
	}
	if len(rows) < 3 {
		t.Fatal("the guide has no table below ## Settings")
	}
	return rows[2:]
}

func TestGuideListsEverySettingWithItsDefault(t *testing.T) {
	documented := documentedSettings(t)
	var read []string
	for _, s := range Settings {
		value := s.Default
		if words, ok := derived[s.Name]; ok {
			value = words
		}
		read = append(read, s.Name+" = "+value)
	}
	slices.Sort(documented)
	slices.Sort(read)
	if diff := cmp.Diff(read, documented); diff != "" {
		t.Errorf("settings that are read (-) and settings in docs/provider.md (+):\n%s", diff)
	}
}
