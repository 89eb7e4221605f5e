package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

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

func (s store) functions() ([]*deployment.Record, error) {
	var out []*deployment.Record
	err := s.each(functionsBucket, func(raw []byte) error {
		var r deployment.Record
		out = append(out, &r)
		err := json.Unmarshal(raw, &r)
		r.Upgrade()
		return err
	})
	return out, err
}

func (s store) putFunction(r *deployment.Record) error {
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
