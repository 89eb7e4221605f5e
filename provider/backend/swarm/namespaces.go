package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// ListNamespaces implements backend.Namespaces. The default one is there without an object.
func (e *Engine) ListNamespaces(ctx context.Context) ([]types.FunctionNamespace, error) {
	found, err := e.docker.ConfigList(ctx, client.ConfigListOptions{Filters: e.with(map[string]string{kindLabel: kindNamespace})})
	if err != nil {
		return nil, wrap(err, "list namespaces")
	}
	out := []types.FunctionNamespace{}
	for _, c := range found.Items {
		var n types.FunctionNamespace
		if err := json.Unmarshal([]byte(c.Spec.Labels[metaLabel]), &n); err != nil {
			return nil, fmt.Errorf("read namespace %s: %w", c.Spec.Labels[nameLabel], err)
		}
		n.Name = c.Spec.Labels[nameLabel]
		out = append(out, n)
	}
	if !slices.ContainsFunc(out, func(n types.FunctionNamespace) bool { return n.Name == backend.DefaultNamespace }) {
		out = append(out, types.FunctionNamespace{Name: backend.DefaultNamespace})
	}
	slices.SortFunc(out, func(x, y types.FunctionNamespace) int { return strings.Compare(x.Name, y.Name) })
	return out, nil
}

// CreateNamespace implements backend.Namespaces.
func (e *Engine) CreateNamespace(ctx context.Context, n types.FunctionNamespace) error {
	if n.Name == backend.DefaultNamespace {
		return fmt.Errorf("namespace %s %w", n.Name, backend.ErrExists)
	}
	return e.storeNamespace(ctx, n)
}

func (e *Engine) storeNamespace(ctx context.Context, n types.FunctionNamespace) error {
	meta, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("store namespace %s: %w", n.Name, err)
	}
	_, err = e.docker.ConfigCreate(ctx, client.ConfigCreateOptions{Spec: swarm.ConfigSpec{
		Annotations: swarm.Annotations{
			Name:   e.objectName(kindNamespace, "", n.Name),
			Labels: e.labels(map[string]string{kindLabel: kindNamespace, nameLabel: n.Name, metaLabel: string(meta)}),
		},
		Data: []byte("A namespace of faas-predict is in this config's labels.\n"),
	}})
	if isTaken(err) {
		return fmt.Errorf("namespace %s %w", n.Name, backend.ErrExists)
	}
	return wrap(err, "create namespace "+n.Name)
}

// UpdateNamespace implements backend.Namespaces.
func (e *Engine) UpdateNamespace(ctx context.Context, n types.FunctionNamespace) error {
	meta, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("store namespace %s: %w", n.Name, err)
	}
	for range updates {
		found, err := e.docker.ConfigInspect(ctx, e.objectName(kindNamespace, "", n.Name), client.ConfigInspectOptions{})
		if errdefs.IsNotFound(err) && n.Name == backend.DefaultNamespace {
			return e.storeNamespace(ctx, n)
		}
		if err != nil {
			return wrap(err, "update namespace "+n.Name)
		}
		err = e.swap(ctx, &found.Config, found.Config.Version.String(), map[string]string{metaLabel: string(meta)})
		if !errors.Is(err, cluster.ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("update namespace %s: %w", n.Name, backend.ErrNotReady)
}

// DeleteNamespace implements backend.Namespaces. The namespace's secrets go with it.
func (e *Engine) DeleteNamespace(ctx context.Context, name string) error {
	config, err := e.docker.ConfigInspect(ctx, e.objectName(kindNamespace, "", name), client.ConfigInspectOptions{})
	if err != nil {
		return wrap(err, "delete namespace "+name)
	}
	functions, err := e.docker.ConfigList(ctx, client.ConfigListOptions{Filters: e.with(map[string]string{kindLabel: kindFunction, namespaceLabel: name})})
	if err != nil {
		return wrap(err, "list functions")
	}
	for _, f := range functions.Items {
		if record, _ := recordOf(&f); record != nil {
			return fmt.Errorf("namespace %s is %w by function %s", name, backend.ErrInUse, refOf(f.Spec.Labels))
		}
	}
	secrets, err := e.ListSecrets(ctx, name)
	if err != nil {
		return err
	}
	for _, s := range secrets {
		if err := e.DeleteSecret(ctx, s.Name, name); err != nil {
			return err
		}
	}
	_, err = e.docker.ConfigRemove(ctx, config.Config.ID, client.ConfigRemoveOptions{})
	return wrap(err, "delete namespace "+name)
}
