package images_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faas-predict/faas-predict/tests/cluster/engine"
	"github.com/faas-predict/faas-predict/tests/cluster/images"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

const root = "../../.."

var docker *engine.Engine

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if docker, err = engine.Start(ctx, "10.214.0.0/16"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, docker.Stop()) }()
	for _, base := range []engine.Base{engine.Python, engine.R} {
		if err := docker.MakeBase(ctx, base, filepath.Join(root, ".cache", "bases")); err != nil {
			return 1, err
		}
	}
	if err := images.MakeWatchdog(ctx, docker, root); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// language is what the tests need to know of a template.
type language struct {
	template            string
	base                engine.Base
	example             string
	coefficients, code  string // files of the example
	packages, dependsOn string // the file that lists dependencies, and what it says
}

var languages = []language{
	{
		template: "python3-predict", base: engine.Python, example: "template/python3-predict/function",
		coefficients: "coefficients/line.json", code: "main.py", packages: "requirements.txt", dependsOn: "six==1.16.0\n",
	},
	{
		template: "r-predict", base: engine.R, example: "template/r-predict/function",
		coefficients: "coefficients/line.csv", code: "main.R", packages: "packages.txt", dependsOn: "jsonlite\n",
	},
}

// bundle copies the language's example, so that a test may change it.
func (l language) bundle(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "line")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, l.example))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (l language) build(t *testing.T, handler, image string, args ...string) {
	t.Helper()
	if err := images.Build(t.Context(), docker, root, images.Function{Language: l.template, Base: l.base, Handler: handler, Image: image, Args: args}); err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, file, text string) {
	t.Helper()
	out, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := out.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func run1(t *testing.T, args ...string) string {
	t.Helper()
	out, err := docker.Docker(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func layers(t *testing.T, image string) (out []string) {
	t.Helper()
	if err := json.Unmarshal([]byte(run1(t, "image", "inspect", "--format", "{{json .RootFS.Layers}}", image)), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// firstNew is the index of the first layer in which the images differ; all below are the same.
func firstNew(old, new []string) int {
	for i := range new {
		if i >= len(old) || old[i] != new[i] {
			return i
		}
	}
	return len(new)
}

// Dependencies, code and coefficients are layers in that order: what changes makes new what is its own and above.
func TestNewCoefficientsAreOneNewLayer(t *testing.T) {
	for _, l := range languages {
		t.Run(l.template, func(t *testing.T) {
			dir := l.bundle(t)
			add(t, filepath.Join(dir, l.packages), l.dependsOn)
			l.build(t, dir, "layers:1")
			first := layers(t, "layers:1")

			l.build(t, dir, "layers:1")
			if again := layers(t, "layers:1"); !slices.Equal(first, again) {
				t.Errorf("the same bundle again has other layers: %v, before %v", again, first)
			}

			add(t, filepath.Join(dir, l.coefficients), "\n")
			l.build(t, dir, "layers:2")
			second := layers(t, "layers:2")
			if len(second) != len(first) || firstNew(first, second) != len(second)-1 {
				t.Errorf("new coefficients: layers from %d of %d are new, want the last only", firstNew(first, second), len(second))
			}

			add(t, filepath.Join(dir, l.code), "# changed\n")
			l.build(t, dir, "layers:3")
			third := layers(t, "layers:3")
			if len(third) != len(first) || firstNew(second, third) != len(third)-2 {
				t.Errorf("new code: layers from %d of %d are new, want the last two", firstNew(second, third), len(third))
			}
		})
	}
}

// What the image holds is the bundle that it was built from, to the digest.
func TestImageIsTheBundlesVersion(t *testing.T) {
	for _, l := range languages {
		t.Run(l.template, func(t *testing.T) {
			dir := l.bundle(t)
			l.build(t, dir, "version:1")
			want, err := model.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			var got model.Version
			if err := json.Unmarshal([]byte(run1(t, "run", "--rm", "version:1", "fwatchdog", "version")), &got); err != nil {
				t.Fatal(err)
			}
			if got != want.Version {
				t.Errorf("the image holds %+v, want %+v", got, want.Version)
			}
		})
	}
}

// hardened are the restrictions that clusters put on a container: OpenShift's restricted SCC gives it a user id of its
// own in group 0.
var hardened = []string{
	"--read-only", "--tmpfs", "/tmp", "--user", "1000650000:0", "--cap-drop", "ALL",
	"--security-opt", "no-new-privileges", "--memory", "512m", "--pids-limit", "200",
}

// start runs the image and returns the container's id and address.
func start(t *testing.T, args ...string) (id, address string) {
	t.Helper()
	id = run1(t, append([]string{"run", "--detach", "--network", engine.Network}, args...)...)
	t.Cleanup(func() { _, _ = docker.Docker(context.WithoutCancel(t.Context()), "rm", "--force", id) })
	address = run1(t, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", id)
	return id, "http://" + address + ":8080"
}

// until waits for what to be true.
func until(t *testing.T, id, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			logs, _ := docker.Command(t.Context(), "logs", id).CombinedOutput()
			t.Fatalf("not %s after 60s; its log: %s", what, logs)
		}
	}
}

func ask(method, url, body string) (status int, answer string) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(raw)
}

// The image runs under a cluster's restrictions, is healthy by its own HEALTHCHECK, and ends in order.
func TestImageRunsRestricted(t *testing.T) {
	for _, l := range languages {
		t.Run(l.template, func(t *testing.T) {
			dir := l.bundle(t)
			l.build(t, dir, "restricted:1")
			bundle, err := model.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			id, url := start(t, append(hardened, "restricted:1")...)
			until(t, id, "ready", func() bool { status, _ := ask("GET", url+"/_/ready", ""); return status == http.StatusOK })
			for _, example := range bundle.Examples {
				if status, answer := ask("POST", url, example.Request); status != http.StatusOK || answer != example.Response {
					t.Errorf("%q is answered with %d %q, want %q", example.Request, status, answer, example.Response)
				}
			}
			until(t, id, "healthy", func() bool {
				return run1(t, "inspect", "--format", "{{.State.Health.Status}}", id) == "healthy"
			})
			began := time.Now()
			run1(t, "stop", "--time", "30", id)
			if code := run1(t, "inspect", "--format", "{{.State.ExitCode}}", id); code != "0" {
				t.Errorf("it ended with %s after SIGTERM, want 0", code)
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("it took %s to end", took)
			}
		})
	}
}
