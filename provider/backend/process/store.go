package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/openfaas/faas-provider/types"
	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// deployed is a version that a function knows, and the deployment that brought it: as that it runs
// whenever it is loaded, so that a rollback leads back to its environment, secrets and limits too.
type deployed struct {
	Model   string                   `json:"model"`
	Version string                   `json:"version"`
	Spec    types.FunctionDeployment `json:"spec"`
}

// record is all that is kept of a function: from it the function is started again. A stored record
// is never changed; clone makes the next one.
type record struct {
	Spec      types.FunctionDeployment `json:"spec"`     // what was deployed last, word for word
	Versions  []deployed               `json:"versions"` // of Split, of Before and of what Rollout leads back to
	Split     traffic.Split            `json:"traffic"`
	Before    []traffic.Split          `json:"before,omitempty"` // what a rollback leads to, the newest first
	Rollout   *traffic.Rollout         `json:"rollout,omitempty"`
	Note      string                   `json:"rollout_note,omitempty"` // how the last rollout ended
	Replicas  uint64                   `json:"replicas"`
	UID       int                      `json:"uid"` // 0 when the provider is not root
	CreatedAt time.Time                `json:"created_at"`

	// Of records from before there were splits.
	Model   string `json:"model,omitempty"`
	Version string `json:"version,omitempty"`
}

// upgrade turns a record from before there were splits into one with a split.
func (r *record) upgrade() {
	if len(r.Versions) == 0 {
		r.Versions = []deployed{{Model: r.Model, Version: r.Version, Spec: r.Spec}}
		r.Split = traffic.All(r.Version)
	}
	r.Model, r.Version = "", ""
	r.Before = slices.DeleteFunc(r.Before, func(s traffic.Split) bool {
		return slices.ContainsFunc(s.Versions(), func(v string) bool { return r.find(v) == nil })
	})
}

func (r *record) clone() *record {
	next := *r
	next.Versions, next.Before = slices.Clone(r.Versions), slices.Clone(r.Before)
	return &next
}

func (r *record) find(version string) *deployed {
	for i := range r.Versions {
		if r.Versions[i].Version == version {
			return &r.Versions[i]
		}
	}
	return nil
}

func (r *record) drop(version string) {
	r.Versions = slices.DeleteFunc(r.Versions, func(d deployed) bool { return d.Version == version })
}

// move makes split the one in force, and remembers the one before.
func (r *record) move(split traffic.Split) {
	if len(r.Split.Targets) > 0 && !split.Equal(r.Split) {
		r.Before = append([]traffic.Split{r.Split}, r.Before...)
		r.Before = r.Before[:min(len(r.Before), splitsKept)]
	}
	r.Split = split
}

// rollback makes the split before the one in force; it reports whether there was one. During a
// rollout that is the split that the rollout began with.
func (r *record) rollback() bool {
	if r.Rollout != nil {
		r.abandon()
		return true
	}
	if len(r.Before) == 0 {
		return false
	}
	r.Split, r.Before = r.Before[0], r.Before[1:]
	return true
}

// abandon takes a rollout back as if it had never begun.
func (r *record) abandon() {
	if r.Rollout == nil {
		return
	}
	r.Split, r.Rollout = r.Rollout.Base, nil
	if len(r.Before) > 0 && r.Before[0].Equal(r.Split) {
		r.Before = r.Before[1:]
	}
}

// needs lists the versions that must be loaded: those of the split, and of the split that a rollout
// may lead back to at any moment.
func (r *record) needs() []string {
	out := r.Split.Versions()
	if r.Rollout != nil {
		for _, version := range r.Rollout.Base.Versions() {
			if !slices.Contains(out, version) {
				out = append(out, version)
			}
		}
	}
	return out
}

// keeps lists the versions that stay loaded if they are: those that are needed, and the last warm ones
// of the splits before, so that a rollback finds them ready.
func (r *record) keeps(warm int) []string {
	out := r.needs()
	for _, before := range r.Before {
		for _, t := range before.Targets {
			if warm > 0 && !slices.Contains(out, t.Version) {
				out = append(out, t.Version)
				warm--
			}
		}
	}
	return out
}

// tidy forgets the versions that no split names any more, and checks that it knows the others.
func (r *record) tidy() error {
	named := r.needs()
	for _, before := range r.Before {
		named = append(named, before.Versions()...)
	}
	r.Versions = slices.DeleteFunc(r.Versions, func(d deployed) bool { return !slices.Contains(named, d.Version) })
	for _, version := range named {
		if r.find(version) == nil {
			return fmt.Errorf("function %s: version %s is in a split and not known", r.ref(), version)
		}
	}
	return nil
}

func (r *record) ref() backend.Ref {
	return backend.Ref{Namespace: r.Spec.Namespace, Name: r.Spec.Service}
}

var (
	functionsBucket  = []byte("functions")
	secretsBucket    = []byte("secrets")
	namespacesBucket = []byte("namespaces")
)

// store keeps functions, secrets and namespaces. Each method is one transaction, on disk when it
// returns.
type store struct{ db *bbolt.DB }

func openStore(db *bbolt.DB) (store, error) {
	err := db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{functionsBucket, secretsBucket, namespacesBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return store{}, fmt.Errorf("open state: %w", err)
	}
	return store{db}, nil
}

// storeKey joins with a byte that no name can hold.
func storeKey(namespace, name string) []byte { return []byte(namespace + "/" + name) }

func (s store) put(bucket, key []byte, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("store state: %w", err)
	}
	if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put(key, raw) }); err != nil {
		return fmt.Errorf("store state: %w", err)
	}
	return nil
}

func (s store) delete(bucket, key []byte) error {
	if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete(key) }); err != nil {
		return fmt.Errorf("store state: %w", err)
	}
	return nil
}

var errNoRecord = errors.New("no such record")

func (s store) get(bucket, key []byte, value any) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucket).Get(key)
		if raw == nil {
			return errNoRecord
		}
		return json.Unmarshal(raw, value)
	})
}

func (s store) each(bucket []byte, visit func(raw []byte) error) error {
	err := s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(_, raw []byte) error { return visit(raw) })
	})
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	return nil
}

func (s store) functions() ([]*record, error) {
	var out []*record
	err := s.each(functionsBucket, func(raw []byte) error {
		var r record
		out = append(out, &r)
		err := json.Unmarshal(raw, &r)
		r.upgrade()
		return err
	})
	return out, err
}

func (s store) putFunction(r *record) error {
	return s.put(functionsBucket, storeKey(r.Spec.Namespace, r.Spec.Service), r)
}

func (s store) deleteFunction(ref backend.Ref) error {
	return s.delete(functionsBucket, storeKey(ref.Namespace, ref.Name))
}

// deleteNamespace removes a namespace and its secrets in one step.
func (s store) deleteNamespace(name string) error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		prefix := storeKey(name, "")
		secrets := tx.Bucket(secretsBucket).Cursor()
		for k, _ := secrets.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = secrets.Next() {
			if err := secrets.Delete(); err != nil {
				return err
			}
		}
		return tx.Bucket(namespacesBucket).Delete([]byte(name))
	})
	if err != nil {
		return fmt.Errorf("store state: %w", err)
	}
	return nil
}
