package swarm

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faas-predict/faas-predict/tests/cluster/conformance"
)

func TestConformance(t *testing.T) { conformance.Run(t, install(t)) }

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
			said, err := s.Run(context.Background(), nil, "service", "logs", "--tail", "200", "faas-predict_provider")
			t.Logf("the provider said (%v):\n%s", err, said)
			ps, _ := s.Run(context.Background(), nil, "service", "ls")
			t.Log(ps)
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
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		answer, err := http.Get(s.URL() + "/healthz")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return
			}
		}
	}
	t.Fatalf("the provider does not serve: %s", s.run(t, nil, "service", "ps", "--no-trunc", "faas-predict_provider"))
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
