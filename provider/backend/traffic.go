package backend

import (
	"context"
	"errors"

	"github.com/faas-predict/faas-predict/provider/traffic"
)

// ErrNothingBefore means that a function has no split to be rolled back to.
var ErrNothingBefore = errors.New("no split before this one")

// ErrNoVersion means that a call or a request names a version that the function does not have
// loaded.
var ErrNoVersion = errors.New("version not loaded")

// State says what a function does with a version.
type State string

// The states of a version. Registered is every version that no function has anything to do with.
const (
	Registered State = "registered"
	Loading    State = "loading"  // init or the examples run
	Ready      State = "ready"    // could answer at once, and gets only calls that name it
	Active     State = "active"   // has a share of the calls
	Draining   State = "draining" // answers what it had accepted, and leaves
	Failed     State = "failed"   // did not start; the reason says why
)

// VersionStatus is a version as one function has it.
type VersionStatus struct {
	Model   string         `json:"model"`
	Version string         `json:"version"`
	State   State          `json:"state"`
	Reason  string         `json:"reason,omitempty"`
	Weight  traffic.Weight `json:"weight"`
	Calls   uint64         `json:"calls"`
	Errors  uint64         `json:"errors"`
	// Mirrored counts what became of the copies that the version got as a mirror.
	Mirrored *traffic.Mirrored `json:"mirrored,omitempty"`
}

// TrafficStatus is how a function's calls are split.
type TrafficStatus struct {
	Function string `json:"function"` // NAME.NAMESPACE
	traffic.Split
	Versions []VersionStatus `json:"versions"`
	// Rollout is the guarded rollout that is under way, and RolloutNote how it stands or how the last
	// one ended.
	Rollout     *traffic.Rollout `json:"rollout,omitempty"`
	RolloutNote string           `json:"rollout_note,omitempty"`
	// Before are the splits that rolling back leads to, the newest first.
	Before []traffic.Split `json:"before,omitempty"`
}

// Traffic is what a backend does with the versions of functions.
type Traffic interface {
	// Traffic returns a function's split and versions.
	Traffic(ctx context.Context, ref Ref) (TrafficStatus, error)
	// SetTraffic loads what the split names, then moves the calls in one step. When a version does
	// not load, the split before stays and the error says why. No accepted call is lost.
	SetTraffic(ctx context.Context, ref Ref, split traffic.Split) (TrafficStatus, error)
	// Rollback moves the calls to the split before. It is SetTraffic where a version of that split
	// is no longer loaded.
	Rollback(ctx context.Context, ref Ref) (TrafficStatus, error)
	// Running lists the functions that have anything to do with a model, sorted by name.
	Running(model string) []TrafficStatus
	// Unload makes every function forget a version, and MUST refuse with ErrInUse while it has a
	// share of a function's calls or is its mirror.
	Unload(ctx context.Context, model, version string) error
}
