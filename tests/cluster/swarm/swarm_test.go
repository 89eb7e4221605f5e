package swarm

import (
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/provider/backend/swarm"
	"github.com/faas-predict/faas-predict/tests/cluster/conformance"
	"github.com/faas-predict/faas-predict/tests/cluster/modelimage"
	"github.com/faas-predict/faas-predict/tests/cluster/store"
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
	t.Run("Images", s.images)
	t.Run("Placement", s.placement)
}

// second starts another provider and returns where it serves.
func (s *installed) second(t *testing.T) string {
	t.Helper()
	const port = "18981"
	s.run(t, nil, "service", "create", "--detach", "--name", "second", "--network", "faas-predict", "--user", "0:0",
		"--publish", "mode=host,target=8080,published="+port, "--secret", "basic-auth-user", "--secret", "basic-auth-password",
		"--mount", "type=bind,source="+s.Socket()+",target=/var/run/docker.sock", "--mount", "type=tmpfs,target=/data",
		"--env", "backend=swarm", "--env", "data_dir=/data", "--env", "secret_mount_path=/run/secrets", s.provider)
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
		Service: "placed", Image: s.Image(t, "placed", "1", map[string]string{
			"main.py":   "def predict(r):\n    return open('/proc/self/status').read()\n",
			"model.yml": "code_version: \"1.1\"\ncoefficients_version: \"1\"\n",
		}),
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
	password = "a-password"
)

// installed is a swarm with the provider in it, as its stack files have it.
type installed struct {
	*Docker
	port     string
	base     v1.Image
	provider string // its image
	// registry is open to all, private to who has the password that the provider was given, closed to everybody.
	registry, private, closed *store.Store
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
	for _, open := range []struct {
		store **store.Store
		user  string
	}{{&s.registry, ""}, {&s.private, "puller"}, {&s.closed, "nobody"}} {
		*open.store, err = store.Open("127.0.0.1", open.user, rand.Text())
		must(t, err)
		t.Cleanup(func() { must(t, (*open.store).Close()) })
	}
	s.base, err = modelimage.Python(ctx, filepath.Join(root, ".cache", "bases"))
	must(t, err)
	image, err := modelimage.Provider(filepath.Join(root, "bin", "faas-predict"))
	must(t, err)
	s.provider, err = modelimage.Push(ctx, image, s.registry, "faas-predict:test")
	must(t, err)
	s.run(t, nil, "network", "create", "--driver", "overlay", "--attachable", "faas-predict")
	s.run(t, []byte("admin"), "secret", "create", "basic-auth-user", "-")
	s.run(t, []byte(password), "secret", "create", "basic-auth-password", "-")
	s.run(t, s.private.DockerConfig(), "secret", "create", "registry-login", "-")
	t.Setenv("FAAS_PREDICT_IMAGE", s.provider)
	t.Setenv("FAAS_PREDICT_PORT", s.port)
	t.Setenv("FAAS_PREDICT_PORT_MODE", "host") // the mesh needs IPVS, which a test machine may lack
	t.Setenv("DOCKER_SOCKET", s.Socket())
	files := filepath.Join(root, "provider", "backend", "swarm")
	s.run(t, nil, "stack", "deploy", "-c", filepath.Join(files, "stack.yml"), "-c", filepath.Join(files, "registry.yml"), "faas-predict")
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

// Image pushes the image of a bundle.
func (s *installed) Image(t *testing.T, model, _ string, files map[string]string) string {
	t.Helper()
	image, version := s.build(t, files)
	ref, err := modelimage.Push(t.Context(), image, s.registry, model+":"+version)
	must(t, err)
	return ref
}

// build makes an image of a bundle as the template does.
func (s *installed) build(t *testing.T, files map[string]string) (image v1.Image, version string) {
	t.Helper()
	bundle := fstest.MapFS{}
	for name, text := range files {
		bundle[name] = &fstest.MapFile{Data: []byte(text)}
	}
	image, version, err := modelimage.Bundle(s.base, filepath.Join(root, "bin", "fwatchdog"), bundle)
	must(t, err)
	return image, version
}

// images are pulled with the login that registry.yml gives the provider; the engine has none of its own.
func (s *installed) images(t *testing.T) {
	image, version := s.build(t, conformance.Bundle())
	unlabelled, err := modelimage.Unlabelled(image)
	must(t, err)
	var images conformance.TakenImages
	images.Unlabelled, err = modelimage.Push(t.Context(), unlabelled, s.registry, "conform:unlabelled")
	must(t, err)
	images.Private, err = modelimage.Push(t.Context(), image, s.private, "conform:"+version)
	must(t, err)
	images.Closed, err = modelimage.Push(t.Context(), image, s.closed, "conform:"+version)
	must(t, err)
	conformance.Images(t, s, images, func(t *testing.T) {
		t.Helper()
		eventually(t, "the node forgets the image", func() error {
			_, err := s.Run(t.Context(), nil, "image", "rm", "--force", images.Private)
			return err
		})
	})
}

func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	err := holds()
	for end := time.Now().Add(time.Minute); err != nil; err = holds() {
		if time.Now().After(end) {
			t.Fatalf("it does not come to this: %s: %v", what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (s *installed) containers(t *testing.T, filters ...string) []string {
	t.Helper()
	args := []string{"ps", "--quiet", "--no-trunc"}
	for _, filter := range filters {
		args = append(args, "--filter", filter)
	}
	return strings.Fields(s.run(t, nil, args...))
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

func (s *installed) KillContainer(t *testing.T, function, version string) bool {
	t.Helper()
	running := s.containers(t, "label=faas-predict.name="+function, "label=faas-predict.version="+version)
	if len(running) == 0 {
		t.Fatal("no container runs")
	}
	s.run(t, nil, "kill", running[0])
	return false
}

// RestartAgent restarts dockerd, with which its containers end.
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
