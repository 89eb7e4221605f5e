package swarm

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// Read implements cluster.Records.
func (e *Engine) Read(ctx context.Context, ref backend.Ref) (cluster.Function, error) {
	out := cluster.Function{Ref: ref}
	config, err := e.config(ctx, ref)
	if err != nil {
		return out, err
	}
	if config != nil {
		out.Record, out.Revision = recordOf(config)
	}
	services, err := e.docker.ServiceList(ctx, client.ServiceListOptions{Filters: e.with(labelsOf(ref))})
	if err != nil {
		return out, wrap(err, "list services")
	}
	tasks, err := e.docker.TaskList(ctx, client.TaskListOptions{Filters: e.with(labelsOf(ref))})
	if err != nil {
		return out, wrap(err, "list tasks")
	}
	out.Workloads = statuses(services.Items, tasks.Items, e.network)[ref]
	return out, nil
}

// config is the one with a function's record, or nil.
func (e *Engine) config(ctx context.Context, ref backend.Ref) (*swarm.Config, error) {
	found, err := e.docker.ConfigInspect(ctx, e.objectName(kindFunction, ref.Namespace, ref.Name), client.ConfigInspectOptions{})
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap(err, "read record of "+ref.String())
	}
	return &found.Config, nil
}

// recordOf is nil for one that was erased.
func recordOf(config *swarm.Config) (record []byte, revision string) {
	if config.Spec.Labels[erasedLabel] != "" {
		return nil, ""
	}
	return []byte(config.Spec.Labels[recordLabel]), config.Version.String()
}

// Write implements cluster.Records. Swarm makes a config's name unique and changes one only from the
// version that is named.
func (e *Engine) Write(ctx context.Context, ref backend.Ref, record []byte, revision string) error {
	defer e.look()
	if revision != "" {
		config, err := e.config(ctx, ref)
		if err != nil {
			return err
		}
		return e.swap(ctx, config, revision, map[string]string{recordLabel: string(record)})
	}
	name := e.objectName(kindFunction, ref.Namespace, ref.Name)
	labels := e.labels(labelsOf(ref))
	labels[kindLabel], labels[recordLabel] = kindFunction, string(record)
	create := func() error {
		_, err := e.docker.ConfigCreate(ctx, client.ConfigCreateOptions{Spec: swarm.ConfigSpec{
			Annotations: swarm.Annotations{Name: name, Labels: labels},
			Data:        []byte("The record of a function of faas-predict is in this config's labels.\n"),
		}})
		return err
	}
	err := create()
	if isTaken(err) {
		config, ierr := e.config(ctx, ref)
		if ierr != nil {
			return ierr
		}
		if config == nil || config.Spec.Labels[erasedLabel] == "" {
			return fmt.Errorf("record of %s: %w", ref, cluster.ErrConflict)
		}
		// Its provider died between erasing and removing it.
		if _, err := e.docker.ConfigRemove(ctx, config.ID, client.ConfigRemoveOptions{}); err != nil && !errdefs.IsNotFound(err) {
			return wrap(err, "remove an erased record")
		}
		if err = create(); isTaken(err) {
			return fmt.Errorf("record of %s: %w", ref, cluster.ErrConflict)
		}
	}
	return wrap(err, "write record of "+ref.String())
}

// Erase implements cluster.Records. Swarm removes a config whatever its version is, so it is marked
// first.
func (e *Engine) Erase(ctx context.Context, ref backend.Ref, revision string) error {
	defer e.look()
	config, err := e.config(ctx, ref)
	if err != nil {
		return err
	}
	if err := e.swap(ctx, config, revision, map[string]string{erasedLabel: "true", recordLabel: ""}); err != nil {
		return err
	}
	_, err = e.docker.ConfigRemove(ctx, config.ID, client.ConfigRemoveOptions{})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return wrap(err, "remove record of "+ref.String())
}

// swap changes a config's labels, if it is of that revision.
func (e *Engine) swap(ctx context.Context, config *swarm.Config, revision string, labels map[string]string) error {
	if config == nil || config.Version.String() != revision {
		return cluster.ErrConflict
	}
	spec := config.Spec
	spec.Labels = maps.Clone(spec.Labels)
	maps.Copy(spec.Labels, labels)
	_, err := e.docker.ConfigUpdate(ctx, config.ID, client.ConfigUpdateOptions{Version: config.Version, Spec: spec})
	if isOutOfSequence(err) || errdefs.IsNotFound(err) {
		return cluster.ErrConflict
	}
	return wrap(err, "write record "+config.Spec.Name)
}

// isOutOfSequence reports whether an object has another version than the one named. Swarm tells that by a
// text only.
func isOutOfSequence(err error) bool {
	return err != nil && strings.Contains(err.Error(), "out of sequence")
}

// isTaken reports whether an object's name is taken.
func isTaken(err error) bool {
	return errdefs.IsConflict(err) || errdefs.IsAlreadyExists(err) || (err != nil && strings.Contains(err.Error(), "already exists"))
}
