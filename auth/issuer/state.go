package issuer

import (
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// What auth.db holds.
var (
	clientsBucket        = []byte("clients")         // name → clientRecord
	keysBucket           = []byte("keys")            // kid → keyRecord, private half included
	familiesBucket       = []byte("families")        // client, 0, id → family
	revokedBucket        = []byte("revoked")         // jti → revokedToken
	revokedClientsBucket = []byte("revoked_clients") // client id → revokedClient
	revokedKeysBucket    = []byte("revoked_keys")    // kid → revokedKey
)

// batchDelay is how long a refresh waits for others to share its write to disk.
const batchDelay = time.Millisecond

// load fills the memory from the database. Refresh tokens stay where they are: there may be many, and
// each is used once in a while.
func (i *Issuer) load() error {
	if err := i.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{clientsBucket, keysBucket, familiesBucket, revokedBucket, revokedClientsBucket, revokedKeysBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return i.db.View(func(tx *bbolt.Tx) error {
		if err := each(tx, clientsBucket, func(name string, c *clientRecord) error {
			i.clients[name] = c
			return nil
		}); err != nil {
			return err
		}
		if err := each(tx, keysBucket, func(_ string, k *keyRecord) error {
			return i.addKey(k)
		}); err != nil {
			return err
		}
		// Clients first: to take back all of a client's tokens drops its single ones, and those that are stored
		// were revoked after that.
		if err := each(tx, revokedClientsBucket, func(id string, c *revokedClient) error {
			i.revoked.addClient(id, *c)
			return nil
		}); err != nil {
			return err
		}
		if err := each(tx, revokedBucket, func(jti string, t *revokedToken) error {
			i.revoked.add(jti, *t)
			return nil
		}); err != nil {
			return err
		}
		return each(tx, revokedKeysBucket, func(id string, k *revokedKey) error {
			i.revoked.addKey(id, *k)
			return nil
		})
	})
}

func each[T any](tx *bbolt.Tx, bucket []byte, f func(key string, value *T) error) error {
	return tx.Bucket(bucket).ForEach(func(key, raw []byte) error {
		value := new(T)
		if err := json.Unmarshal(raw, value); err != nil {
			return fmt.Errorf("record %q of %s: %w", key, bucket, err)
		}
		return f(string(key), value)
	})
}

func put(tx *bbolt.Tx, bucket []byte, key string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return tx.Bucket(bucket).Put([]byte(key), raw)
}

// deleteWhere deletes the records for which gone is true.
func deleteWhere[T any](tx *bbolt.Tx, bucket []byte, gone func(*T) bool) error {
	var keys []string
	if err := each(tx, bucket, func(key string, value *T) error {
		if gone(value) {
			keys = append(keys, key)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, key := range keys {
		if err := tx.Bucket(bucket).Delete([]byte(key)); err != nil {
			return err
		}
	}
	return nil
}

// update runs a transaction. When it returns nil, the change outlives the process.
func (i *Issuer) update(change func(tx *bbolt.Tx) error) error {
	return i.commit(i.db.Update, change)
}

// batch is update for what many requests do at once: they share a write to disk. change may be called
// more than once, and must set all that it sets outside each time.
func (i *Issuer) batch(change func(tx *bbolt.Tx) error) error {
	return i.commit(i.db.Batch, change)
}

func (i *Issuer) commit(run func(func(*bbolt.Tx) error) error, change func(tx *bbolt.Tx) error) error {
	step("begun")
	err := run(func(tx *bbolt.Tx) error {
		err := change(tx)
		step("changed")
		return err
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", File, err)
	}
	step("committed")
	return nil
}

// step is called around each transaction, with what was just done. Tests kill the process there;
// otherwise it does nothing.
var step = func(string) {}
