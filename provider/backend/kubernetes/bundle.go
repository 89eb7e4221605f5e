package kubernetes

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/faas-predict/faas-predict/provider/backend/cluster"
	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/packages"
)

// Bundles says where pods get pushed bundles.
type Bundles struct {
	URL string // of this provider, as pods reach it
	CA  string // a file with the authorities (PEM) of an https URL; "" is the system's
	// Credential is what lets its bearer read one version's bundle.
	Credential func(model, version string) string
	// Variables say where Python packages come from, by name. An index's address may have a password in it.
	Variables map[string]string
}

// A pod of a pushed bundle has an init container that fetches the bundle into a volume, from which the function serves.
// The credential is a file of the init container, and where packages come from is in its environment by a Secret: neither
// the model nor whoever reads the pod's description gets at either.
const (
	fetchName      = "fetch"
	bundleDir      = "/bundle"
	environmentDir = bundleDir + "/.environment"
	fetchSecretDir = "/etc/faas-predict/fetch"
	credentialKey  = "credential"
	caKey          = "ca.crt"
)

// The volume takes the zip and the files at once, and the packages: an environment with the largest libraries there are
// for GPUs has some ten gigabytes.
const (
	volumeSlack   = 64 << 20
	packagesBytes = 16 << 30
)

// What fetching takes where the function itself is given less. Installing packages unpacks large archives.
var (
	fetchMemory   = resource.MustParse("256Mi")
	installMemory = resource.MustParse("1Gi")
	leastRequests = corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("10m"),
		corev1.ResourceMemory: resource.MustParse("32Mi"),
	}
)

// serveBundle has the pod fetch the workload's bundle before its function container starts.
func (e *Engine) serveBundle(pod *corev1.PodSpec, w cluster.Workload) {
	function := &pod.Containers[0]
	dir := bundleDir + "/" + w.Model
	size := resource.NewQuantity(w.Bundle.Bytes+model.PlainSize(w.Bundle.Files, w.Bundle.Bytes)+volumeSlack, resource.BinarySI)
	fetch := corev1.Container{
		Name:            fetchName,
		Image:           function.Image,
		ImagePullPolicy: function.ImagePullPolicy,
		Command: []string{
			"fwatchdog", "fetch",
			"-credential", fetchSecretDir + "/" + credentialKey,
			"-version", w.Version, "-code-digest", w.Bundle.CodeDigest, "-coefficients-digest", w.Bundle.CoefficientsDigest,
			"-max-bytes", fmt.Sprint(model.PlainSize(w.Bundle.Files, w.Bundle.Bytes)),
			"-environment", environmentDir,
		},
		Resources:       fetchResources(function.Resources, w.Bundle.Packages),
		SecurityContext: function.SecurityContext,
		VolumeMounts: []corev1.VolumeMount{
			{Name: "tmp", MountPath: "/tmp"},
			{Name: "bundle", MountPath: bundleDir},
			{Name: "fetch", MountPath: fetchSecretDir, ReadOnly: true},
		},
		// What it said last is why the pod does not start.
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
	if e.Bundles.CA != "" {
		fetch.Command = append(fetch.Command, "-ca", fetchSecretDir+"/"+caKey)
	}
	fetch.Command = append(fetch.Command, e.Bundles.URL+"/system/models/"+url.PathEscape(w.Model)+"/versions/"+url.PathEscape(w.Version)+"/bundle", dir)

	function.Command = []string{"fwatchdog"}
	function.Env = append(function.Env, corev1.EnvVar{Name: "model_path", Value: dir})
	function.VolumeMounts = append(function.VolumeMounts, corev1.VolumeMount{Name: "bundle", MountPath: bundleDir, ReadOnly: true})
	if w.Bundle.Packages {
		function.Env = append(function.Env, corev1.EnvVar{Name: "interpreter", Value: packages.Interpreter(environmentDir)})
		for _, name := range slices.Sorted(maps.Keys(e.Bundles.Variables)) {
			fetch.Env = append(fetch.Env, corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{
				SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: objectName(w.Ref, w.ID)}, Key: name},
			}})
		}
		size.Add(*resource.NewQuantity(packagesBytes, resource.BinarySI))
	}
	pod.InitContainers = []corev1.Container{fetch}
	pod.Volumes = append(pod.Volumes,
		corev1.Volume{Name: "bundle", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: size}}},
		// Readable by whatever user id the container gets; there is nobody else in it.
		corev1.Volume{Name: "fetch", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
			SecretName: objectName(w.Ref, w.ID), DefaultMode: new(int32(0o444)),
		}}},
	)
}

// fetchResources are those of the function, so that fetching takes no room on a node that the function does not take
// afterwards; but with as much memory as fetching needs.
func fetchResources(function corev1.ResourceRequirements, installs bool) corev1.ResourceRequirements {
	out := corev1.ResourceRequirements{Limits: corev1.ResourceList{}, Requests: corev1.ResourceList{}}
	maps.Copy(out.Limits, function.Limits)
	maps.Copy(out.Requests, function.Requests)
	needs := fetchMemory
	if installs {
		needs = installMemory
	}
	for _, given := range []*resource.Quantity{function.Limits.Memory(), function.Requests.Memory()} {
		if given.Cmp(needs) > 0 {
			needs = *given
		}
	}
	out.Limits[corev1.ResourceMemory] = needs
	for name, least := range leastRequests {
		if _, given := out.Requests[name]; given {
			continue
		}
		// Kubernetes takes a limit for a request that is not there, which here is more than the function's.
		if limit, limited := function.Limits[name]; limited {
			least = limit
		}
		out.Requests[name] = least
	}
	return out
}

// bundleSecret holds what a workload's pods fetch with.
func (e *Engine) bundleSecret(w cluster.Workload, object metav1.ObjectMeta) (*corev1.Secret, error) {
	data := map[string][]byte{credentialKey: []byte(e.Bundles.Credential(w.Model, w.Version))}
	if w.Bundle.Packages {
		for name, value := range e.Bundles.Variables {
			data[name] = []byte(value)
		}
	}
	if e.Bundles.CA != "" {
		authorities, err := os.ReadFile(e.Bundles.CA)
		if err != nil {
			return nil, fmt.Errorf("read provider_ca: %w", err)
		}
		data[caKey] = authorities
	}
	return &corev1.Secret{ObjectMeta: object, Type: corev1.SecretTypeOpaque, Data: data}, nil
}
