package kubernetes

import (
	"context"
	"fmt"
	"slices"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// ListNamespaces implements backend.Namespaces: the configured ones.
func (e *Engine) ListNamespaces(context.Context) ([]types.FunctionNamespace, error) {
	out := make([]types.FunctionNamespace, 0, len(e.Namespaces))
	for _, name := range slices.Sorted(slices.Values(e.Namespaces)) {
		out = append(out, types.FunctionNamespace{Name: name})
	}
	return out, nil
}

// errConfigured is why namespaces do not change: making one would need rights over the whole cluster.
func errConfigured(name string) error {
	return fmt.Errorf("%w namespace %q: on Kubernetes namespaces are made by the cluster's administrator and named in the setting kubernetes_namespaces", backend.ErrInvalid, name)
}

// CreateNamespace implements backend.Namespaces.
func (e *Engine) CreateNamespace(_ context.Context, n types.FunctionNamespace) error {
	if slices.Contains(e.Namespaces, n.Name) {
		return fmt.Errorf("namespace %s %w", n.Name, backend.ErrExists)
	}
	return errConfigured(n.Name)
}

// UpdateNamespace implements backend.Namespaces.
func (e *Engine) UpdateNamespace(_ context.Context, n types.FunctionNamespace) error {
	if !slices.Contains(e.Namespaces, n.Name) {
		return fmt.Errorf("namespace %s %w", n.Name, backend.ErrNotFound)
	}
	return errConfigured(n.Name)
}

// DeleteNamespace implements backend.Namespaces.
func (e *Engine) DeleteNamespace(_ context.Context, name string) error {
	return e.UpdateNamespace(context.Background(), types.FunctionNamespace{Name: name})
}
