package kubernetes

import (
	"context"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/faas-predict/faas-predict/provider/backend/kubernetes"
	"github.com/faas-predict/faas-predict/tests/cluster/conformance"
	"github.com/faas-predict/faas-predict/tests/cluster/modelimage"
)

// The suite talks to one of two providers; the other follows and does its part of the work.
func TestConformance(t *testing.T) {
	shared.explain(t)
	conformance.Run(t, shared)
}

// Records are changed by compare-and-swap on what the API server has, with no provider between.
func TestRecords(t *testing.T) {
	engine, err := kubernetes.Open(kubernetes.Options{Config: shared.Config, Namespaces: []string{namespace}})
	must(t, err)
	conformance.Records(t, engine)
	must(t, engine.Close())
}

func TestTwoProviders(t *testing.T) {
	shared.explain(t)
	conformance.TwoProviders(t, shared, shared.provider(1))
}

// The credentials are where docs/kubernetes.md says: the provider's in registrySecret, the nodes' with the service
// account that functions run as.
func TestImages(t *testing.T) {
	shared.explain(t)
	must(t, shared.giveLogin(t.Context(), namespace))
	out, err := shared.Run(t.Context(), "kubectl", "-n", namespace, "patch", "serviceaccount", "default",
		"--patch", `{"imagePullSecrets": [{"name": "registry"}]}`)
	if err != nil {
		t.Fatal(err, out)
	}
	image, version := build(t, bundle(conformance.Bundle()))
	unlabelled, err := modelimage.Unlabelled(image)
	must(t, err)
	var images conformance.TakenImages
	images.Unlabelled, err = modelimage.Push(t.Context(), unlabelled, shared.Registry, "conform:unlabelled")
	must(t, err)
	images.Private, err = modelimage.Push(t.Context(), image, shared.Private, "conform:"+version)
	must(t, err)
	images.Closed, err = modelimage.Push(t.Context(), image, shared.closed, "conform:"+version)
	must(t, err)
	conformance.Images(t, shared, images, nil)
}

// explain logs what the providers and the pods say when the test has failed.
func (i *installed) explain(t *testing.T) {
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range i.providers {
				log, err := i.Run(context.Background(), "kubectl", "-n", system, "logs", "--tail", "100", p.Name)
				t.Logf("%s said (%v):\n%s", p.Name, err, log)
			}
			state, _ := i.Run(context.Background(), "kubectl", "-n", namespace, "describe", "deployments,pods")
			t.Log(state)
		}
	})
}

func (i *installed) URL() string      { return i.provider(0) }
func (i *installed) Password() string { return i.password }

func (i *installed) Image(t *testing.T, model, _ string, files map[string]string) string {
	t.Helper()
	return i.push(t, model, bundle(files))
}

func bundle(files map[string]string) fs.FS {
	out := fstest.MapFS{}
	for name, text := range files {
		out[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return out
}

// KillProvider kills all of them.
func (i *installed) KillProvider(t *testing.T) {
	t.Helper()
	for _, p := range i.providers {
		must(t, wait(t.Context(), func() error { // after a kill the pod names the container before for a moment
			now, err := i.Client.CoreV1().Pods(system).Get(t.Context(), p.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return i.KillTask(t.Context(), now.Status.ContainerStatuses[0].ContainerID)
		}))
	}
}

// StartProvider waits: the kubelet starts them.
func (i *installed) StartProvider(t *testing.T) {
	t.Helper()
	must(t, i.findProviders(t.Context()))
}

func (i *installed) KillContainer(t *testing.T, function, version string) bool {
	t.Helper()
	pods, err := i.Client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "faas-predict/function=" + function + ",faas-predict/version=" + version})
	must(t, err)
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning {
			must(t, i.KillTask(t.Context(), p.Status.ContainerStatuses[0].ContainerID))
			return false
		}
	}
	t.Fatal("no pod runs")
	return false
}

// RestartAgent kills the kubelet, and then what starts containers for it. Pods go on.
func (i *installed) RestartAgent(t *testing.T) bool {
	t.Helper()
	must(t, i.Kill("kubelet"))
	must(t, i.Kill("containerd"))
	time.Sleep(2 * time.Second) // for the supervisor to have seen it
	must(t, i.AwaitNode(t.Context()))
	must(t, i.findProviders(t.Context()))
	return false
}

func (i *installed) Left(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, selector := range []string{"faas-predict/function", "faas-predict/secret"} {
		names, err := i.Run(t.Context(), "kubectl", "-n", namespace, "get", "--ignore-not-found", "-o", "name", "-l", selector,
			"configmaps,secrets,deployments,replicasets,pods,services,endpointslices,poddisruptionbudgets")
		must(t, err)
		out = append(out, strings.Fields(names)...)
	}
	return out
}
