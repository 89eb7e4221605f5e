// Package cluster runs functions as containers of an engine that places, restarts and scales them:
// Docker Swarm, Kubernetes. It is the part that all of them have in common: what a deployment, a split,
// a rollback, a mirror, a rollout, a session and a pin mean, how calls move from one version to the
// next without a loss, and which container gets a call. What differs is behind Engine.
//
// Nothing is kept here that the engine does not have: a provider that starts anew, and a second one
// beside it, read the same records and follow the same changes. A record is changed by
// compare-and-swap, and calls follow the record.
//
// No engine's client, no HTTP routes and no image format may enter here.
package cluster

import (
	"context"
	"errors"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// Engine is a container engine. Every method may be called at any time from any goroutine. Errors wrap
// those of package backend, so that they mean the same in HTTP, and ErrConflict.
type Engine interface {
	Records
	Workloads
	backend.Secrets
	backend.Namespaces

	// Name is what /system/info calls the engine: "swarm", "kubernetes".
	Name() string

	// Watch calls observe with each function that has a record or a workload, and from then on with each
	// in which anything changed: its record, its workloads, their endpoints. It MUST call observe again
	// after the last change, MAY call it without a change or leave out states between, and MUST call it
	// with neither record nor workloads once both are gone. Calls of observe come one after the other;
	// observe does not block. Watch returns nil once every function that there was has been observed,
	// and goes on in the background until ctx ends. What fails on the way is logged and tried again by
	// the engine.
	Watch(ctx context.Context, observe func(Function)) error

	// Close lets go of the client, once Watch's context has ended, and returns when observe is called no
	// more. The functions go on.
	Close() error
}

// ErrConflict means that a record is no longer what the caller read.
var ErrConflict = errors.New("changed by another provider meanwhile")

// Records keep a function's record, which is opaque to the engine, up to MaxRecord bytes.
type Records interface {
	// Read returns a function from the engine itself, not from a cache that may lag behind. Without a
	// record its Record is nil; that is no error.
	Read(ctx context.Context, ref backend.Ref) (Function, error)
	// Write stores a record and MUST be atomic: with revision "" it creates the record, and gives
	// ErrConflict if there is one; else it replaces the record of that revision, and gives ErrConflict
	// if it has changed or is gone.
	Write(ctx context.Context, ref backend.Ref, record []byte, revision string) error
	// Erase removes the record of that revision, or gives ErrConflict.
	Erase(ctx context.Context, ref backend.Ref, revision string) error
}

// MaxRecord bounds a record in bytes. It leaves room for sixteen versions with an environment of some
// kilobytes each, and fits what etcd and Swarm's log take.
const MaxRecord = 256 << 10

// Function is what an engine knows of a function at one moment.
type Function struct {
	Ref       backend.Ref
	Record    []byte // nil when there is none
	Revision  string // of Record
	Workloads []Status
}

// Workloads are the containers of a function, a set for each version as it was deployed.
type Workloads interface {
	// Apply makes the engine run w, which is new, or changes only Replicas of one that is there: nothing
	// else of a workload ever changes. It returns when the engine has accepted it, not when it runs.
	Apply(ctx context.Context, w Workload) error
	// Scale sets the number of replicas of a workload. Those that leave get SIGTERM and have
	// Workload.Grace to answer what they have.
	Scale(ctx context.Context, ref backend.Ref, id string, replicas uint64) error
	// Remove removes a workload, likewise. It returns when the engine has accepted that. Removing what
	// is not there is no error.
	Remove(ctx context.Context, ref backend.Ref, id string) error
	// Tail returns the last lines that a workload's containers wrote, the one that ended last first in
	// line, up to lines lines, for the answer to a deployment that failed. "" when there are none.
	Tail(ctx context.Context, ref backend.Ref, id string, lines int) (string, error)
	// Logs sends the lines of all containers of a function that the query asks for; see
	// backend.Functions. The function exists.
	Logs(ctx context.Context, query logs.Request) (<-chan logs.Message, error)
}

// Workload is what is to run.
type Workload struct {
	Ref backend.Ref
	ID  string // a DNS label of at most 16 characters, unique among the function's workloads
	// Model and Version say what the containers serve, and Image from what. Where that has no model they fetch Bundle
	// first; an engine whose Images give no bundles is never asked to.
	Model, Version, Image string
	Bundle                *deployment.Bundle
	// Spec is the deployment: environment, secrets, limits, requests, constraints, labels, annotations,
	// read-only root. It has passed the rules of package deployment.
	Spec     types.FunctionDeployment
	Env      map[string]string // the whole environment: Spec's and what the provider sets
	Replicas uint64
	Grace    Grace
	// Lease is the Unix time until which the workload may be in no record, because a deployment waits for
	// it. The engine keeps it and gives it back in Status.
	Lease int64
}

// Status is how a workload is.
type Status struct {
	ID       string
	Replicas uint64 // that the engine was asked for
	Lease    int64
	// Endpoints are the containers that run and are not asked to end. Whether the model in one is ready
	// is asked there, at /_/ready.
	Endpoints []Endpoint
	// Reason says why containers do not run that should, as the engine puts it: no node has room, the
	// image is not found, a container ended with exit code 1. "" when there is nothing to say.
	Reason string
	// Failures counts containers that ended, or could not be started, other than because they were asked
	// to; a workload that fails while it is deployed is given up. What waiting may mend, such as
	// room on a node, is none.
	Failures int
}

// Endpoint is one container.
type Endpoint struct {
	Instance string // the engine's name for it, as in logs
	Address  string // HOST:PORT of fwatchdog
}
