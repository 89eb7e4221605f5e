package registry

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Bundle returns a stored version's bundle, to be packed. It stays until release is called, once. Its files are not read
// here: they are what the record says, or whoever unpacks it finds other digests.
func (r *Registry) Bundle(name, version string) (b *model.Bundle, release func(), err error) {
	pinned, err := r.Pin(name, version)
	if err != nil {
		return nil, nil, err
	}
	stored, err := r.record(name, version)
	if err != nil {
		pinned.Release()
		return nil, nil, err
	}
	return &model.Bundle{Dir: pinned.Dir, Files: stored.Files, Version: stored.Version}, pinned.Release, nil
}

var (
	keyBucket = []byte("bundle-key")
	keyName   = []byte("key")
)

// openKey reads the key of the credentials, which is made the first time. It is kept with the records, since without
// these it opens nothing.
func (r *Registry) openKey() error {
	err := r.db.Update(func(tx *bbolt.Tx) error {
		kept, err := tx.CreateBucketIfNotExists(keyBucket)
		if err != nil {
			return err
		}
		if key := kept.Get(keyName); key != nil {
			r.key = append([]byte{}, key...)
			return nil
		}
		r.key = make([]byte, sha256.Size)
		rand.Read(r.key)
		return kept.Put(keyName, r.key)
	})
	if err != nil {
		return fmt.Errorf("open the key of the bundles' credentials: %w", err)
	}
	return nil
}

// Credential is what lets its bearer read the bundle of one version, now or once it is stored, and nothing else. It is
// the same each time, for as long as the registry lives.
func (r *Registry) Credential(name, version string) string {
	mac := hmac.New(sha256.New, r.key)
	mac.Write([]byte("bundle\x00"))
	mac.Write(key(name, version))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Admits reports whether credential is that of the version. It takes as long whatever credential is.
func (r *Registry) Admits(credential, name, version string) bool {
	return hmac.Equal([]byte(credential), []byte(r.Credential(name, version)))
}
