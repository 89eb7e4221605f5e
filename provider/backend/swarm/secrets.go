package swarm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// maxSecretBytes is what Swarm takes.
const maxSecretBytes = 500 << 10

// secrets are a namespace's by name, or with a name that one alone. Swarm never changes a secret's value, so
// one that was updated is another object, and the newest counts.
func (e *Engine) secrets(ctx context.Context, namespace string) (newest map[string]swarm.Secret, older []swarm.Secret, err error) {
	found, err := e.docker.SecretList(ctx, client.SecretListOptions{Filters: e.with(map[string]string{namespaceLabel: namespace})})
	if err != nil {
		return nil, nil, wrap(err, "list secrets")
	}
	slices.SortFunc(found.Items, func(x, y swarm.Secret) int { return y.CreatedAt.Compare(x.CreatedAt) })
	newest = map[string]swarm.Secret{}
	for _, s := range found.Items {
		name := s.Spec.Labels[nameLabel]
		if _, there := newest[name]; there {
			older = append(older, s)
		} else {
			newest[name] = s
		}
	}
	return newest, older, nil
}

// ListSecrets implements backend.Secrets.
func (e *Engine) ListSecrets(ctx context.Context, namespace string) ([]types.Secret, error) {
	found, _, err := e.secrets(ctx, namespace)
	if err != nil {
		return nil, err
	}
	out := []types.Secret{}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		out = append(out, types.Secret{Name: name, Namespace: namespace})
	}
	return out, nil
}

// CreateSecret implements backend.Secrets.
func (e *Engine) CreateSecret(ctx context.Context, s types.Secret) error {
	found, _, err := e.secrets(ctx, s.Namespace)
	if err != nil {
		return err
	}
	if _, there := found[s.Name]; !there {
		_, err = e.storeSecret(ctx, e.objectName("secret", s.Namespace, s.Name), s)
		if !isTaken(err) {
			return err
		}
	}
	return fmt.Errorf("secret %s in namespace %s %w", s.Name, s.Namespace, backend.ErrExists)
}

func (e *Engine) storeSecret(ctx context.Context, object string, s types.Secret) (id string, err error) {
	value, err := deployment.SecretValue(s, maxSecretBytes)
	if err != nil {
		return "", err
	}
	if len(value) == 0 {
		return "", fmt.Errorf("%w secret %s: Swarm keeps no secret without a value", backend.ErrInvalid, s.Name)
	}
	made, err := e.docker.SecretCreate(ctx, client.SecretCreateOptions{Spec: swarm.SecretSpec{
		Annotations: swarm.Annotations{Name: object, Labels: e.labels(map[string]string{namespaceLabel: s.Namespace, nameLabel: s.Name})},
		Data:        value,
	}})
	if isTaken(err) {
		return "", err
	}
	return made.ID, wrap(err, "store secret "+s.Name)
}

// UpdateSecret implements backend.Secrets. The services that name the secret get the new value with new
// containers, each started before the one it replaces ends. A provider that dies on the way leaves the
// services that it had not come to with the old value; updating again completes it.
func (e *Engine) UpdateSecret(ctx context.Context, s types.Secret) error {
	defer e.look()
	found, _, err := e.secrets(ctx, s.Namespace)
	if err != nil {
		return err
	}
	if _, there := found[s.Name]; !there {
		return fmt.Errorf("secret %s in namespace %s %w", s.Name, s.Namespace, backend.ErrNotFound)
	}
	object := e.objectName("secret", s.Namespace, s.Name) + "-" + strings.ToLower(rand.Text())[:8]
	id, err := e.storeSecret(ctx, object, s)
	if err != nil {
		return err
	}
	services, err := e.docker.ServiceList(ctx, client.ServiceListOptions{Filters: e.with(map[string]string{namespaceLabel: s.Namespace})})
	if err != nil {
		return wrap(err, "list services")
	}
	var failed []error
	for _, service := range services.Items {
		if !slices.ContainsFunc(service.Spec.TaskTemplate.ContainerSpec.Secrets, refersTo(s.Name)) {
			continue
		}
		err := e.update(ctx, service.ID, func(spec *swarm.ServiceSpec) {
			for _, r := range spec.TaskTemplate.ContainerSpec.Secrets {
				if refersTo(s.Name)(r) {
					r.SecretID, r.SecretName = id, object
				}
			}
		})
		if err != nil && !errors.Is(err, backend.ErrNotFound) {
			failed = append(failed, err)
		}
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	_, older, err := e.secrets(ctx, s.Namespace)
	if err != nil {
		return err
	}
	for _, o := range older {
		if o.Spec.Labels[nameLabel] == s.Name {
			if _, err := e.docker.SecretRemove(ctx, o.ID, client.SecretRemoveOptions{}); err != nil && !errdefs.IsNotFound(err) {
				slog.Warn("a secret's old value stays", "secret", s.Name, "namespace", s.Namespace, "error", err)
			}
		}
	}
	return nil
}

// refersTo tells the reference to a secret of ours: by its file, whatever object is behind it.
func refersTo(name string) func(*swarm.SecretReference) bool {
	return func(r *swarm.SecretReference) bool { return r.File != nil && r.File.Name == secretsDir+name }
}

// DeleteSecret implements backend.Secrets.
func (e *Engine) DeleteSecret(ctx context.Context, name, namespace string) error {
	found, err := e.docker.SecretList(ctx, client.SecretListOptions{Filters: e.with(map[string]string{namespaceLabel: namespace, nameLabel: name})})
	if err != nil {
		return wrap(err, "list secrets")
	}
	if len(found.Items) == 0 {
		return fmt.Errorf("secret %s in namespace %s %w", name, namespace, backend.ErrNotFound)
	}
	for _, s := range found.Items {
		_, err := e.docker.SecretRemove(ctx, s.ID, client.SecretRemoveOptions{})
		switch {
		case err == nil, errdefs.IsNotFound(err):
		case strings.Contains(err.Error(), "in use"):
			return fmt.Errorf("secret %s is %w: %w", name, backend.ErrInUse, err)
		default:
			return wrap(err, "delete secret "+name)
		}
	}
	return nil
}

// secretReferences are what a service needs to get secrets as files. Their mode is for whatever user the
// image runs as; nobody else is in the container.
func (e *Engine) secretReferences(ctx context.Context, namespace string, names []string) ([]*swarm.SecretReference, error) {
	if len(names) == 0 {
		return nil, nil
	}
	found, _, err := e.secrets(ctx, namespace)
	if err != nil {
		return nil, err
	}
	var out []*swarm.SecretReference
	for _, name := range names {
		s, there := found[name]
		if !there {
			return nil, fmt.Errorf("%w secrets: secret %s in namespace %s %w: create it first", backend.ErrInvalid, name, namespace, backend.ErrNotFound)
		}
		out = append(out, &swarm.SecretReference{
			SecretID: s.ID, SecretName: s.Spec.Name,
			File: &swarm.SecretReferenceFileTarget{Name: secretsDir + name, UID: "0", GID: "0", Mode: 0o444},
		})
	}
	return out, nil
}
