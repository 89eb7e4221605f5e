// Package registry keeps pushed bundles: every version of every model, immutable once it is stored.
//
// Each content is kept once, as a blob, whichever and however many versions have it. A version's
// files are a directory of hard links to blobs that is renamed into place when it is complete; its
// record in the database is written after that, and only what has a record exists. So a push that
// was cut off at any point leaves nothing that can be seen, and Open removes what it left on disk.
//
// Nothing here runs a model, speaks HTTP or knows a function.
package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	Model   string `json:"name"`
	Runtime string `json:"runtime"`
	Image   string `json:"image,omitempty"` // the container image that it came from last, or "" if it was pushed
	Bytes   int64  `json:"bytes"`           // of all files, unpacked
	// The bytes of each half, and how many of them no version had before this one.
	CodeBytes            int64 `json:"code_bytes"`
	CodeNewBytes         int64 `json:"code_new_bytes"`
	CoefficientsBytes    int64 `json:"coefficients_bytes"`
	CoefficientsNewBytes int64 `json:"coefficients_new_bytes"`

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
	blobs  *blobs
	key    []byte // of Credential

	mu   sync.Mutex     // serialises what changes records, directories in place and uses
	uses map[string]int // functions that run a version, by key

	decoded sync.Map // key to decodedRecord
}

var bucket = []byte("models")

// The directories below Registry.dir start with a dot where a model's name cannot.
const (
	incoming = ".incoming"
	removed  = ".removed"
	stored   = ".blobs"
)

// Open returns the registry whose files are below dir and whose records are in db. It removes what
// an interrupted push or delete left behind, and blobs that no version uses. maxZip is the largest
// zip that Push takes and the largest file that StoreBlob takes, in bytes.
func Open(db *bbolt.DB, dir string, limits model.Limits, maxZip int64) (*Registry, error) {
	r := &Registry{db: db, dir: dir, limits: limits, maxZip: maxZip, uses: map[string]int{}}
	if err := db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	}); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	if err := r.openKey(); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	if err := r.sweep(); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	var err error
	if r.blobs, err = openBlobs(filepath.Join(dir, stored), filepath.Join(dir, incoming)); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	if err := r.reference(); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	r.collect()
	return r, nil
}

// collect removes blobs that no version uses. What was uploaded and not yet pushed has some time.
func (r *Registry) collect() { r.blobs.collect(time.Now()) }

