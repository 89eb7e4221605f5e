package kubernetes

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/openfaas/faas-provider/types"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// Every name that a function may have makes names that Kubernetes takes, and different functions make different ones.
func TestObjectNames(t *testing.T) {
	seen := map[string]string{}
	long := strings.Repeat("a", 62)
	for _, name := range []string{"iris", "1iris", "i", long + "b", long + "c", strings.Repeat("9", 63)} {
		got := objectName(backend.Ref{Namespace: "n", Name: name}, "abcdefghij")
		if problems := validation.IsDNS1035Label(got); len(problems) > 0 {
			t.Errorf("%s: %s: %v", name, got, problems)
		}
		if seen[got] != "" {
			t.Errorf("%s and %s share %s", name, seen[got], got)
		}
		seen[got] = name
		if problems := validation.IsDNS1123Subdomain(recordName(backend.Ref{Name: name})); len(problems) > 0 {
			t.Errorf("%s: %v", name, problems)
		}
	}
}

func TestManifestCarriesTheDeployment(t *testing.T) {
	labels := map[string]string{"team": "a", "com.openfaas.scale.min": "2", "not allowed!": "x", "team2": "not allowed!", functionLabel: "other"}
	e := &Engine{Options: Options{User: new(int64(1000660000)), PullPolicy: corev1.PullAlways}}
	m, err := e.manifest(cluster.Workload{
		Ref: ref, ID: "a", Model: "iris", Version: "-1.0_2026-", Image: "r/iris@sha256:x", Replicas: 2, Lease: 5,
		Env:   map[string]string{"b": "$(a)", "a": "1"},
		Grace: cluster.Grace{Serving: 3 * time.Second, Drain: 30 * time.Second},
		Spec: types.FunctionDeployment{
			Labels: &labels, Secrets: []string{"key", "key"}, Constraints: []string{"disk = ssd", "zone==a"},
			Limits: &types.FunctionResources{Memory: "128Mi", CPU: "1.5"}, Requests: &types.FunctionResources{CPU: "100m"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	template := m.deployment.Spec.Template
	wantLabels := map[string]string{
		"team": "a", "com.openfaas.scale.min": "2", "faas_function": "iris", managedByLabel: managedBy,
		functionLabel: "iris", workloadLabel: "a", versionLabel: "1.0_2026",
	}
	if diff := cmp.Diff(wantLabels, template.Labels); diff != "" {
		t.Error("labels", diff)
	}
	c := template.Spec.Containers[0]
	if diff := cmp.Diff([]corev1.EnvVar{{Name: "a", Value: "1"}, {Name: "b", Value: "$$(a)"}}, c.Env); diff != "" {
		t.Error("environment", diff)
	}
	if diff := cmp.Diff(map[string]string{"disk": "ssd", "zone": "a"}, template.Spec.NodeSelector); diff != "" {
		t.Error("constraints", diff)
	}
	if got := *template.Spec.TerminationGracePeriodSeconds; got != 35 {
		t.Errorf("it is killed after %d s, want 3 + 30 + 2", got)
	}
	if c.Resources.Limits.Memory().Value() != 128<<20 || c.Resources.Limits.Cpu().MilliValue() != 1500 || c.Resources.Requests.Cpu().MilliValue() != 100 {
		t.Errorf("resources %+v", c.Resources)
	}
	if sources := template.Spec.Volumes[1].Projected.Sources; len(sources) != 1 || sources[0].Secret.Name != "key" {
		t.Errorf("secrets %+v", sources)
	}
	if *template.Spec.SecurityContext.RunAsUser != 1000660000 || c.ImagePullPolicy != corev1.PullAlways || c.Image != "r/iris@sha256:x" {
		t.Errorf("user, policy or image: %+v", c)
	}
}

func TestAConstraintThatIsNoLabelIsRefused(t *testing.T) {
	for _, constraint := range []string{"ssd", "disk=not allowed!", "=x", "node.platform.os == linux x"} {
		if _, err := nodeSelector([]string{constraint}); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%q: %v", constraint, err)
		}
	}
}
