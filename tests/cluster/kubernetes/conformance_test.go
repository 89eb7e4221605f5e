package kubernetes

import (
	"context"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/faas-predict/faas-predict/tests/cluster/conformance"
)

// The suite talks to one of two providers; the other follows and does its part of the work.
func TestConformance(t *testing.T) {
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range shared.providers {
				log, err := shared.Run(context.Background(), "kubectl", "-n", system, "logs", "--tail", "100", p.Name)
				t.Logf("%s said (%v):\n%s", p.Name, err, log)
			}
			state, _ := shared.Run(context.Background(), "kubectl", "-n", namespace, "describe", "deployments,pods")
			t.Log(state)
		}
	})
	conformance.Run(t, shared)
}

func (i *installed) URL() string      { return i.provider(0) }
func (i *installed) Password() string { return i.password }

func (i *installed) Image(t *testing.T, model, _ string, files map[string]string) string {
	t.Helper()
	bundle := fstest.MapFS{}
	for name, text := range files {
		bundle[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return i.push(t, model, bundle)
}

// KillProvider kills both.
func (i *installed) KillProvider(t *testing.T) {
	t.Helper()
	for _, p := range i.providers {
		must(t, i.KillTask(t.Context(), p.Status.ContainerStatuses[0].ContainerID))
	}
}

// StartProvider waits: the kubelet starts them.
func (i *installed) StartProvider(t *testing.T) {
	t.Helper()
	must(t, i.findProviders(t.Context()))
}

func (i *installed) KillContainer(t *testing.T, function string) {
	t.Helper()
	pods, err := i.Client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "faas-predict/function=" + function})
	must(t, err)
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning {
			must(t, i.KillTask(t.Context(), p.Status.ContainerStatuses[0].ContainerID))
			return
		}
	}
	t.Fatal("no pod runs")
}

// RestartAgent kills the kubelet, and then what starts containers for it.
func (i *installed) RestartAgent(t *testing.T) bool {
	t.Helper()
	must(t, i.Kill("kubelet"))
	must(t, i.Kill("containerd"))
	time.Sleep(2 * time.Second) // for the supervisor to have seen it
	must(t, i.AwaitNode(t.Context()))
	must(t, i.findProviders(t.Context()))
	return true
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
