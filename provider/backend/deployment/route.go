package deployment

import (
	"fmt"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// Route says which loaded version answers a call; V is what a backend has of one. It never changes: a
// function moves its calls by pointing to another route.
type Route[V any] struct {
	Split  traffic.Split
	Loaded map[string]*V // by version; after a restart not all of Split yet
	Only   *V            // the one that gets all calls that name none, when there is one
	Mirror *V            // gets copies; nil when there is none
}

// NewRoute takes over loaded.
func NewRoute[V any](split traffic.Split, loaded map[string]*V) *Route[V] {
	rt := &Route[V]{Split: split, Loaded: loaded, Mirror: loaded[split.Mirror]}
	for _, t := range split.Targets {
		if t.Weight == traffic.Whole {
			rt.Only = loaded[t.Version]
		}
	}
	return rt
}

// Version is the loaded version of that name, or nil. It is also nil on a nil Route.
func (rt *Route[V]) Version(name string) *V {
	if rt == nil {
		return nil
	}
	return rt.Loaded[name]
}

// Pick chooses for one call: what its header names, else what its session or chance says. It is nil where
// that version is not loaded yet; one that is named and not there is backend.ErrNoVersion.
func (rt *Route[V]) Pick(header map[string][]string) (*V, error) {
	if pins := header[traffic.PinHeader]; len(pins) > 0 && pins[0] != "" {
		v := rt.Loaded[pins[0]]
		if v == nil {
			return nil, fmt.Errorf("%w: %.130q", backend.ErrNoVersion, pins[0])
		}
		return v, nil
	}
	if rt.Only != nil {
		return rt.Only, nil
	}
	session := ""
	if sessions := header[traffic.SessionHeader]; len(sessions) > 0 {
		session = sessions[0]
	}
	return rt.Loaded[rt.Split.Pick(session)], nil
}
