package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
)

func (b *Backend) ensureDefaultNamespace() error {
	var n types.FunctionNamespace
	err := b.store.get(namespacesBucket, []byte(backend.DefaultNamespace), &n)
	if errors.Is(err, errNoRecord) {
		n.Name = backend.DefaultNamespace
		return b.store.put(namespacesBucket, []byte(n.Name), n)
	}
	return err
}

// checkNamespace refuses a namespace that does not exist.
func (b *Backend) checkNamespace(name string) error {
	if err := backend.CheckName("namespace", name); err != nil {
		return err
	}
	var n types.FunctionNamespace
	err := b.store.get(namespacesBucket, []byte(name), &n)
	if errors.Is(err, errNoRecord) {
		return fmt.Errorf("%w namespace %q: it does not exist, create it first", backend.ErrInvalid, name)
	}
	return err
}

// ListNamespaces implements backend.Namespaces.
func (b *Backend) ListNamespaces(context.Context) ([]types.FunctionNamespace, error) {
	var out []types.FunctionNamespace
	err := b.store.each(namespacesBucket, func(raw []byte) error {
		var n types.FunctionNamespace
		if err := json.Unmarshal(raw, &n); err != nil {
			return err
		}
		out = append(out, n)
		return nil
	})
	return out, err
}

// CreateNamespace implements backend.Namespaces.
func (b *Backend) CreateNamespace(_ context.Context, n types.FunctionNamespace) error {
	b.names.Lock()
	defer b.names.Unlock()
	if err := backend.CheckName("namespace", n.Name); err != nil {
		return err
	}
	if err := b.store.get(namespacesBucket, []byte(n.Name), new(types.FunctionNamespace)); err == nil {
		return fmt.Errorf("namespace %s %w", n.Name, backend.ErrExists)
	}
	return b.store.put(namespacesBucket, []byte(n.Name), n)
}

// UpdateNamespace implements backend.Namespaces.
func (b *Backend) UpdateNamespace(_ context.Context, n types.FunctionNamespace) error {
	b.names.Lock()
	defer b.names.Unlock()
	if err := b.store.get(namespacesBucket, []byte(n.Name), new(types.FunctionNamespace)); err != nil {
		return missingNamespace(n.Name, err)
	}
	return b.store.put(namespacesBucket, []byte(n.Name), n)
}

// DeleteNamespace implements backend.Namespaces. The namespace's secrets go with it.
func (b *Backend) DeleteNamespace(_ context.Context, name string) error {
	b.names.Lock()
	defer b.names.Unlock()
	if name == backend.DefaultNamespace {
		return fmt.Errorf("%w: namespace %s is always there", backend.ErrInvalid, name)
	}
	if err := b.store.get(namespacesBucket, []byte(name), new(types.FunctionNamespace)); err != nil {
		return missingNamespace(name, err)
	}
	b.mu.RLock()
	for ref := range b.functions { // those being deployed too
		if ref.Namespace == name {
			b.mu.RUnlock()
			return fmt.Errorf("namespace %s is %w by function %s", name, backend.ErrInUse, ref)
		}
	}
	b.mu.RUnlock()
	return b.store.deleteNamespace(name)
}

func missingNamespace(name string, err error) error {
	if errors.Is(err, errNoRecord) {
		return fmt.Errorf("namespace %s %w", name, backend.ErrNotFound)
	}
	return err
}
