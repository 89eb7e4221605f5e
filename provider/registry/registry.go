// Package registry keeps pushed bundles: every version of every model, immutable once it is stored.
//
// A version's files are a directory that is renamed into place when it is complete; its record in
// the database is written after that, and only what has a record exists. So a push that was cut off
// at any point leaves nothing that can be seen, and Open removes what it left on disk.
//
// Nothing here runs a model, speaks HTTP or knows a function.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// ErrConflict means that a version's label came back with other content.
var ErrConflict = errors.New("version already means something else")

// Version is a stored bundle's record.
type Version struct {
	model.Version
	Model     string       `json:"name"`
	Runtime   string       `json:"runtime"`
	Bytes     int64        `json:"bytes"` // of all files, unpacked
	CreatedAt time.Time    `json:"created_at"`
	PushedAt  time.Time    `json:"pushed_at"` // the last time this content was pushed
	Files     []model.File `json:"files"`
}

// Model is a model and its versions, the one pushed last first.
type Model struct {
	Name     string    `json:"name"`
	Latest   string    `json:"latest"`
	Versions []Version `json:"versions"`
}

// Registry is safe for use by many goroutines.
type Registry struct {
	db     *bbolt.DB
	dir    string // one directory a model below it
	limits model.Limits
	maxZip int64

	mu   sync.Mutex     // serialises what changes records, directories in place and uses
	uses map[string]int // functions that run a version, by key
}

var bucket = []byte("models")

// The directories below Registry.dir start with a dot where a model's name cannot.
const (
	incoming = ".incoming"
	removed  = ".removed"
)

// Open returns the registry whose files are below dir and whose records are in db. It removes what
// an interrupted push or delete left behind. maxZip is the largest zip that Push takes, in bytes.
func Open(db *bbolt.DB, dir string, limits model.Limits, maxZip int64) (*Registry, error) {
	r := &Registry{db: db, dir: dir, limits: limits, maxZip: maxZip, uses: map[string]int{}}
	if err := db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	}); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	if err := r.sweep(); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	return r, nil
}

