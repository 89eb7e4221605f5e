package kubernetes

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// objects are those of one function.
type objects struct {
	record      *corev1.ConfigMap // nil when there is none
	deployments []*appsv1.Deployment
	pods        []*corev1.Pod
	slices      []*discoveryv1.EndpointSlice
}

// function is what the objects say.
func (o objects) function(ref backend.Ref) cluster.Function {
	f := cluster.Function{Ref: ref}
	if o.record != nil && o.record.DeletionTimestamp == nil {
		f.Record, f.Revision = []byte(o.record.Data[recordKey]), o.record.ResourceVersion
	}
	for _, d := range o.deployments {
		if d.DeletionTimestamp == nil {
			f.Workloads = append(f.Workloads, o.status(d))
		}
	}
	slices.SortFunc(f.Workloads, func(a, b cluster.Status) int { return strings.Compare(a.ID, b.ID) })
	return f
}

func (o objects) status(d *appsv1.Deployment) cluster.Status {
	s := cluster.Status{ID: d.Labels[workloadLabel]}
	if d.Spec.Replicas != nil {
		s.Replicas = uint64(max(*d.Spec.Replicas, 0))
	}
	s.Lease, _ = strconv.ParseInt(d.Annotations[leaseAnnotation], 10, 64) // 0 has run out
	for _, slice := range o.slices {
		if slice.Labels[workloadLabel] == s.ID {
			s.Endpoints = append(s.Endpoints, endpoints(slice)...)
		}
	}
	slices.SortFunc(s.Endpoints, func(a, b cluster.Endpoint) int { return strings.Compare(a.Address, b.Address) })
	s.Endpoints = slices.Compact(s.Endpoints) // an address may be in two slices while it moves between them
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			s.Reason = c.Message
			if !strings.Contains(c.Message, "exceeded quota") { // which may be raised, or others leave
				s.Failures++
			}
		}
	}
	for _, pod := range o.pods {
		if pod.Labels[workloadLabel] != s.ID || pod.DeletionTimestamp != nil {
			continue
		}
		failures, reason := trouble(pod)
		s.Failures += failures
		if reason != "" {
			s.Reason = "pod " + pod.Name + ": " + reason
		}
	}
	return s
}

// endpoints are the pods of a slice that are not asked to end, ready or not.
func endpoints(slice *discoveryv1.EndpointSlice) (out []cluster.Endpoint) {
	port := int32(0)
	for _, p := range slice.Ports {
		if p.Name != nil && *p.Name == "http" && p.Port != nil {
			port = *p.Port
		}
	}
	if port == 0 {
		return nil
	}
	for _, e := range slice.Endpoints {
		leaving := e.Conditions.Terminating != nil && *e.Conditions.Terminating
		if leaving || len(e.Addresses) == 0 || e.TargetRef == nil {
			continue
		}
		out = append(out, cluster.Endpoint{
			Instance: e.TargetRef.Name,
			Address:  net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(port))),
		})
	}
	return out
}

// trouble counts what went wrong with a pod's containers, and says why one does not run that should.
func trouble(pod *corev1.Pod) (failures int, reason string) {
	if pod.Status.Phase == corev1.PodFailed { // evicted, say
		failures, reason = 1, strings.TrimSpace(pod.Status.Reason+" "+pod.Status.Message)
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			reason = c.Message
		}
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		failures += int(s.RestartCount)
		switch last := s.LastTerminationState.Terminated; {
		case s.State.Waiting != nil && waitingFailed[s.State.Waiting.Reason]:
			failures++
			reason = s.State.Waiting.Reason + ": " + s.State.Waiting.Message
		case s.State.Waiting != nil && last != nil:
			reason = ended(last)
		case s.State.Running != nil && last != nil && s.Name == fetchName: // the kubelet starts it anew at once
			reason = ended(last)
		case s.State.Terminated != nil && (s.State.Terminated.ExitCode != 0 || s.Name == containerName):
			failures++ // its restart is not counted yet
			reason = ended(s.State.Terminated)
		}
	}
	return failures, reason
}

// waitingFailed are the reasons of a container that could not be started.
var waitingFailed = map[string]bool{
	"ErrImagePull": true, "ImagePullBackOff": true, "InvalidImageName": true, "ErrImageNeverPull": true,
	"ImageInspectError": true, "CreateContainerConfigError": true, "CreateContainerError": true, "RunContainerError": true,
}

func ended(t *corev1.ContainerStateTerminated) string {
	out := fmt.Sprintf("a container ended with exit code %d", t.ExitCode)
	if t.Reason != "" && t.Reason != "Error" && t.Reason != "Completed" {
		out += ", " + t.Reason
	}
	if t.Message != "" {
		out += ": " + t.Message
	}
	return out
}

// endedAt is when a container of the pod ended last, and previous whether another has been started in its place.
func endedAt(pod *corev1.Pod) (at time.Time, previous bool) {
	for _, s := range pod.Status.ContainerStatuses {
		if t := s.State.Terminated; t != nil {
			return t.FinishedAt.Time, false
		}
		if t := s.LastTerminationState.Terminated; t != nil {
			return t.FinishedAt.Time, s.State.Running != nil
		}
	}
	return time.Time{}, false
}
