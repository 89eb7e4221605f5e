package kubernetes

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

const (
	functionPort = 8080
	metricsPort  = 8081

	// containerName is that of the model in each pod.
	containerName = "function"
	secretsDir    = "/var/openfaas/secrets"

	// startup bounds how long fwatchdog itself takes to listen. A model may load for longer: that is /_/ready's.
	startupSeconds = 120
)

// maxTemporary bounds what a container writes to /tmp, the only place where it can.
var maxTemporary = resource.MustParse("1Gi")

// manifest is a workload as Kubernetes' objects.
type manifest struct {
	deployment *appsv1.Deployment
	service    *corev1.Service
	budget     *policyv1.PodDisruptionBudget
	secret     *corev1.Secret // nil without a bundle to fetch
}

func (e *Engine) manifest(w cluster.Workload) (manifest, error) {
	if w.Replicas > math.MaxInt32 {
		return manifest{}, fmt.Errorf("%w number of replicas %d", backend.ErrInvalid, w.Replicas)
	}
	pod, err := e.pod(w)
	if err != nil {
		return manifest{}, err
	}
	selected := map[string]string{functionLabel: w.Ref.Name, workloadLabel: w.ID}
	labels := maps.Clone(selected)
	labels[managedByLabel] = managedBy
	podLabels := userLabels(w)
	maps.Copy(podLabels, labels)
	podLabels[versionLabel] = versionValue(w.Version)
	annotations := map[string]string{}
	if w.Spec.Annotations != nil {
		maps.Copy(annotations, *w.Spec.Annotations)
	}
	annotations[modelAnnotation] = w.Model
	object := metav1.ObjectMeta{Name: objectName(w.Ref, w.ID), Namespace: w.Ref.Namespace, Labels: labels}
	one := intstr.FromInt32(1)
	always := policyv1.AlwaysAllow
	m := manifest{
		deployment: &appsv1.Deployment{
			ObjectMeta: *object.DeepCopy(),
			Spec: appsv1.DeploymentSpec{
				Replicas: new(int32(w.Replicas)),
				Selector: &metav1.LabelSelector{MatchLabels: selected},
				Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: podLabels, Annotations: annotations},
					Spec:       pod,
				},
				RevisionHistoryLimit: new(int32(0)), // a new version is a new Deployment
			},
		},
		service: &corev1.Service{
			ObjectMeta: *object.DeepCopy(),
			Spec: corev1.ServiceSpec{
				ClusterIP: corev1.ClusterIPNone, // calls go to pods
				Selector:  selected,
				Ports: []corev1.ServicePort{
					{Name: "http", Port: functionPort, TargetPort: intstr.FromString("http")},
					{Name: "metrics", Port: metricsPort, TargetPort: intstr.FromString("metrics")},
				},
			},
		},
		budget: &policyv1.PodDisruptionBudget{
			ObjectMeta: *object.DeepCopy(),
			Spec: policyv1.PodDisruptionBudgetSpec{
				// Not "one must stay": a function with a single replica would keep a node from ever being drained.
				MaxUnavailable:             &one,
				Selector:                   &metav1.LabelSelector{MatchLabels: selected},
				UnhealthyPodEvictionPolicy: &always,
			},
		},
	}
	if w.Bundle != nil {
		if m.secret, err = e.bundleSecret(w, *object.DeepCopy()); err != nil {
			return manifest{}, err
		}
	}
	m.deployment.Annotations = map[string]string{leaseAnnotation: strconv.FormatInt(w.Lease, 10)}
	m.deployment.Labels[versionLabel] = versionValue(w.Version)
	return m, nil
}

// versionValue is a version as a label's value, which is shorter than some are.
func versionValue(version string) string {
	const longest = 63
	return strings.Trim(version[:min(len(version), longest)], "-_.")
}

// userLabels are those of the deployment. Those that Kubernetes does not take are left out: OpenFaaS's clients use
// labels for many things.
func userLabels(w cluster.Workload) map[string]string {
	out := map[string]string{"faas_function": w.Ref.Name}
	if w.Spec.Labels != nil {
		for name, value := range *w.Spec.Labels {
			if validLabel(name, value) {
				out[name] = value
			}
		}
	}
	return out
}

