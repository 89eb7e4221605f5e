package kubernetes

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

var ref = backend.Ref{Namespace: "openfaas-fn", Name: "iris"}

func labelled(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: map[string]string{functionLabel: "iris", workloadLabel: "a"}}
}

func endpoint(pod, address string, leaving bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses:  []string{address},
		Conditions: discoveryv1.EndpointConditions{Terminating: &leaving},
		TargetRef:  &corev1.ObjectReference{Name: pod},
	}
}

func TestEndpointsAreThePodsThatAreNotAskedToLeave(t *testing.T) {
	d := &appsv1.Deployment{ObjectMeta: labelled("iris-a"), Spec: appsv1.DeploymentSpec{Replicas: new(int32(3))}}
	d.Annotations = map[string]string{leaseAnnotation: "1700000000"}
	other := &discoveryv1.EndpointSlice{ObjectMeta: labelled("other"), Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080))}}}
	other.Labels[workloadLabel] = "b"
	other.Endpoints = []discoveryv1.Endpoint{endpoint("iris-b-1", "10.0.0.9", false)}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: labelled("iris-a-1"),
		Ports:      []discoveryv1.EndpointPort{{Name: new("metrics"), Port: new(int32(8081))}, {Name: new("http"), Port: new(int32(8080))}},
		Endpoints: []discoveryv1.Endpoint{
			endpoint("iris-a-2", "10.0.0.2", false), endpoint("iris-a-1", "fd00::1", false), endpoint("iris-a-3", "10.0.0.3", true),
		},
	}
	again := slice.DeepCopy() // an address may be in two slices while it moves between them
	got := objects{deployments: []*appsv1.Deployment{d}, slices: []*discoveryv1.EndpointSlice{slice, other, again}}.function(ref)
	want := cluster.Function{Ref: ref, Workloads: []cluster.Status{{
		ID: "a", Replicas: 3, Lease: 1700000000,
		Endpoints: []cluster.Endpoint{{Instance: "iris-a-2", Address: "10.0.0.2:8080"}, {Instance: "iris-a-1", Address: "[fd00::1]:8080"}},
	}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsBeingDeletedIsGone(t *testing.T) {
	now := metav1.Now()
	d := &appsv1.Deployment{ObjectMeta: labelled("iris-a")}
	d.DeletionTimestamp = &now
	record := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}, Data: map[string]string{recordKey: "{}"}}
	got := objects{record: record, deployments: []*appsv1.Deployment{d}}.function(ref)
	if diff := cmp.Diff(cluster.Function{Ref: ref}, got); diff != "" {
		t.Error(diff)
	}
}

func TestTroubleTellsFailuresFromWaiting(t *testing.T) {
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "why"}}
	}
	died := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	unscheduled := []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/1 nodes: Insufficient memory"}}
	for name, c := range map[string]struct {
		status   corev1.PodStatus
		failures int
		reason   string
	}{
		"no room":       {corev1.PodStatus{Conditions: unscheduled}, 0, "Insufficient memory"},
		"being created": {status(corev1.ContainerStatus{State: waiting("ContainerCreating")}), 0, ""},
		"runs":          {status(corev1.ContainerStatus{State: running}), 0, ""},
		"ran out of memory once": {
			status(corev1.ContainerStatus{State: running, RestartCount: 1, LastTerminationState: died}), 1, "",
		},
		"fetches anew": {
			corev1.PodStatus{InitContainerStatuses: []corev1.ContainerStatus{{Name: fetchName, State: running, RestartCount: 1, LastTerminationState: died}}},
			1, "exit code 137",
		},
		"ends again and again": {
			status(corev1.ContainerStatus{State: waiting("CrashLoopBackOff"), RestartCount: 2, LastTerminationState: died}), 2, "exit code 137, OOMKilled",
		},
		"has just ended": {status(corev1.ContainerStatus{Name: containerName, State: died}), 1, "exit code 137"},
		"no such image":  {status(corev1.ContainerStatus{State: waiting("ErrImagePull")}), 1, "ErrImagePull: why"},
		"evicted":        {corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "disk"}, 1, "Evicted disk"},
	} {
		t.Run(name, func(t *testing.T) {
			failures, reason := trouble(&corev1.Pod{Status: c.status})
			if failures != c.failures || !strings.Contains(reason, c.reason) || (c.reason == "" && reason != "") {
				t.Errorf("got %d failures and %q, want %d and %q", failures, reason, c.failures, c.reason)
			}
		})
	}
}

func status(s corev1.ContainerStatus) corev1.PodStatus {
	return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{s}}
}

func TestPodsThatCannotBeMadeAreFailuresUnlessAQuotaIsFull(t *testing.T) {
	for message, want := range map[string]int{
		"pods \"iris-a\" is forbidden: violates PodSecurity \"restricted:latest\"": 1,
		"pods \"iris-a\" is forbidden: exceeded quota: compute":                    0,
	} {
		d := &appsv1.Deployment{ObjectMeta: labelled("iris-a")}
		d.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Message: message}}
		got := objects{}.status(d)
		if got.Failures != want || got.Reason != message {
			t.Errorf("%s: %d failures, %q", message, got.Failures, got.Reason)
		}
	}
}
