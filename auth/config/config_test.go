package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faas-predict/faas-predict/tests/guide"
)

func read(t *testing.T, values map[string]string) (*Config, error) {
	t.Helper()
	return Read(func(name string) string { return values[name] })
}

func TestBadValuesAreRefusedByName(t *testing.T) {
	for name, value := range map[string]string{
		"port": "http", "metrics_port": "-1", "issuer_url": "example", "access_ttl": "soon", "refresh_ttl": "-1s", "signing_algorithm": "HS256",
		"key_rotation": "1m", "trusted_proxies": "10.0.0.0/8,nobody", "drain_timeout": "x", "validate_proxy": "haproxy", "validate_public": "healthz", "log_format": "xml", "log_level": "loud",
	} {
		if _, err := read(t, map[string]string{name: value}); err == nil || !strings.Contains(err.Error(), "setting "+name+" ") {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
	if _, err := read(t, map[string]string{"tls_cert": "x"}); err == nil || !strings.Contains(err.Error(), "tls_key") {
		t.Errorf("tls_cert alone: %v", err)
	}
}

func TestIssuerURLIsDerivedFromTheAddress(t *testing.T) {
	for want, values := range map[string]map[string]string{
		"http://127.0.0.1:8090":     nil,
		"http://127.0.0.1:8090 ":    {"listen_address": "0.0.0.0"},
		"http://[::1]:8090":         {"listen_address": "::1"},
		"https://auth.local:8090":   {"listen_address": "auth.local", "tls_cert": "c", "tls_key": "k"},
		"https://auth.example/faas": {"issuer_url": "https://auth.example/faas"},
	} {
		c, err := read(t, values)
		if err != nil || c.URL(8090) != strings.TrimSpace(want) {
			t.Errorf("%v: %s, %v", values, c.URL(8090), err)
		}
	}
}

func TestProxiesAreAddressesOrNetworks(t *testing.T) {
	c, err := read(t, map[string]string{"trusted_proxies": "127.0.0.1, 10.1.2.3/8"})
	if err != nil || len(c.TrustedProxies) != 2 || c.TrustedProxies[0].String() != "127.0.0.1/32" || c.TrustedProxies[1].String() != "10.0.0.0/8" {
		t.Errorf("%v, %v", c, err)
	}
}

// derived are the defaults that depend on the machine; the guide describes them in words.
var derived = map[string]string{"data_dir": "see below"}

func TestGuideListsEverySettingWithItsDefault(t *testing.T) {
	var documented, read []string
	for _, cells := range guide.Table(t, "../../docs/auth.md", "## Settings") {
		documented = append(documented, cells[0]+" = "+cells[1])
	}
	for _, s := range Settings {
		value := s.Default
		if words, ok := derived[s.Name]; ok {
			value = words
		}
		if !strings.HasSuffix(s.Doc, ".") {
			t.Errorf("setting %s: its text is no sentence: %q", s.Name, s.Doc)
		}
		read = append(read, s.Name+" = "+value)
	}
	slices.Sort(documented)
	slices.Sort(read)
	if diff := cmp.Diff(read, documented); diff != "" {
		t.Errorf("settings that are read (-) and settings in docs/auth.md (+):\n%s", diff)
	}
}
