package packages

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOnlySourcesReachAnInstallationAndOnlyPortableOnesAnotherMachine(t *testing.T) {
	given := []string{
		"HOME=/root", "PIPELINE=no", "PIP_INDEX_URL=https://me:secret@index/simple?a=b", "UV_NO_INDEX=1", "HTTPS_PROXY=http://proxy",
		"PIP_CERT=/a.pem", "SSL_CERT_FILE=/b.pem", "REQUESTS_CA_BUNDLE=/c.pem", "UV_CONFIG_FILE=/uv.toml",
	}
	if diff := cmp.Diff(given[2:], Sources(given)); diff != "" {
		t.Error("sources:", diff)
	}
	portable := PortableSources(given)
	if names := slices.Sorted(maps.Keys(portable)); !slices.Equal(names, []string{"HTTPS_PROXY", "PIP_INDEX_URL", "UV_NO_INDEX"}) {
		t.Errorf("portable are %v", names)
	}
	if got := portable["PIP_INDEX_URL"]; got != "https://me:secret@index/simple?a=b" {
		t.Errorf("PIP_INDEX_URL is %s", got)
	}
}
