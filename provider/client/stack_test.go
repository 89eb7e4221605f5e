package client

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/openfaas/faas-provider/types"
)

// stackFile writes a stack file with these functions beside the other files.
func stackFile(t *testing.T, functions string, files map[string]string) string {
	t.Helper()
	all := map[string]string{"stack.yml": "version: 1.0\nprovider: {name: openfaas}\nfunctions:\n" + functions}
	for name, content := range files {
		all[name] = content
	}
	return filepath.Join(folder(t, all), "stack.yml")
}

// deploys answers pushes and deployments; no function exists yet.
func deploys(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/system/models/"):
		stores(w, r)
	case r.Method == http.MethodPut:
		http.Error(w, "function not found", http.StatusNotFound)
	default:
		w.WriteHeader(http.StatusAccepted)
	}
}

func TestABundleIsDeployedAsTheVersionThatItsPushGave(t *testing.T) {
	s := newStandIn(t, older(deploys))
	var out strings.Builder
	if err := s.DeployBundle(t.Context(), folder(t, map[string]string{"main.py": predict}), "beta", nil, &out); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "beta: pushed 1_a\nbeta: deployed at "+s.Gateway()+"/function/beta\n" {
		t.Errorf("said %s", got)
	}
	var deployed types.FunctionDeployment
	if err := json.Unmarshal(s.calls[len(s.calls)-1].body, &deployed); err != nil || deployed.Service != "beta" || deployed.Image != "beta:1_a" {
		t.Errorf("deployed %+v, %v", deployed, err)
	}
}

func TestStackIsPushedAndDeployed(t *testing.T) {
	s := newStandIn(t, older(deploys))
	file := stackFile(t, `
  b:
    handler: ./b
    image: registry.example:5000/me/beta:latest
    environment: {A: "1", B: "1"}
    environment_file: [more.yml]
    secrets: [key]
    constraints: [gpu]
    labels: {com.openfaas.scale.min: "2"}
    limits: {memory: 64Mi, cpu: 500m}
    namespace: staging
  a:
    handler: ./nowhere
`, map[string]string{"b/main.py": predict, "more.yml": "environment: {B: '2'}\n"})
	var out strings.Builder
	if err := s.DeployStack(t.Context(), file, "", &out); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"PUT /system/functions", "POST /system/functions",
		"POST /system/blobs/missing", "PUT /system/models/beta", "PUT /system/functions", "POST /system/functions",
	}
	if diff := cmp.Diff(want, s.asked()); diff != "" {
		t.Fatal(diff)
	}
	if got := out.String(); got != "a: deployed at "+s.Gateway()+"/function/a\nb: pushed 1_a\nb: deployed at "+s.Gateway()+"/function/b.staging\n" {
		t.Errorf("said %s", got)
	}
	var a, b types.FunctionDeployment
	if json.Unmarshal(s.calls[1].body, &a) != nil || json.Unmarshal(s.calls[5].body, &b) != nil {
		t.Fatal("not read")
	}
	if a.Service != "a" || a.Image != "a" {
		t.Errorf("%+v", a)
	}
	wanted := types.FunctionDeployment{
		Service: "b", Image: "registry.example:5000/me/beta:latest", Namespace: "staging", EnvVars: map[string]string{"A": "1", "B": "2"},
		Secrets: []string{"key"}, Constraints: []string{"gpu"}, Labels: &map[string]string{"com.openfaas.scale.min": "2"},
		Limits: &types.FunctionResources{Memory: "64Mi", CPU: "500m"},
	}
	if diff := cmp.Diff(wanted, b); diff != "" {
		t.Error(diff)
	}
}

func TestStackGoesOnAfterAFunctionThatFails(t *testing.T) {
	s := newStandIn(t, func(w http.ResponseWriter, r *http.Request) {
		var spec types.FunctionDeployment
		if json.NewDecoder(r.Body).Decode(&spec) == nil && spec.Service == "a" {
			http.Error(w, "failed to start: init failed: Traceback:\n  KeyError: \"petals\"", http.StatusUnprocessableEntity)
		}
	})
	file := stackFile(t, "  a: {image: a}\n  b: {image: b}\n  c: {image: c, environment_file: [gone.yml]}\n", nil)
	var out strings.Builder
	err := s.DeployStack(t.Context(), file, "", &out)
	wantError(t, err, "a: unexpected status code: 422", "Traceback:\n  KeyError: \"petals\"", "c: read environment file", "gone.yml")
	if !strings.Contains(out.String(), "a: failed") || !strings.Contains(out.String(), "b: deployed") || !strings.Contains(out.String(), "c: failed") {
		t.Errorf("said %s", &out)
	}
}

func TestFilterTakesSomeOfAStack(t *testing.T) {
	s := newStandIn(t, func(http.ResponseWriter, *http.Request) {})
	file := stackFile(t, "  iris-a: {image: a}\n  iris-b: {image: b}\n  rose: {image: c}\n", nil)
	if err := s.DeployStack(t.Context(), file, "iris*", io.Discard); err != nil || len(s.asked()) != 2 {
		t.Errorf("asked %v, %v", s.asked(), err)
	}
	if err := s.DeployStack(t.Context(), file, "tulip", io.Discard); err == nil || len(s.asked()) != 2 {
		t.Errorf("asked %v, %v", s.asked(), err)
	}
}

func TestUnreadableStackIsNamed(t *testing.T) {
	s := newStandIn(t, older(deploys))
	for text, want := range map[string]string{
		"functions: [":                 "yaml",
		"provider: {name: swarm}":      "swarm",
		"provider: {name: openfaas}\n": "no functions",
		"version: 7\nprovider: {name: openfaas}\nfunctions: {a: {image: a}}\n": "version",
	} {
		file := filepath.Join(t.TempDir(), "stack.yml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		wantError(t, s.DeployStack(t.Context(), file, "", io.Discard), file, want)
	}
	wantError(t, s.DeployStack(t.Context(), "gone.yml", "", io.Discard), "gone.yml", "no such file")
	file := stackFile(t, "  a: {image: a, environment_file: [bad.yml]}\n", map[string]string{"bad.yml": "environment: ["})
	wantError(t, s.DeployStack(t.Context(), file, "", io.Discard), "bad.yml", "yaml")
	if len(s.asked()) != 0 {
		t.Errorf("asked %v", s.asked())
	}
}