func (e *Engine) pod(w cluster.Workload) (corev1.PodSpec, error) {
	resources, err := resources(w)
	if err != nil {
		return corev1.PodSpec{}, err
	}
	nodes, err := nodeSelector(w.Spec.Constraints)
	if err != nil {
		return corev1.PodSpec{}, err
	}
	container := corev1.Container{
		Name:            containerName,
		Image:           w.Image,
		ImagePullPolicy: e.PullPolicy,
		Env:             environment(w.Env),
		Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: functionPort},
			{Name: "metrics", ContainerPort: metricsPort},
		},
		Resources:      resources,
		StartupProbe:   probe("/_/health", 1, startupSeconds),
		LivenessProbe:  probe("/_/health", 10, 3),
		ReadinessProbe: probe("/_/ready", 2, 3),
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: "tmp", MountPath: "/tmp"}},
	}
	pod := corev1.PodSpec{
		Volumes: []corev1.Volume{{Name: "tmp", VolumeSource: corev1.VolumeSource{
			EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &maxTemporary},
		}}},
		AutomountServiceAccountToken: new(false),
		EnableServiceLinks:           new(false),
		// fwatchdog goes on serving for Grace.Serving by itself.
		TerminationGracePeriodSeconds: new(int64(math.Ceil(w.Grace.Whole().Seconds()))),
		NodeSelector:                  nodes,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot:   new(true),
			RunAsUser:      e.User,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		TopologySpreadConstraints: []corev1.TopologySpreadConstraint{
			spread(corev1.LabelTopologyZone, w), spread(corev1.LabelHostname, w),
		},
	}
	if len(w.Spec.Secrets) > 0 {
		pod.Volumes = append(pod.Volumes, secretsVolume(w.Spec.Secrets))
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: "secrets", MountPath: secretsDir, ReadOnly: true})
	}
	pod.Containers = []corev1.Container{container}
	if w.Bundle != nil {
		if e.Bundles == nil {
			return pod, fmt.Errorf("%w version %s of %s: it is a pushed bundle, and provider_url is not set any more", backend.ErrInvalid, w.Version, w.Model)
		}
		e.serveBundle(&pod, w)
	}
	return pod, nil
}

// secretsVolume has a file for each key of each secret. They may be read by everyone in the container, whose user id is
// not known here; there is nobody else in it.
func secretsVolume(names []string) corev1.Volume {
	projected := &corev1.ProjectedVolumeSource{DefaultMode: new(int32(0o444))}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		projected.Sources = append(projected.Sources, corev1.VolumeProjection{
			Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: name}},
		})
	}
	return corev1.Volume{Name: "secrets", VolumeSource: corev1.VolumeSource{Projected: projected}}
}

// spread puts a workload's pods apart where there is a choice.
func spread(topology string, w cluster.Workload) corev1.TopologySpreadConstraint {
	return corev1.TopologySpreadConstraint{
		MaxSkew:           1,
		TopologyKey:       topology,
		WhenUnsatisfiable: corev1.ScheduleAnyway,
		LabelSelector:     &metav1.LabelSelector{MatchLabels: map[string]string{functionLabel: w.Ref.Name, workloadLabel: w.ID}},
	}
}

func probe(path string, every, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:     corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("http")}},
		PeriodSeconds:    every,
		TimeoutSeconds:   5,
		FailureThreshold: failures,
	}
}

func environment(variables map[string]string) []corev1.EnvVar {
	out := make([]corev1.EnvVar, 0, len(variables))
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		// What looks like a reference to another variable is none.
		out = append(out, corev1.EnvVar{Name: name, Value: strings.ReplaceAll(variables[name], "$(", "$$(")})
	}
	return out
}

func resources(w cluster.Workload) (out corev1.ResourceRequirements, err error) {
	limits, err := deployment.ParseResources(w.Spec.Limits)
	if err != nil {
		return out, fmt.Errorf("limits: %w", err)
	}
	requests, err := deployment.ParseResources(w.Spec.Requests)
	if err != nil {
		return out, fmt.Errorf("requests: %w", err)
	}
	return corev1.ResourceRequirements{Limits: resourceList(limits), Requests: resourceList(requests)}, nil
}

func resourceList(r deployment.Resources) corev1.ResourceList {
	out := corev1.ResourceList{}
	if r.Memory > 0 {
		out[corev1.ResourceMemory] = *resource.NewQuantity(r.Memory, resource.BinarySI)
	}
	if r.CPU > 0 {
		out[corev1.ResourceCPU] = *resource.NewMilliQuantity(r.CPU, resource.DecimalSI)
	}
	return out
}

// nodeSelector reads constraints as OpenFaaS has them on Kubernetes: LABEL=VALUE of a node.
func nodeSelector(constraints []string) (map[string]string, error) {
	out := map[string]string{}
	for _, c := range constraints {
		name, value, ok := strings.Cut(c, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(strings.TrimPrefix(value, "="))
		if !ok || !validLabel(name, value) {
			return nil, fmt.Errorf("%w constraint %.80q: on Kubernetes it reads LABEL=VALUE and names a node's label", backend.ErrInvalid, c)
		}
		out[name] = value
	}
	return out, nil
}
