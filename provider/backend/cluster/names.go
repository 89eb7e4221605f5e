package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

func isConflict(err error) bool { return errors.Is(err, ErrConflict) }

// checkSecret holds a secret to the rules and fills in its namespace.
func (b *Backend) checkSecret(ctx context.Context, s *types.Secret) error {
	if s.Namespace == "" {
		s.Namespace = backend.DefaultNamespace
	}
	if err := deployment.CheckSecretName(s.Name); err != nil {
		return err
	}
	return b.checkNamespace(ctx, s.Namespace)
}

// ListSecrets implements backend.Secrets.
func (b *Backend) ListSecrets(ctx context.Context, namespace string) ([]types.Secret, error) {
	if namespace == "" {
		namespace = backend.DefaultNamespace
	}
	if err := b.checkNamespace(ctx, namespace); err != nil {
		return nil, err
	}
	return b.Engine.ListSecrets(ctx, namespace)
}

// CreateSecret implements backend.Secrets.
func (b *Backend) CreateSecret(ctx context.Context, s types.Secret) error {
	if err := b.checkSecret(ctx, &s); err != nil {
		return err
	}
	return b.Engine.CreateSecret(ctx, s)
}

// UpdateSecret implements backend.Secrets.
func (b *Backend) UpdateSecret(ctx context.Context, s types.Secret) error {
	if err := b.checkSecret(ctx, &s); err != nil {
		return err
	}
	return b.Engine.UpdateSecret(ctx, s)
}

// DeleteSecret implements backend.Secrets. A secret that a function names stays: without it the
// function could not be started again.
func (b *Backend) DeleteSecret(ctx context.Context, name, namespace string) error {
	s := types.Secret{Name: name, Namespace: namespace}
	if err := b.checkSecret(ctx, &s); err != nil {
		return err
	}
	for _, f := range b.in(s.Namespace) {
		r := f.record.Load()
		if r != nil && slices.ContainsFunc(r.Versions, func(d deployment.Deployed) bool { return slices.Contains(d.Spec.Secrets, name) }) {
			return fmt.Errorf("secret %s is %w by function %s", name, backend.ErrInUse, f.ref)
		}
	}
	return b.Engine.DeleteSecret(ctx, s.Name, s.Namespace)
}

// ListNamespaces implements backend.Namespaces.
func (b *Backend) ListNamespaces(ctx context.Context) ([]types.FunctionNamespace, error) {
	return b.Engine.ListNamespaces(ctx)
}

// CreateNamespace implements backend.Namespaces.
func (b *Backend) CreateNamespace(ctx context.Context, n types.FunctionNamespace) error {
	if err := backend.CheckName("namespace", n.Name); err != nil {
		return err
	}
	return b.Engine.CreateNamespace(ctx, n)
}

// UpdateNamespace implements backend.Namespaces.
func (b *Backend) UpdateNamespace(ctx context.Context, n types.FunctionNamespace) error {
	return b.Engine.UpdateNamespace(ctx, n)
}

// DeleteNamespace implements backend.Namespaces.
func (b *Backend) DeleteNamespace(ctx context.Context, name string) error {
	if name == backend.DefaultNamespace {
		return fmt.Errorf("%w: namespace %s is always there", backend.ErrInvalid, name)
	}
	for _, f := range b.all() { // those being deployed too
		if f.ref.Namespace == name {
			return fmt.Errorf("namespace %s is %w by function %s", name, backend.ErrInUse, f.ref)
		}
	}
	return b.Engine.DeleteNamespace(ctx, name)
}
