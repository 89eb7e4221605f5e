// Package kubernetes has the tests of functions on a real Kubernetes: the provider runs in it, installed by its chart,
// with the rights that the chart gives it and no others.
package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend/kubernetes"
	"github.com/faas-predict/faas-predict/tests/cluster/kube"
	"github.com/faas-predict/faas-predict/tests/cluster/modelimage"
)

const (
	root      = "../../.."
	namespace = "openfaas-fn"
	system    = "openfaas"
	// user is as OpenShift gives them: a number that no image knows.
	user = 1000660000
)

// installed is a Kubernetes with the provider in it.
type installed struct {
	*kube.Cluster
	url string // of the provider
}

var shared *installed

func TestMain(m *testing.M) {
	kube.Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "kubernetes-")
	if err == nil {
		defer os.RemoveAll(dir)
		shared, err = install(ctx, filepath.Join(dir, "cluster"))
	}
	if shared != nil {
		defer shared.Stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// install starts Kubernetes, pushes images, and installs the chart twice: the second time is an upgrade that changes nothing.
func install(ctx context.Context, dir string) (*installed, error) {
	c, err := kube.Start(ctx, filepath.Join(root, ".cache", "engines"), dir)
	if err != nil {
		return nil, err
	}
	i := &installed{Cluster: c, url: "http://" + c.ServiceAddress(80) + ":8080"}
	if err := i.pushProvider(ctx); err != nil {
		return i, err
	}
	chart := filepath.Join(root, "provider", "backend", "kubernetes", "chart")
	if _, err := c.Run(ctx, "helm", "lint", "--strict", chart); err != nil {
		return i, err
	}
	values := []string{
		"image.repository=" + c.Registry + "/faas-predict", "image.tag=test", "replicas=2",
		"service.clusterIP=" + c.ServiceAddress(80), fmt.Sprintf("functionUser=%d", user), "networkPolicy.enabled=true",
		"basicAuth.enabled=false",
	}
	_, err = c.Run(ctx, "helm", "upgrade", "--install", "faas-predict", chart, "--namespace", system, "--create-namespace",
		"--wait", "--timeout", "2m", "--set", strings.Join(values, ","))
	if err != nil {
		state, _ := c.Run(ctx, "kubectl", "-n", system, "describe", "pods")
		logs, _ := c.Run(ctx, "kubectl", "-n", system, "logs", "deployment/faas-predict")
		return i, fmt.Errorf("%w\n%s\n%s", err, state, logs)
	}
	return i, nil
}

// pushProvider makes the provider's image: the program and nothing else.
func (i *installed) pushProvider(ctx context.Context) error {
	program, err := modelimage.Program("/faas-predict", filepath.Join(root, "bin", "faas-predict"))
	if err != nil {
		return fmt.Errorf("make build comes first: %w", err)
	}
	layer, err := modelimage.Layer(program)
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	image, err = mutate.Config(image, v1.Config{Entrypoint: []string{"/faas-predict"}, User: "12000:0"})
	if err != nil {
		return err
	}
	tag, err := name.NewTag(i.Registry + "/faas-predict:test")
	if err != nil {
		return err
	}
	return remote.Write(tag, image, remote.WithContext(ctx))
}

// model pushes an image of a model whose predict says what it was asked, and its version.
func (i *installed) model(t *testing.T, repository, code, coefficients, predict string) string {
	t.Helper()
	base, err := modelimage.Python(t.Context(), filepath.Join(root, ".cache", "base"))
	must(t, err)
	bundle := fstest.MapFS{
		"model.yml": {Data: fmt.Appendf(nil, "name: %s\ncode_version: %q\ncoefficients_version: %q\n", repository, code, coefficients)},
		"main.py":   {Data: []byte(predict)},
	}
	version := ""
	image, err := modelimage.Bundle(base, filepath.Join(root, "bin", "fwatchdog"), bundle, func(model, id string) map[string]string {
		version = id
		return map[string]string{kubernetes.ModelLabel: model, kubernetes.VersionLabel: id}
	})
	must(t, err)
	ref, err := modelimage.Push(t.Context(), image, i.Registry+"/"+repository+":"+version)
	must(t, err)
	return ref
}

const echo = `import os
def predict(request):
    return os.environ["OPENFAAS_NAME"] + " " + request + " " + str(os.getuid())
`

func (i *installed) request(t *testing.T, method, path string, body any) (int, string) {
	t.Helper()
	var content io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		content = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		must(t, err)
		content = bytes.NewReader(raw)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, i.url+path, content)
	must(t, err)
	answer, err := http.DefaultClient.Do(r)
	must(t, err)
	defer answer.Body.Close()
	out, err := io.ReadAll(answer.Body)
	must(t, err)
	return answer.StatusCode, string(out)
}

func (i *installed) deploy(t *testing.T, spec types.FunctionDeployment) {
	t.Helper()
	began := time.Now()
	if status, body := i.request(t, "POST", "/system/functions", spec); status != http.StatusAccepted {
		pods, _ := i.Run(t.Context(), "kubectl", "-n", namespace, "describe", "pods,deployments")
		t.Fatalf("deploy: %d %s\n%s", status, body, pods)
	}
	t.Logf("deployed %s in %s", spec.Service, time.Since(began).Round(time.Millisecond))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ask func() error) {
	t.Helper()
	err := ask()
	for end := time.Now().Add(time.Minute); err != nil; err = ask() {
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// A function is deployed, answers as the user id that it was given, and leaves nothing when it is deleted.
func TestAFunctionComesAndGoes(t *testing.T) {
	image := shared.model(t, "echo", "1", "1", echo)
	shared.deploy(t, types.FunctionDeployment{Service: "echo", Image: image})
	if status, body := shared.request(t, "POST", "/function/echo", "hello"); status != 200 || body != fmt.Sprintf("echo hello %d", user) {
		t.Errorf("call: %d %s", status, body)
	}
	if status, body := shared.request(t, "DELETE", "/system/functions", types.DeleteFunctionRequest{FunctionName: "echo"}); status != 202 {
		t.Errorf("delete: %d %s", status, body)
	}
	eventually(t, "nothing is left", func() error {
		left, err := shared.Run(t.Context(), "kubectl", "-n", namespace, "get",
			"configmaps,deployments,replicasets,pods,services,endpointslices,poddisruptionbudgets", "-l", "faas-predict/function", "-o", "name")
		if err == nil && left != "" {
			err = fmt.Errorf("left behind: %s", left)
		}
		return err
	})
}
