// Package swarm runs functions as services of Docker Swarm. It is a cluster.Engine: what a function's
// versions and splits mean is not its business.
//
// Everything is kept in Swarm's own state. A function's record is a label of a config object, whose
// version makes compare-and-swap; a version as it was deployed is a service; secrets are Swarm's, and a
// namespace is a config object too. All carry the label of the network that they belong to, so that
// several providers' functions can live in one swarm.
package swarm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// Labels of all objects.
const (
	networkLabel   = "faas-predict.network"   // which functions it is of
	kindLabel      = "faas-predict.kind"      // of configs: kindFunction, kindNamespace
	namespaceLabel = "faas-predict.namespace" // of the function or secret
	nameLabel      = "faas-predict.name"      // of the function, secret or namespace
	recordLabel    = "faas-predict.record"    // of a function's config
	erasedLabel    = "faas-predict.erased"    // the config is about to be removed and counts no more
	workloadLabel  = "faas-predict.workload"  // of services
	versionLabel   = "faas-predict.version"
	modelLabel     = "faas-predict.model"
	leaseLabel     = "faas-predict.lease"
	metaLabel      = "faas-predict.meta" // of a namespace's config
)

const (
	kindFunction  = "function"
	kindNamespace = "namespace"
)

// Engine implements cluster.Engine. Use Open.
type Engine struct {
	docker  *client.Client
	network string // its name
	kick    chan struct{}
	watches sync.WaitGroup
}

var _ cluster.Engine = (*Engine)(nil)

// Open connects to the engine that the environment names (DOCKER_HOST, DOCKER_CERT_PATH,
// DOCKER_TLS_VERIFY; by default the socket of this machine), which must be a manager of a swarm, and
// makes the overlay network if there is none of that name.
func Open(ctx context.Context, network string) (*Engine, error) {
	docker, err := client.New(client.FromEnv)
	if err != nil {
		return nil, fmt.Errorf("connect to Docker: %w", err)
	}
	e := &Engine{docker: docker, network: network, kick: make(chan struct{}, 1)}
	if err := e.prepare(ctx); err != nil {
		docker.Close()
		return nil, err
	}
	return e, nil
}

func (e *Engine) prepare(ctx context.Context) error {
	info, err := e.docker.Info(ctx, client.InfoOptions{})
	if err != nil {
		return fmt.Errorf("connect to Docker: %w", err)
	}
	if !info.Info.Swarm.ControlAvailable {
		return fmt.Errorf("the Docker engine at %s is no manager of a swarm: run docker swarm init there, or start this provider on a manager", e.docker.DaemonHost())
	}
	_, err = e.docker.NetworkInspect(ctx, e.network, client.NetworkInspectOptions{})
	if !errdefs.IsNotFound(err) {
		return wrap(err, "look for network "+e.network)
	}
	_, err = e.docker.NetworkCreate(ctx, e.network, client.NetworkCreateOptions{
		Driver: "overlay", Scope: "swarm", Attachable: true, Labels: e.labels(nil),
	})
	if errdefs.IsConflict(err) {
		return nil // another provider was first
	}
	return wrap(err, "make network "+e.network)
}

// Name implements cluster.Engine.
func (e *Engine) Name() string { return "swarm" }

// Close implements cluster.Engine.
func (e *Engine) Close() error {
	e.watches.Wait()
	return e.docker.Close()
}

// labels adds to some labels what every object carries.
func (e *Engine) labels(own map[string]string) map[string]string {
	out := map[string]string{networkLabel: e.network}
	for name, value := range own {
		out[name] = value
	}
	return out
}

// with filters objects by labels.
func (e *Engine) with(own map[string]string) client.Filters {
	filters := client.Filters{}
	for name, value := range e.labels(own) {
		filters.Add("label", name+"="+value)
	}
	return filters
}

// objectName names the config or secret of something. Swarm's names have 64 characters at most, and a
// namespace and a name together have more.
func (e *Engine) objectName(kind, namespace, name string) string {
	sum := sha256.Sum256([]byte(e.network + "/" + kind + "/" + namespace + "/" + name))
	return "faas-predict-" + kind + "-" + hex.EncodeToString(sum[:12])
}

// wrap says what was tried, and translates errors that have a meaning in HTTP.
func wrap(err error, tried string) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%s: %w: %w", tried, backend.ErrNotFound, err)
	case errdefs.IsInvalidArgument(err):
		return fmt.Errorf("%s: %w: %w", tried, backend.ErrInvalid, err)
	}
	return fmt.Errorf("%s: %w", tried, err)
}

// refOf is the function that labels name.
func refOf(labels map[string]string) backend.Ref {
	return backend.Ref{Namespace: labels[namespaceLabel], Name: labels[nameLabel]}
}

func labelsOf(ref backend.Ref) map[string]string {
	return map[string]string{namespaceLabel: ref.Namespace, nameLabel: ref.Name}
}
