package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// storedSecret is a secret's record. The database file can be read by the provider's user only.
type storedSecret struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Value     []byte `json:"value"`
}

// checkSecret fills in the namespace and returns the value.
func (b *Backend) checkSecret(s *types.Secret) ([]byte, error) {
	if s.Namespace == "" {
		s.Namespace = backend.DefaultNamespace
	}
	if err := deployment.CheckSecretName(s.Name); err != nil {
		return nil, err
	}
	if err := b.checkNamespace(s.Namespace); err != nil {
		return nil, err
	}
	return deployment.SecretValue(*s, deployment.MaxSecretBytes)
}

func (b *Backend) secretValue(namespace, name string) ([]byte, error) {
	var s storedSecret
	err := b.store.get(secretsBucket, storeKey(namespace, name), &s)
	if errors.Is(err, errNoRecord) {
		return nil, fmt.Errorf("secret %s in namespace %s %w", name, namespace, backend.ErrNotFound)
	}
	return s.Value, err
}

// ListSecrets implements backend.Secrets.
func (b *Backend) ListSecrets(_ context.Context, namespace string) ([]types.Secret, error) {
	if namespace == "" {
		namespace = backend.DefaultNamespace
	}
	if err := b.checkNamespace(namespace); err != nil {
		return nil, err
	}
	out := []types.Secret{}
	err := b.store.each(secretsBucket, func(raw []byte) error {
		var s storedSecret
		if err := json.Unmarshal(raw, &s); err != nil {
			return err
		}
		if s.Namespace == namespace {
			out = append(out, types.Secret{Name: s.Name, Namespace: s.Namespace})
		}
		return nil
	})
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, err
}

// CreateSecret implements backend.Secrets.
func (b *Backend) CreateSecret(_ context.Context, s types.Secret) error {
	b.names.Lock()
	defer b.names.Unlock()
	value, err := b.checkSecret(&s)
	if err != nil {
		return err
	}
	if _, err := b.secretValue(s.Namespace, s.Name); err == nil {
		return fmt.Errorf("secret %s in namespace %s %w", s.Name, s.Namespace, backend.ErrExists)
	} else if !errors.Is(err, backend.ErrNotFound) {
		return err
	}
	return b.store.put(secretsBucket, storeKey(s.Namespace, s.Name), storedSecret{s.Name, s.Namespace, value})
}

// UpdateSecret implements backend.Secrets. Running functions find the new value in their file at
// once; a model that read the old one in init keeps it until it is deployed again.
func (b *Backend) UpdateSecret(_ context.Context, s types.Secret) error {
	b.names.Lock()
	defer b.names.Unlock()
	value, err := b.checkSecret(&s)
	if err != nil {
		return err
	}
	if _, err := b.secretValue(s.Namespace, s.Name); err != nil {
		return err
	}
	if err := b.store.put(secretsBucket, storeKey(s.Namespace, s.Name), storedSecret{s.Name, s.Namespace, value}); err != nil {
		return err
	}
	for _, f := range b.in(s.Namespace) {
		rt := f.route.Load()
		if rt == nil {
			continue
		}
		for _, g := range rt.Loaded {
			if slices.Contains(g.launch.secrets, s.Name) {
				g.giveSecret(s.Name, value)
			}
		}
	}
	return nil
}

// giveSecret replaces a secret's value where the generation runs.
func (g *generation) giveSecret(name string, value []byte) {
	i := g.current.Load()
	if i == nil {
		return // its successor reads the value that is stored
	}
	if err := writeSecret(i.dir, name, value, g.launch.id); err != nil {
		slog.Warn("a function keeps the old value of a secret", "function", g.launch.ref.String(), "secret", name, "error", err)
	}
}

// refreshSecrets gives a generation that has just become its function's the secrets that are stored:
// one that changed while it was loading was not written to it.
func (b *Backend) refreshSecrets(g *generation) {
	b.names.Lock()
	defer b.names.Unlock()
	for _, name := range g.launch.secrets {
		if value, err := b.secretValue(g.launch.ref.Namespace, name); err == nil {
			g.giveSecret(name, value)
		}
	}
}

// DeleteSecret implements backend.Secrets. A secret that a function names stays: without it the
// function could not be started again.
func (b *Backend) DeleteSecret(_ context.Context, name, namespace string) error {
	b.names.Lock()
	defer b.names.Unlock()
	s := types.Secret{Name: name, Namespace: namespace}
	if _, err := b.checkSecret(&s); err != nil {
		return err
	}
	if _, err := b.secretValue(s.Namespace, s.Name); err != nil {
		return err
	}
	for _, f := range b.in(s.Namespace) {
		r := f.record.Load()
		if r != nil && slices.ContainsFunc(r.Versions, func(d deployment.Deployed) bool { return slices.Contains(d.Spec.Secrets, name) }) {
			return fmt.Errorf("secret %s is %w by function %s", name, backend.ErrInUse, f.ref)
		}
	}
	return b.store.delete(secretsBucket, storeKey(s.Namespace, s.Name))
}
