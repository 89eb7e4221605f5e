package images_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faas-predict/faas-predict/tests/cluster/images"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// An image that has a runtime and no model serves a bundle that is put beside it, under a cluster's restrictions, and
// has what it takes to fetch one.
func TestRuntimeImagesServeBundles(t *testing.T) {
	for _, l := range languages {
		t.Run(l.template, func(t *testing.T) {
			dir := l.bundle(t)
			run1(t, "build", "--quiet", "--network", "host", "--file", filepath.Join(root, "watchdog", "runtime.Dockerfile"),
				"--build-arg", "WATCHDOG_IMAGE="+images.Watchdog, "--build-arg", "RUNTIME_IMAGE="+l.base.Name, "--tag", "runtime:1", t.TempDir())
			// A pod has it in a volume.
			dockerfile := filepath.Join(filepath.Dir(dir), "Dockerfile")
			if err := os.WriteFile(dockerfile, []byte("FROM runtime:1\nCOPY line /bundle/line\nENV model_path=/bundle/line\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			run1(t, "build", "--quiet", "--tag", "bundled:1", filepath.Dir(dir))
			if help := run1(t, "run", "--rm", "runtime:1", "fwatchdog", "--help"); !strings.Contains(help, "fwatchdog fetch URL DIR") {
				t.Error("its fwatchdog does not fetch:", help)
			}
			bundle, err := model.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			id, url := start(t, append(hardened, "bundled:1")...)
			until(t, id, "ready", func() bool { status, _ := ask("GET", url+"/_/ready", ""); return status == http.StatusOK })
			for _, example := range bundle.Examples {
				if status, answer := ask("POST", url, example.Request); status != http.StatusOK || answer != example.Response {
					t.Errorf("%q is answered with %d %q, want %q", example.Request, status, answer, example.Response)
				}
			}
		})
	}
}