// reference tells the blobs which records use them. A version that was stored before there were
// blobs gives its files to be blobs, so that a push does not send again what the provider has.
func (r *Registry) reference() error {
	return r.each(nil, func(v Version) error {
		for _, f := range v.Files {
			if r.blobs.has(blobOf(f)) {
				continue
			}
			if err := r.blobs.adopt(filepath.Join(r.path(v.Model, v.ID), filepath.FromSlash(f.Path)), blobOf(f)); err != nil {
				// The version goes on as it is. Its file is only not shared.
				slog.Warn("a file of a stored version cannot be shared with other versions", "model", v.Model, "version", v.ID, "file", f.Path, "error", err)
			}
			step("adopted")
		}
		r.blobs.use(v.Files)
		return nil
	})
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

// List returns every model, sorted by name.
func (r *Registry) List() ([]Model, error) {
	models := []Model{}
	err := r.each(nil, func(v Version) error {
		// Keys start with the model's name, so a model's versions come one after the other.
		if n := len(models); n == 0 || models[n-1].Name != v.Model {
			models = append(models, Model{Name: v.Model})
		}
		m := &models[len(models)-1]
		m.Versions = append(m.Versions, v)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list models: %w", err)
	}
	for i := range models {
		models[i].sort()
	}
	return models, nil
}

// Get returns one model. It reads the records of that model only.
func (r *Registry) Get(name string) (Model, error) {
	m := Model{Name: name}
	if err := r.each(key(name, ""), func(v Version) error {
		m.Versions = append(m.Versions, v)
		return nil
	}); err != nil {
		return Model{}, fmt.Errorf("list versions: %w", err)
	}
	if len(m.Versions) == 0 {
		return Model{}, fmt.Errorf("model %q %w", name, backend.ErrNotFound)
	}
	m.sort()
	return m, nil
}

func (m *Model) sort() {
	sort.Slice(m.Versions, func(a, b int) bool { return m.Versions[a].PushedAt.After(m.Versions[b].PushedAt) })
	m.Latest = m.Versions[0].ID
}

// Resolve implements backend.Models.
func (r *Registry) Resolve(_ context.Context, image string) (backend.Model, error) {
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
	stored, err := r.record(name, version)
	if err != nil {
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
	return backend.Model{Name: name, Version: version, Runtime: stored.Runtime, Dir: r.path(name, version), Release: release}, nil
}

// Delete removes a version, unless a function runs it: then it gives backend.ErrInUse.
func (r *Registry) Delete(name, version string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, err := r.record(name, version)
	if err != nil {
		return err
	}
	if n := r.uses[string(key(name, version))]; n > 0 {
		return fmt.Errorf("version %s of %s is %w by %d function(s)", version, name, backend.ErrInUse, n)
	}
	step("before the record is removed")
	if err := r.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete(key(name, version)) }); err != nil {
		return fmt.Errorf("delete version: %w", err)
	}
	r.decoded.Delete(string(key(name, version)))
	step("record removed")
	r.blobs.drop(v.Files)
	defer r.collect()
	if err := r.clear(name, version); err != nil {
		return fmt.Errorf("delete version: %w", err)
	}
	return nil
}

// clear removes the files of a version that has no record.
func (r *Registry) clear(name, version string) error {
	trash, err := os.MkdirTemp(filepath.Join(r.dir, removed), "version-")
	if err != nil {
		return err
	}
	// Renamed first: a removal that is cut off halfway must not leave half a version under its name.
	if err := os.Rename(r.path(name, version), filepath.Join(trash, version)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	step("moved out of the way")
	if err := os.RemoveAll(trash); err != nil {
		return err
	}
	step("files removed")
	return nil
}

func (r *Registry) record(name, version string) (v Version, err error) {
	err = r.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucket).Get(key(name, version))
		if raw == nil {
			return fmt.Errorf("version %q of model %q %w", version, name, backend.ErrNotFound)
		}
		v, err = r.decode(key(name, version), raw)
		return err
	})
	return v, err
}

// each gives the records whose keys start with prefix to visit, in the order of their keys.
func (r *Registry) each(prefix []byte, visit func(Version) error) error {
	return r.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucket).Cursor()
		for k, raw := c.Seek(prefix); bytes.HasPrefix(k, prefix) && k != nil; k, raw = c.Next() {
			v, err := r.decode(k, raw)
			if err != nil {
				return err
			}
			if err := visit(v); err != nil {
				return err
			}
		}
		return nil
	})
}

// decodedRecord is a record as it was read last; raw tells whether it is still that one.
type decodedRecord struct {
	raw     []byte
	version Version
}

// decode reads a record. It remembers what it read, because listing a thousand versions would spend
// nearly all its time reading the same JSON again.
func (r *Registry) decode(key, raw []byte) (Version, error) {
	if known, ok := r.decoded.Load(string(key)); ok && bytes.Equal(known.(decodedRecord).raw, raw) {
		return known.(decodedRecord).version, nil
	}
	var v Version
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fmt.Errorf("read record: %w", err)
	}
	if v.CodeBytes+v.CoefficientsBytes == 0 {
		// Written before the halves were counted, when every version was stored whole.
		v.count()
		v.CodeNewBytes, v.CoefficientsNewBytes = v.CodeBytes, v.CoefficientsBytes
	}
	r.decoded.Store(string(key), decodedRecord{bytes.Clone(raw), v})
	return v, nil
}

// count fills the sizes that follow from Files.
func (v *Version) count() {
	v.Bytes, v.CodeBytes, v.CoefficientsBytes = 0, 0, 0
	for _, f := range v.Files {
		v.Bytes += f.Size
		if f.Coefficient {
			v.CoefficientsBytes += f.Size
		} else {
			v.CodeBytes += f.Size
		}
	}
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
