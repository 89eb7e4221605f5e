package swarm

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/provider/backend/swarm"
	"github.com/faas-predict/faas-predict/tests/cluster/conformance"
)

// One engine is enough for all tests; it starts once.
func TestSwarm(t *testing.T) {
	s := install(t)
	t.Run("Conformance", func(t *testing.T) { conformance.Run(t, s) })
	t.Run("Records", func(t *testing.T) {
		t.Setenv("DOCKER_HOST", "unix://"+s.Socket())
		engine, err := swarm.Open(t.Context(), "faas-predict")
		must(t, err)
		conformance.Records(t, engine)
		must(t, engine.Close())
	})
	t.Run("TwoProviders", func(t *testing.T) { conformance.TwoProviders(t, s, s.second(t)) })
	t.Run("Placement", s.placement)
}

// second starts another provider and returns where it serves.
func (s *installed) second(t *testing.T) string {
	t.Helper()
	const port = "18981"
	s.run(t, nil, "service", "create", "--detach", "--name", "second", "--network", "faas-predict",
		"--publish", "mode=host,target=8080,published="+port, "--secret", "basic-auth-user", "--secret", "basic-auth-password",
		"--mount", "type=bind,source="+s.Socket()+",target=/var/run/docker.sock", "--mount", "type=tmpfs,target=/data",
		"--env", "backend=swarm", "--env", "data_dir=/data", "--env", "secret_mount_path=/run/secrets", "faas-predict:test")
	t.Cleanup(func() {
		_, err := s.Run(context.WithoutCancel(t.Context()), nil, "service", "rm", "second")
		must(t, err)
	})
	url := "http://127.0.0.1:" + port
	s.await(t, url, "second")
	return url
}

// placement holds services to what a deployment asks of the engine.
func (s *installed) placement(t *testing.T) {
	u, err := url.Parse(s.URL())
	must(t, err)
	client := sdk.NewClient(u, &sdk.BasicAuth{Username: "admin", Password: password}, http.DefaultClient)
	spec := types.FunctionDeployment{
		Service: "placed", Image: s.Image(t, "placed", "1", map[string]string{"main.py": "def predict(r):\n    return open('/proc/self/status').read()\n"}),
		Constraints: []string{"node.role == manager"}, ReadOnlyRootFilesystem: true,
		Limits:   &types.FunctionResources{Memory: "128Mi", CPU: "500m"},
		Requests: &types.FunctionResources{Memory: "32Mi", CPU: "10m"},
		Labels:   &map[string]string{"team": "plants"},
	}
	status, err := client.Deploy(t.Context(), spec)
	if err != nil || status != http.StatusAccepted {
		t.Fatalf("deploy: %d %v", status, err)
	}
	name := s.run(t, nil, "service", "ls", "--quiet", "--filter", "label=team=plants")
	for format, want := range map[string]string{
		"{{.Spec.TaskTemplate.Placement.Constraints}}":              "[node.role == manager]",
		"{{.Spec.TaskTemplate.ContainerSpec.ReadOnly}}":             "true",
		"{{.Spec.TaskTemplate.Resources.Limits.MemoryBytes}}":       "134217728",
		"{{.Spec.TaskTemplate.Resources.Limits.NanoCPUs}}":          "500000000",
		"{{.Spec.TaskTemplate.Resources.Reservations.MemoryBytes}}": "33554432",
		"{{.Spec.TaskTemplate.ContainerSpec.CapabilityDrop}}":       "[ALL]",
		"{{.Spec.UpdateConfig.Order}}":                              "start-first",
		"{{index .Spec.Labels \"faas-predict.version\"}}":           "1.1_1",
	} {
		if got := s.run(t, nil, "service", "inspect", "--format", format, name); got != want {
			t.Errorf("%s is %s, want %s", format, got, want)
		}
	}
	// What the kernel says of the model's process.
	answer, err := http.Post(s.URL()+"/function/placed", "text/plain", strings.NewReader(""))
	must(t, err)
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	must(t, err)
	for _, line := range []string{"Uid:\t12000\t12000", "Gid:\t0\t0", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"} {
		if !strings.Contains(string(said), line) {
			t.Errorf("the process has no %q:\n%s", line, said)
		}
	}
	must(t, client.DeleteFunction(t.Context(), "placed", ""))
}

// await blocks until a provider serves.
func (s *installed) await(t *testing.T, url, service string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		answer, err := http.Get(url + "/healthz")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return
			}
		}
	}
	t.Fatalf("the provider does not serve: %s", s.run(t, nil, "service", "ps", "--no-trunc", service))
}

const (
	root     = "../../.."
	base     = "python3:base"
	password = "a-password"
)

// installed is a swarm with the provider in it, as its stack file has it.
type installed struct {
	*Docker
	port      string
	fwatchdog []byte
}

