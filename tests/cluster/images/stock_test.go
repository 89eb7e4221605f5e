package images_test

import (
	"net/http"
	"testing"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// wantExamples calls the container with the bundle's examples.
func wantExamples(t *testing.T, bundle *model.Bundle, url string) {
	t.Helper()
	for _, example := range bundle.Examples {
		if status, answer := ask("POST", url, example.Request); status != http.StatusOK || answer != example.Response {
			t.Errorf("%q is answered with %d %q, want %q", example.Request, status, answer, example.Response)
		}
	}
}

func open(t *testing.T, dir string) *model.Bundle {
	t.Helper()
	bundle, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

// OpenFaaS's own providers set no more than this of a container, and ask whether it is well by one of two probes:
// `cat /tmp/.lock` in it, or GET /_/health.
func TestStockOpenFaaSRunsTheImage(t *testing.T) {
	for _, l := range languages {
		t.Run(l.template, func(t *testing.T) {
			dir := l.bundle(t)
			l.build(t, dir, "stock:1")
			for name, args := range map[string][]string{
				"as the image says": nil,
				"set_nonroot_user":  {"--user", "12000"},
				"read-only":         {"--read-only", "--tmpfs", "/tmp"},
			} {
				t.Run(name, func(t *testing.T) {
					// fprocess is what faas-cli takes from the template's template.yml.
					id, url := start(t, append(args, "--env", "fprocess=fwatchdog", "--env", "write_timeout=10s", "stock:1")...)
					until(t, id, "well by its lock file", func() bool {
						_, err := docker.Docker(t.Context(), "exec", id, "cat", "/tmp/.lock")
						return err == nil
					})
					until(t, id, "well by HTTP", func() bool { status, _ := ask("GET", url+"/_/health", ""); return status == http.StatusOK })
					until(t, id, "ready", func() bool { status, _ := ask("GET", url+"/_/ready", ""); return status == http.StatusOK })
					wantExamples(t, open(t, dir), url)
					if user := run1(t, "exec", id, "id", "-u"); user != "12000" {
						t.Errorf("it runs as user %s", user)
					}
				})
			}
		})
	}
}

// Nothing of the image's needs a shell to run: neither Python's start nor R's, whose own starter is a shell script,
// nor the HEALTHCHECK.
func TestImageRunsWithoutAShell(t *testing.T) {
	for _, l := range languages {
		t.Run(l.template, func(t *testing.T) {
			dir := l.bundle(t)
			l.build(t, dir, "shell:1")
			id, url := start(t, append(hardened, "--volume", "/dev/null:/usr/bin/dash", "--volume", "/dev/null:/usr/bin/bash", "shell:1")...)
			until(t, id, "ready", func() bool { status, _ := ask("GET", url+"/_/ready", ""); return status == http.StatusOK })
			for _, shell := range []string{"sh", "bash", "/bin/sh"} {
				if out, err := docker.Docker(t.Context(), "exec", id, shell, "-c", "true"); err == nil {
					t.Errorf("there is still %s: %s", shell, out)
				}
			}
			wantExamples(t, open(t, dir), url)
			until(t, id, "healthy", func() bool {
				return run1(t, "inspect", "--format", "{{.State.Health.Status}}", id) == "healthy"
			})
		})
	}
}
