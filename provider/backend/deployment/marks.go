package deployment

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// Mark is what a function does with a version that its calls do not say: it loads, failed or drains.
type Mark struct {
	Model  string
	State  backend.State
	Reason string
	at     time.Time
}

// Marks are a function's marks by version. The zero value is ready.
type Marks struct {
	mu  sync.Mutex
	set map[string]Mark
}

// marksKept bounds the failed versions that are remembered; only a deployment makes one.
const marksKept = 32

// Set replaces a version's mark.
func (m *Marks) Set(version string, mark Mark) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.set == nil {
		m.set = map[string]Mark{}
	}
	mark.at = time.Now()
	m.set[version] = mark
	if len(m.set) <= marksKept {
		return
	}
	oldest := ""
	for v, mark := range m.set {
		if mark.State == backend.Failed && (oldest == "" || mark.at.Before(m.set[oldest].at)) {
			oldest = v
		}
	}
	delete(m.set, oldest)
}

// Unset removes a version's mark.
func (m *Marks) Unset(version string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.set, version)
}

// Drained ends a version's draining, unless it is on its way back already.
func (m *Marks) Drained(version string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.set[version].State == backend.Draining {
		delete(m.set, version)
	}
}

// Forgive forgets that a version failed.
func (m *Marks) Forgive(model, version string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mark := m.set[version]; mark.State == backend.Failed && mark.Model == model {
		delete(m.set, version)
	}
}

// Clear removes every mark.
func (m *Marks) Clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.set)
}

// All is a copy.
func (m *Marks) All() map[string]Mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.set)
}

// AwaitDrained blocks until the version has answered what it had accepted and is let go.
func (m *Marks) AwaitDrained(ctx context.Context, model, version string) error {
	for {
		m.mu.Lock()
		mark := m.set[version]
		m.mu.Unlock()
		if mark.State != backend.Draining || mark.Model != model {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("version %s is %w: it answers what it had accepted", version, backend.ErrInUse)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Merge adds the marks to what a function's calls say of its versions. running tells those that answer
// calls although deploying them again failed.
func (m *Marks) Merge(versions []backend.VersionStatus, running func(version string) bool) []backend.VersionStatus {
	at := map[string]int{}
	for i, v := range versions {
		at[v.Version] = i
	}
	for version, mark := range m.All() {
		i, known := at[version]
		switch {
		case !known:
			versions = append(versions, backend.VersionStatus{Model: mark.Model, Version: version, State: mark.State, Reason: mark.Reason})
		case mark.State != backend.Failed:
		case running(version):
			versions[i].Reason = "deploying it again failed: " + mark.Reason
		default:
			versions[i].State, versions[i].Reason = mark.State, mark.Reason
		}
	}
	return versions
}
