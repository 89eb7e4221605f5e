package kubernetes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/openfaas/faas-provider/types"
	corev1 "k8s.io/api/core/v1"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

func fetching(t *testing.T, w cluster.Workload) manifest {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, []byte("authorities"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := &Engine{Options: Options{Bundles: &Bundles{
		URL: "https://provider:8080", CA: ca, Variables: map[string]string{"PIP_INDEX_URL": "http://me:passw0rd@index"},
		Credential: func(model, version string) string { return "s3cret of " + model + " " + version },
	}}}
	m, err := e.manifest(w)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func bundled() cluster.Workload {
	return cluster.Workload{
		Ref: ref, ID: "a", Model: "iris", Version: "1_2", Image: "runtime", Replicas: 1, Env: map[string]string{"COLOUR": "blue"},
		Bundle: &deployment.Bundle{CodeDigest: "c0de", CoefficientsDigest: "c0eff", Files: 3, Bytes: 1 << 20},
	}
}

// The credential is where it is needed and nowhere else: in one Secret, which only the init container has.
func TestOnlyTheInitContainerHasTheCredential(t *testing.T) {
	w := bundled()
	w.Spec.Secrets = []string{"key"}
	m := fetching(t, w)
	if got := string(m.secret.Data[credentialKey]); got != "s3cret of iris 1_2" || string(m.secret.Data[caKey]) != "authorities" {
		t.Errorf("the secret holds %q", m.secret.Data)
	}
	if m.secret.Labels[secretLabel] != "" {
		t.Error("a function may name the secret")
	}
	if text := fmt.Sprintf("%+v", m.deployment); strings.Contains(text, "s3cret") {
		t.Error("the credential is in the deployment:", text)
	}
	pod := m.deployment.Spec.Template.Spec
	mounts := func(c corev1.Container) (names []string) {
		for _, mount := range c.VolumeMounts {
			names = append(names, mount.Name)
			if mount.Name == "bundle" && mount.ReadOnly != (c.Name == containerName) {
				t.Errorf("%s: bundle is read-only: %v", c.Name, mount.ReadOnly)
			}
		}
		return names
	}
	if got := mounts(pod.InitContainers[0]); !slices.Equal(got, []string{"tmp", "bundle", "fetch"}) {
		t.Errorf("the init container mounts %v", got)
	}
	if got := mounts(pod.Containers[0]); !slices.Equal(got, []string{"tmp", "secrets", "bundle"}) {
		t.Errorf("the function mounts %v", got)
	}
	for _, volume := range pod.Volumes {
		if volume.EmptyDir != nil && volume.EmptyDir.SizeLimit == nil {
			t.Errorf("volume %s has no limit", volume.Name)
		}
	}
}

func TestWhatIsFetchedIsNamedToTheDigest(t *testing.T) {
	fetch := fetching(t, bundled()).deployment.Spec.Template.Spec.InitContainers[0]
	got := strings.Join(fetch.Command, " ")
	for _, want := range []string{
		"fwatchdog fetch ", "-version 1_2 ", "-code-digest c0de ", "-coefficients-digest c0eff ", "-max-bytes ",
		"-credential /etc/faas-predict/fetch/credential ", "-ca /etc/faas-predict/fetch/ca.crt ",
		" https://provider:8080/system/models/iris/versions/1_2/bundle /bundle/iris",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("it runs %s, without %q", got, want)
		}
	}
	function := fetching(t, bundled()).deployment.Spec.Template.Spec.Containers[0]
	if env := fmt.Sprint(function.Env); !strings.Contains(env, "model_path /bundle/iris") || strings.Contains(env, "interpreter") || fetch.Env != nil {
		t.Errorf("the function's environment is %s, the init container's %v", env, fetch.Env)
	}
	w := bundled()
	w.Bundle.Packages = true
	pod := fetching(t, w).deployment.Spec.Template.Spec
	if env := fmt.Sprint(pod.Containers[0].Env); !strings.Contains(env, "interpreter /bundle/.environment/bin/python3") {
		t.Errorf("with packages the function's environment is %s", env)
	}
	// An index's address may have a password in it.
	if text := fmt.Sprintf("%+v", fetching(t, w).deployment); strings.Contains(text, "passw0rd") {
		t.Error("an index's password is in the deployment:", text)
	}
	env := pod.InitContainers[0].Env
	if len(env) != 1 || env[0].Name != "PIP_INDEX_URL" || env[0].ValueFrom.SecretKeyRef.Key != "PIP_INDEX_URL" {
		t.Errorf("the init container's environment is %+v", env)
	}
	secret := fetching(t, w).secret
	if got := string(secret.Data["PIP_INDEX_URL"]); got != "http://me:passw0rd@index" || env[0].ValueFrom.SecretKeyRef.Name != secret.Name {
		t.Errorf("packages come from %q of secret %s", got, secret.Name)
	}
	if got := fetching(t, bundled()).secret.Data; len(got) != 2 {
		t.Errorf("without packages the secret holds %d things", len(got))
	}
}

// Fetching asks a node for no more than the function does, and may take what it needs.
func TestResourcesOfTheInitContainer(t *testing.T) {
	for _, c := range []struct {
		limits, requests *types.FunctionResources
		packages         bool
		want             string // memory: limit, request; CPU: limit, request
	}{
		{nil, nil, false, "256Mi 32Mi 0 10m"},
		{nil, nil, true, "1Gi 32Mi 0 10m"},
		{&types.FunctionResources{Memory: "64Mi", CPU: "500m"}, nil, false, "256Mi 64Mi 500m 500m"},
		{&types.FunctionResources{Memory: "64Mi"}, &types.FunctionResources{Memory: "16Mi", CPU: "20m"}, true, "1Gi 16Mi 0 20m"},
		{&types.FunctionResources{Memory: "4Gi"}, nil, true, "4Gi 4Gi 0 10m"},
		{nil, &types.FunctionResources{Memory: "2Gi"}, false, "2Gi 2Gi 0 10m"},
	} {
		w := bundled()
		w.Spec.Limits, w.Spec.Requests, w.Bundle.Packages = c.limits, c.requests, c.packages
		r := fetching(t, w).deployment.Spec.Template.Spec.InitContainers[0].Resources
		got := fmt.Sprintf("%s %s %s %s", r.Limits.Memory(), r.Requests.Memory(), r.Limits.Cpu(), r.Requests.Cpu())
		if got != c.want {
			t.Errorf("limits %+v, requests %+v, packages %v: got %s, want %s", c.limits, c.requests, c.packages, got, c.want)
		}
	}
}

func TestABundleNeedsAProviderThatServesIt(t *testing.T) {
	if _, err := (&Engine{}).manifest(bundled()); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "provider_url") {
		t.Errorf("got %v", err)
	}
}
