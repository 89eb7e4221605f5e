package images_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/provider/image"
	"github.com/faas-predict/faas-predict/tests/cluster/store"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// program is one of those that `make build` makes.
func program(t *testing.T, name string) string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join(root, "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("make build comes first: %v", err)
	}
	return file
}

// labels are the arguments of docker build that `faas-predict labels` gives.
func labels(t *testing.T, bundle string) (out []string) {
	t.Helper()
	said, err := exec.Command(program(t, "faas-predict"), "labels", bundle).Output()
	if err != nil {
		t.Fatal(err)
	}
	for label := range strings.Lines(string(said)) {
		out = append(out, "--label", strings.TrimSpace(label))
	}
	return out
}

// backend is a provider with the process backend.
type backend struct {
	url string
	*sdk.Client
}

// startProvider starts one whose Docker engine is that of the tests, and that has the credentials for a registry.
func startProvider(t *testing.T, login []byte) backend {
	t.Helper()
	dir, err := os.MkdirTemp("", "fp") // t.TempDir is closed to functions' users
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), login, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	var log strings.Builder
	cmd := exec.Command(program(t, "faas-predict"), "serve")
	cmd.Env = append(docker.Environ(), "DOCKER_CONFIG="+dir, "data_dir="+filepath.Join(dir, "data"),
		"listen_address=127.0.0.1", "port="+strconv.Itoa(port))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it was told to end
		if t.Failed() {
			t.Logf("the provider said:\n%s", log.String())
		}
		os.RemoveAll(dir)
	})
	base, err := url.Parse("http://127.0.0.1:" + strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if status, _ := ask("GET", base.String()+"/healthz", ""); status == http.StatusOK {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the provider does not serve")
		}
	}
	password, err := os.ReadFile(filepath.Join(dir, "data", "admin", "basic-auth-password"))
	if err != nil {
		t.Fatal(err)
	}
	return backend{base.String(), sdk.NewClient(base, &sdk.BasicAuth{Username: "admin", Password: string(password)}, http.DefaultClient)}
}

// runs deploys an image and holds it to the bundle that it was built from.
func (b backend) runs(t *testing.T, image string, bundle *model.Bundle) {
	t.Helper()
	name := "line" + strings.ToLower(rand.Text())[:8]
	if status, err := b.Deploy(t.Context(), types.FunctionDeployment{Service: name, Image: image}); err != nil || status != http.StatusAccepted {
		t.Fatalf("deploy %s: %d %v", image, status, err)
	}
	for _, example := range bundle.Examples {
		response, err := http.Post(b.url+"/function/"+name, "text/plain", strings.NewReader(example.Request))
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(response.Body)
		response.Body.Close()
		if got := response.Header.Get("X-Model-Version"); err != nil || string(said) != example.Response || got != bundle.Version.ID {
			t.Errorf("%q is answered %q by %s (%v), want %q by %s", example.Request, said, got, err, example.Response, bundle.Version.ID)
		}
	}
	if len(bundle.Examples) == 0 {
		t.Error("the bundle has no example")
	}
}

// One image for all backends: what the templates build is labelled with what is in it, goes to a registry that wants a
// password, and runs where there are no containers, as it does out of the engine's own store without labels.
func TestProcessBackendRunsImages(t *testing.T) {
	registry, err := store.Open("127.0.0.1", "puller", rand.Text())
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Close()
	provider := startProvider(t, registry.DockerConfig())
	for _, l := range languages {
		t.Run(l.template, func(t *testing.T) {
			dir := l.bundle(t)
			bundle, err := model.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			ref := registry.Host + "/models/" + l.template + ":1.2"
			l.build(t, dir, ref, labels(t, dir)...)
			var labelled map[string]string
			if err := json.Unmarshal([]byte(run1(t, "image", "inspect", "--format", "{{json .Config.Labels}}", ref)), &labelled); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(image.Labels(bundle.Name, bundle.Runtime, bundle.Version), labelled); diff != "" {
				t.Errorf("labels, want (-), got (+):\n%s", diff)
			}
			push(t, registry, ref)
			run1(t, "image", "rm", "--force", ref) // the engine is not to help
			provider.runs(t, ref, bundle)

			// A model that nobody pushed, and that no registry has.
			add(t, filepath.Join(dir, l.code), "# only in the engine\n")
			if bundle, err = model.Open(dir); err != nil {
				t.Fatal(err)
			}
			l.build(t, dir, l.template+":local")
			provider.runs(t, l.template+":local", bundle)
			if left := run1(t, "ps", "--all", "--quiet"); left != "" {
				t.Errorf("containers that the provider made: %s", left)
			}
		})
	}
}

// push has the engine push an image, with the registry's password.
func push(t *testing.T, registry *store.Store, ref string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), registry.DockerConfig(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := docker.Command(ctx, "push", "--quiet", ref)
	cmd.Env = append(cmd.Env, "DOCKER_CONFIG="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("push %s: %v\n%s", ref, err, out)
	}
}