// sweep makes the directory agree with the records.
func (r *Registry) sweep() error {
	for _, scratch := range []string{incoming, removed} {
		path := filepath.Join(r.dir, scratch)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
	}
	// Functions' users pass through this directory but cannot list it.
	if err := os.Chmod(r.dir, 0o711); err != nil {
		return err
	}
	names, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name.Name(), ".") {
			continue
		}
		versions, err := os.ReadDir(filepath.Join(r.dir, name.Name()))
		if err != nil {
			return err
		}
		for _, version := range versions {
			if _, err := r.record(name.Name(), version.Name()); errors.Is(err, backend.ErrNotFound) {
				slog.Info("removing a version that was never completely pushed", "model", name.Name(), "version", version.Name())
				if err := os.RemoveAll(filepath.Join(r.dir, name.Name(), version.Name())); err != nil {
					return err
				}
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// Push stores the zip as a version of the model and makes that the model's latest. created is false
// when the same content was there already. A bundle that breaks a rule gives a *model.RefusedError,
// a label with other content ErrConflict.
func (r *Registry) Push(ctx context.Context, name string, zip io.Reader) (v Version, created bool, err error) {
	if err := backend.CheckName("model", name); err != nil {
		return Version{}, false, err
	}
	scratch, err := os.MkdirTemp(filepath.Join(r.dir, incoming), "push-")
	if err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()

	file := filepath.Join(scratch, "body.zip")
	if err := r.receive(file, zip); err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	tree := filepath.Join(scratch, name) // a bundle without a manifest takes its directory's name
	if err := os.Mkdir(tree, 0o755); err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	if err := model.Extract(ctx, file, tree, r.limits); err != nil {
		return Version{}, false, err
	}
	bundle, err := model.Open(tree)
	if err != nil {
		return Version{}, false, err
	}
	if err := os.Chmod(tree, 0o755); err != nil { // Mkdir obeyed the umask
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	if err := flush(tree); err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	return r.place(name, bundle)
}

func (r *Registry) receive(file string, zip io.Reader) error {
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(zip, r.maxZip+1))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil && n > r.maxZip {
		err = &model.RefusedError{Rule: fmt.Sprintf("is larger than the %d bytes that a push may send", r.maxZip), Err: model.ErrTooLarge}
	}
	return err
}

// place gives a complete, checked bundle its name.
func (r *Registry) place(name string, bundle *model.Bundle) (Version, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now().UTC()
	stored, err := r.record(name, bundle.Version.ID)
	switch {
	case err == nil:
		if stored.CodeDigest != bundle.Version.CodeDigest || stored.CoefficientsDigest != bundle.Version.CoefficientsDigest {
			return Version{}, false, fmt.Errorf("%w: version %s of %s is stored with other content (%s); change the label of what you changed",
				ErrConflict, bundle.Version.ID, name, differences(stored.Files, bundle.Files))
		}
		stored.PushedAt = now
		return stored, false, r.save(stored)
	case !errors.Is(err, backend.ErrNotFound):
		return Version{}, false, err
	}

	v := Version{Version: bundle.Version, Model: name, Runtime: bundle.Runtime, CreatedAt: now, PushedAt: now, Files: bundle.Files}
	for _, f := range bundle.Files {
		v.Bytes += f.Size
	}
	parent := filepath.Join(r.dir, name)
	if err := os.MkdirAll(parent, 0o711); err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	if err := os.Chmod(parent, 0o711); err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	if err := os.Rename(bundle.Dir, r.path(name, v.ID)); err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	if err := flush(parent); err != nil {
		return Version{}, false, fmt.Errorf("push %s: %w", name, err)
	}
	return v, true, r.save(v)
}

// differences names up to five files that are not the same in both lists.
func differences(old, new []model.File) string {
	type state struct {
		sum        string
		executable bool
	}
	was := make(map[string]state, len(old))
	for _, f := range old {
		was[f.Path] = state{f.SHA256, f.Executable}
	}
	var out []string
	for _, f := range new {
		before, existed := was[f.Path]
		switch {
		case !existed:
			out = append(out, f.Path+" added")
		case before != state{f.SHA256, f.Executable}:
			out = append(out, f.Path+" changed")
		}
		delete(was, f.Path)
	}
	for path := range was {
		out = append(out, path+" removed")
	}
	sort.Strings(out)
	const shown = 5
	if len(out) > shown {
		out = append(out[:shown], fmt.Sprintf("and %d more", len(out)-shown))
	}
	return strings.Join(out, ", ")
}

// List returns every model, sorted by name.
func (r *Registry) List() ([]Model, error) {
	models := []Model{}
	err := r.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(_, raw []byte) error {
			var v Version
			if err := json.Unmarshal(raw, &v); err != nil {
				return err
			}
			// Keys start with the model's name, so a model's versions come one after the other.
			if n := len(models); n == 0 || models[n-1].Name != v.Model {
				models = append(models, Model{Name: v.Model})
			}
			m := &models[len(models)-1]
			m.Versions = append(m.Versions, v)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list models: %w", err)
	}
	for i := range models {
		vs := models[i].Versions
		sort.Slice(vs, func(a, b int) bool { return vs[a].PushedAt.After(vs[b].PushedAt) })
		models[i].Latest = vs[0].ID
	}
	return models, nil
}

// Get returns one model.
func (r *Registry) Get(name string) (Model, error) {
	models, err := r.List()
	if err != nil {
		return Model{}, err
	}
	for _, m := range models {
		if m.Name == name {
			return m, nil
		}
	}
	return Model{}, fmt.Errorf("model %q %w", name, backend.ErrNotFound)
}

// Resolve implements backend.Models.
func (r *Registry) Resolve(image string) (backend.Model, error) {
	name, version, err := ParseImage(image)
	if err != nil {
		return backend.Model{}, err
	}
	if version == Latest {
		m, err := r.Get(name)
		if errors.Is(err, backend.ErrNotFound) {
			return backend.Model{}, notPushed(image, name)
		}
		if err != nil {
			return backend.Model{}, err
		}
		version = m.Latest
	}
	m, err := r.Pin(name, version)
	if errors.Is(err, backend.ErrNotFound) {
		return backend.Model{}, notPushed(image, name)
	}
	return m, err
}

func notPushed(image, name string) error {
	return fmt.Errorf("%w image %q: no such model was pushed; push it first: faas-predict push DIR --name %s", backend.ErrInvalid, image, name)
}

// Pin implements backend.Models.
func (r *Registry) Pin(name, version string) (backend.Model, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.record(name, version); err != nil {
		return backend.Model{}, err
	}
	key := string(key(name, version))
	r.uses[key]++
	release := sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.uses[key]--; r.uses[key] == 0 {
			delete(r.uses, key)
		}
	})
	return backend.Model{Name: name, Version: version, Dir: r.path(name, version), Release: release}, nil
}

// InUse reports whether a function runs the version.
func (r *Registry) InUse(name, version string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.uses[string(key(name, version))] > 0
}

// Delete removes a version, unless a function runs it: then it gives backend.ErrInUse.
func (r *Registry) Delete(name, version string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.record(name, version); err != nil {
		return err
	}
	if n := r.uses[string(key(name, version))]; n > 0 {
		return fmt.Errorf("version %s of %s is %w by %d function(s)", version, name, backend.ErrInUse, n)
	}
	if err := r.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete(key(name, version)) }); err != nil {
		return fmt.Errorf("delete version: %w", err)
	}
	trash, err := os.MkdirTemp(filepath.Join(r.dir, removed), "version-")
	if err != nil {
		return fmt.Errorf("delete version: %w", err)
	}
	// Renamed first: a removal that is cut off halfway must not leave half a version under its name.
	if err := os.Rename(r.path(name, version), filepath.Join(trash, version)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete version: %w", err)
	}
	return os.RemoveAll(trash)
}

func (r *Registry) record(name, version string) (Version, error) {
	var v Version
	err := r.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucket).Get(key(name, version))
		if raw == nil {
			return fmt.Errorf("version %q of model %q %w", version, name, backend.ErrNotFound)
		}
		return json.Unmarshal(raw, &v)
	})
	return v, err
}

func (r *Registry) save(v Version) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("store version: %w", err)
	}
	if err := r.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).Put(key(v.Model, v.ID), raw)
	}); err != nil {
		return fmt.Errorf("store version: %w", err)
	}
	return nil
}

func (r *Registry) path(name, version string) string { return filepath.Join(r.dir, name, version) }

// key joins with a byte that neither part can hold and that sorts before all they can.
func key(name, version string) []byte { return []byte(name + "\x00" + version) }
