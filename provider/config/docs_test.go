package config

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faas-predict/faas-predict/tests/guide"
)

// derived are the defaults that depend on the machine; the guide describes them in words.
var derived = map[string]string{
	"data_dir":   "see below",
	"issuer_url": "http or https, listen_address or 127.0.0.1, and port",
}

func TestGuideListsEverySettingWithItsDefault(t *testing.T) {
	var documented, read []string
	for _, cells := range guide.Table(t, "../../docs/provider.md", "## Settings") {
		documented = append(documented, cells[0]+" = "+cells[1])
	}
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
