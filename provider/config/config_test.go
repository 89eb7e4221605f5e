package config

import (
	"strings"
	"testing"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/runner"
)

func read(t *testing.T, values map[string]string) (*Config, error) {
	t.Helper()
	return Read(func(name string) string { return values[name] })
}

func TestDefaultsAreSafe(t *testing.T) {
	c, err := read(t, map[string]string{"data_dir": "/data"})
	if err != nil {
		t.Fatal(err)
	}
	if !c.BasicAuth || c.Port != 8080 || c.ReadTimeout != 0 || c.WriteTimeout != 0 || c.SecretMountPath != "/data/admin" {
		t.Errorf("%+v", c)
	}
}

func TestTimeoutsAreDurationsOrSeconds(t *testing.T) {
	c, err := read(t, map[string]string{"read_timeout": "90", "write_timeout": "1m30s"})
	if err != nil || c.ReadTimeout != 90*time.Second || c.WriteTimeout != 90*time.Second {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestBadValuesAreRefusedByName(t *testing.T) {
	for name, value := range map[string]string{
		"port": "http", "backend": "nomad", "basic_auth": "yes", "read_timeout": "soon", "max_idle_conns": "0",
		"max_model_bytes": "-1", "uid_range": "0-10", "log_format": "xml", "log_level": "loud", "max_replicas": "0",
	} {
		if _, err := read(t, map[string]string{name: value}); err == nil || !strings.Contains(err.Error(), "setting "+name+" ") {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

func TestReplicasEndWhereTheWatchdogsWorkersDo(t *testing.T) {
	if c, err := read(t, map[string]string{"max_replicas": "256"}); err != nil || c.MaxReplicas != runner.MaxWorkers {
		t.Errorf("%+v, %v", c, err)
	}
	_, err := read(t, map[string]string{"max_replicas": "257"})
	if err == nil || !strings.Contains(err.Error(), "from 1 to 256: a replica is a worker") {
		t.Errorf("max_replicas=257: %v", err)
	}
}

func TestEverySettingIsDocumented(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Settings {
		if seen[s.Name] || s.Name == "" || !strings.HasSuffix(s.Doc, ".") {
			t.Errorf("setting %q: named twice, or its text is no sentence: %q", s.Name, s.Doc)
		}
		seen[s.Name] = true
	}
}
