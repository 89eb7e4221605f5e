package process

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// keptEnvironments is how many finished environments stay that no function uses, those used last.
// Not none: a deployment whose init failed is repeated with the same list, and who goes back to the
// version before, or deletes a function to create it anew, should not wait for the same packages
// again. Not many: one may hold gigabytes.
const keptEnvironments = 3

// heldEnvironment is one that somebody uses, builds or removes.
type heldEnvironment struct {
	users    int        // guarded by environments.mu
	building sync.Mutex // held to build it and to remove it
}

// hold keeps the environment from being removed until letGo, whether or not it is built yet.
func (e *environments) hold(digest string) *heldEnvironment {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.held == nil {
		e.held = map[string]*heldEnvironment{}
	}
	env := e.held[digest]
	if env == nil {
		env = &heldEnvironment{}
		e.held[digest] = env
	}
	env.users++
	return env
}

// letGo undoes one hold. Without another, the environment counts as used last now, in a form that
// outlives the provider: the time of its marker.
func (e *environments) letGo(digest string) {
	e.mu.Lock()
	env := e.held[digest]
	if env.users--; env.users > 0 {
		e.mu.Unlock()
		return
	}
	now := time.Now()
	_ = os.Chtimes(filepath.Join(e.dir, digest, completeMarker), now, now) // it may never have been built
	delete(e.held, digest)
	e.mu.Unlock()
	e.trim()
}

// close ends the removing: what functions let go of because the provider ends, they use again when it
// is back.
func (e *environments) close() { e.closed.Store(true) }

// trim removes the finished environments that nobody holds, but for the last few. It may be called
// at any time. What has no marker is not its business: that is being built or removed.
func (e *environments) trim() {
	if e.closed.Load() {
		return
	}
	entries, err := os.ReadDir(e.dir)
	if err != nil {
		slog.Warn("unused Python environments stay", "error", err)
		return
	}
	used := map[string]time.Time{}
	var unused []string
	for _, entry := range entries {
		marker, err := os.Stat(filepath.Join(e.dir, entry.Name(), completeMarker))
		if err != nil || e.isHeld(entry.Name()) {
			continue
		}
		used[entry.Name()] = marker.ModTime()
		unused = append(unused, entry.Name())
	}
	slices.SortFunc(unused, func(a, b string) int { return cmp.Or(used[b].Compare(used[a]), cmp.Compare(a, b)) })
	for _, digest := range unused[min(keptEnvironments, len(unused)):] {
		if err := e.remove(digest); err != nil {
			slog.Warn("unused Python environment stays", "environment", digest, "error", err)
		}
	}
}

func (e *environments) isHeld(digest string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.held[digest] != nil
}

// remove removes an environment unless somebody holds it. Who comes to hold it from here on waits at
// its lock and builds it anew. The marker goes first: a removal that is cut off leaves something
// that does not count and that the next start clears.
func (e *environments) remove(digest string) error {
	e.mu.Lock()
	if e.held[digest] != nil {
		e.mu.Unlock()
		return nil
	}
	env := &heldEnvironment{users: 1}
	env.building.Lock()
	if e.held == nil {
		e.held = map[string]*heldEnvironment{}
	}
	e.held[digest] = env
	e.mu.Unlock()

	dir := filepath.Join(e.dir, digest)
	err := os.Remove(filepath.Join(dir, completeMarker))
	if err == nil {
		err = os.RemoveAll(dir)
	}
	env.building.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if env.users--; env.users == 0 {
		delete(e.held, digest)
	}
	if err == nil {
		slog.Info("unused Python environment removed", "environment", digest)
	}
	return err
}

// sweepEnvironments removes what was not finished.
func sweepEnvironments(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if _, err := os.Stat(filepath.Join(path, completeMarker)); errors.Is(err, os.ErrNotExist) {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// heldModels are models that come with a hold on their environment, from before it is built until
// the model is released: a function scaled to zero and one that still drains keep theirs too.
type heldModels struct {
	models       backend.Models
	environments *environments
}

// Resolve implements backend.Models.
func (h heldModels) Resolve(ctx context.Context, image string) (backend.Model, error) {
	return h.hold(h.models.Resolve(ctx, image))
}

// Pin implements backend.Models.
func (h heldModels) Pin(name, version string) (backend.Model, error) {
	return h.hold(h.models.Pin(name, version))
}

func (h heldModels) hold(m backend.Model, err error) (backend.Model, error) {
	if err != nil {
		return m, err
	}
	// prepare meets the same error, where it can be answered.
	_, digest, _ := h.environments.wanted(m.Dir)
	if digest == "" {
		return m, nil
	}
	h.environments.hold(digest)
	release := m.Release
	m.Release = func() {
		release()
		h.environments.letGo(digest)
	}
	return m, nil
}