func install(t *testing.T) *installed {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "swarm-")
	must(t, err)
	docker, err := Start(ctx, dir)
	must(t, err)
	s := &installed{Docker: docker, port: "18980"}
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			said, err := s.Run(ctx, nil, "service", "logs", "--raw", "--tail", "200", "faas-predict_provider")
			t.Logf("the provider said (%v):\n%s", err, said)
		}
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		must(t, os.RemoveAll(dir))
	})
	build := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w", "-o", dir, "./watchdog", "./provider")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	s.fwatchdog, err = os.ReadFile(filepath.Join(dir, "watchdog"))
	must(t, err)
	provider, err := os.ReadFile(filepath.Join(dir, "provider"))
	must(t, err)
	must(t, s.Base(ctx, filepath.Join(root, ".cache", "cluster"), base))
	must(t, s.Build(ctx, "faas-predict:test", map[string][]byte{
		"Dockerfile":   []byte("FROM scratch\nCOPY faas-predict /faas-predict\nENTRYPOINT [\"/faas-predict\"]\nCMD [\"serve\"]\n"),
		"faas-predict": provider,
	}))
	s.run(t, nil, "network", "create", "--driver", "overlay", "--attachable", "faas-predict")
	s.run(t, []byte("admin"), "secret", "create", "basic-auth-user", "-")
	s.run(t, []byte(password), "secret", "create", "basic-auth-password", "-")
	t.Setenv("FAAS_PREDICT_IMAGE", "faas-predict:test")
	t.Setenv("FAAS_PREDICT_PORT", s.port)
	t.Setenv("FAAS_PREDICT_PORT_MODE", "host") // the mesh needs IPVS, which a test machine may lack
	t.Setenv("DOCKER_SOCKET", s.Socket())
	s.run(t, nil, "stack", "deploy", "-c", filepath.Join(root, "provider/backend/swarm/stack.yml"), "faas-predict")
	s.StartProvider(t)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *installed) run(t *testing.T, input []byte, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := s.Run(ctx, input, args...)
	must(t, err)
	return out
}

func (s *installed) URL() string      { return "http://127.0.0.1:" + s.port }
func (s *installed) Password() string { return password }

// Image builds the image of a bundle as the template does.
func (s *installed) Image(t *testing.T, model, version string, files map[string]string) string {
	t.Helper()
	tag := fmt.Sprintf("%s:1.%s_1", model, version)
	content := map[string][]byte{
		"fwatchdog": s.fwatchdog,
		"Dockerfile": fmt.Appendf(nil, `FROM %s
COPY fwatchdog /usr/bin/fwatchdog
COPY function /home/app/function
ENV PATH=/usr/bin:/bin HOME=/tmp model_path=/home/app/function PYTHONDONTWRITEBYTECODE=1
USER 12000:0
LABEL org.opencontainers.image.title=%s org.opencontainers.image.version=1.%s_1
HEALTHCHECK --interval=2s CMD ["fwatchdog", "-run-healthcheck"]
CMD ["fwatchdog"]
`, base, model, version),
	}
	for name, text := range files {
		content["function/"+name] = []byte(text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	must(t, s.Build(ctx, tag, content))
	return tag
}

func (s *installed) containers(t *testing.T, filter string) []string {
	t.Helper()
	return strings.Fields(s.run(t, nil, "ps", "--quiet", "--no-trunc", "--filter", filter))
}

func (s *installed) KillProvider(t *testing.T) {
	t.Helper()
	for _, id := range s.containers(t, "label=com.docker.swarm.service.name=faas-predict_provider") {
		s.run(t, nil, "kill", id)
	}
}

// StartProvider waits: the swarm starts it.
func (s *installed) StartProvider(t *testing.T) {
	t.Helper()
	s.await(t, s.URL(), "faas-predict_provider")
}

func (s *installed) KillContainer(t *testing.T, function string) {
	t.Helper()
	running := s.containers(t, "label=faas-predict.name="+function)
	if len(running) == 0 {
		t.Fatal("no container runs")
	}
	s.run(t, nil, "kill", running[0])
}

func (s *installed) RestartAgent(t *testing.T) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	must(t, s.Restart(ctx))
	s.StartProvider(t)
	return true
}

func (s *installed) Left(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, kind := range []string{"service", "config", "secret"} {
		for name := range strings.FieldsSeq(s.run(t, nil, kind, "ls", "--format", "{{.Name}}", "--filter", "label=faas-predict.network=faas-predict")) {
			out = append(out, kind+" "+name)
		}
	}
	for id := range strings.FieldsSeq(s.run(t, nil, "ps", "--all", "--quiet", "--filter", "label=faas-predict.network")) {
		out = append(out, "container "+id)
	}
	return out
}
