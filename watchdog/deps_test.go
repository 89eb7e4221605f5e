package main

import (
	"os/exec"
	"strings"
	"testing"
)

// fwatchdog goes into every model image, so it stays small.
func TestWatchdogDependsOnNoEngineAndNoDatabase(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		if host, _, _ := strings.Cut(dep, "/"); !strings.Contains(host, ".") {
			continue // the standard library's database/sql comes with Prometheus's client, and opens nothing
		}
		for _, banned := range []string{"k8s.io", "docker", "moby", "containerd", "bbolt", "nats-io", "sql", "faas-predict/provider", "auth/issuer", "auth/forward"} {
			if strings.Contains(dep, banned) {
				t.Errorf("fwatchdog depends on %s", dep)
			}
		}
	}
}
