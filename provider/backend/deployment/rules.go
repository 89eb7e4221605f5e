// Package deployment is what every backend does alike with a deployment: the rules that it is held to,
// and the record that is kept of a function and how each change makes the next one from it.
//
// It computes and nothing else: no process, no container, no storage and no clock but the time of a
// deployment may enter here.
package deployment

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// Rules hold deployments to what a backend can do.
type Rules struct {
	MaxReplicas uint64
	// Reserved are environment variables that the backend sets; a deployment that sets one is refused.
	Reserved map[string]bool
}

// Check holds a deployment to the rules that need no look at anything else, and fills in its namespace.
func (u Rules) Check(spec *types.FunctionDeployment) (backend.Ref, error) {
	ref, err := backend.ParseRef(spec.Service, spec.Namespace)
	if err != nil {
		return ref, err
	}
	spec.Service, spec.Namespace = ref.Name, ref.Namespace
	if err := backend.CheckAccess(spec); err != nil {
		return ref, err
	}
	if _, err := ParseResources(spec.Limits); err != nil {
		return ref, fmt.Errorf("limits: %w", err)
	}
	if _, err := ParseResources(spec.Requests); err != nil {
		return ref, fmt.Errorf("requests: %w", err)
	}
	for name, value := range spec.EnvVars {
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00"):
			return ref, fmt.Errorf("%w environment variable %.60q: its name may not be empty or hold =, and nothing may hold a zero byte", backend.ErrInvalid, name)
		case u.Reserved[name]:
			return ref, fmt.Errorf("%w environment variable %q: the provider sets it", backend.ErrInvalid, name)
		}
	}
	for _, name := range spec.Secrets {
		if err := CheckSecretName(name); err != nil {
			return ref, err
		}
	}
	_, err = ParseScaling(spec.Labels, u.MaxReplicas)
	return ref, err
}

// Deploy is the record that deploying d, a version of d.Model as d.Spec says, makes of old, which is nil
// where there is no function.
func (u Rules) Deploy(old *Record, d Deployed) (*Record, error) {
	scaling, err := ParseScaling(d.Spec.Labels, u.MaxReplicas)
	if err != nil {
		return nil, err
	}
	next := &Record{}
	if old != nil {
		next = old.Clone()
	}
	next.abandon() // a rollout that is not over is no split to go back to
	next.Spec, next.CreatedAt, next.Note = d.Spec, time.Now().UTC(), ""
	next.Replicas = min(max(scaling.Min, next.Replicas), u.MaxReplicas) // which may be smaller than it was
	if scaling.Bounded {
		next.Replicas = min(next.Replicas, scaling.Max)
	}
	var annotations map[string]string
	if d.Spec.Annotations != nil {
		annotations = *d.Spec.Annotations
	}
	split, rollout, err := traffic.Deploy(annotations, next.Split, d.Version)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", backend.ErrInvalid, err)
	}
	next.drop(d.Version)
	for _, version := range append(split.Versions(), d.Version) {
		if next.Find(version) == nil {
			added := d
			if version != d.Version {
				added = Deployed{Model: d.Model, Version: version, Spec: d.Spec}
			}
			next.Versions = append(next.Versions, added)
		}
	}
	next.move(split)
	next.Rollout = rollout
	return next, nil
}

// secretName is what Kubernetes allows: it becomes a file's name.
var secretName = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`)

// MaxSecretBytes is Kubernetes' limit too.
const MaxSecretBytes = 1 << 20

// CheckSecretName refuses what cannot be a secret's name.
func CheckSecretName(name string) error {
	if secretName.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%w secret name %.80q: use 1 to 253 of a-z, 0-9, - and ., with a letter or digit at both ends", backend.ErrInvalid, name)
}

// SecretValue is the value that a secret was sent with, of which most bytes are allowed.
func SecretValue(s types.Secret, most int) ([]byte, error) {
	value := s.RawValue
	if s.Value != "" {
		value = []byte(s.Value)
	}
	if len(value) > most {
		return nil, fmt.Errorf("%w secret %s: it has %d bytes, %d are allowed", backend.ErrInvalid, s.Name, len(value), most)
	}
	return value, nil
}
