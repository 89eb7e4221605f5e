package issuer

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/auth/token"
)

const (
	// jwksMaxAge is how long others may keep the published keys without asking.
	jwksMaxAge = 5 * time.Minute
	// keyLead is how long a key is published before it signs: twice jwksMaxAge, so that nobody meets a
	// token whose key he has had no reason to look for.
	keyLead = 2 * jwksMaxAge
	// keySlack is how much longer than the last token signed by it a key is published: more than
	// clocks differ.
	keySlack = time.Minute
)

// ErrNoKey is returned for a key id that no key has.
var ErrNoKey = errors.New("there is no such signing key")

// signingKey is a key and when it signs: from SignsFrom until the SignsFrom of the one after it. It
// never changes; it is replaced.
type signingKey struct {
	*token.Key
	keyRecord
}

type keyRecord struct {
	JWK     json.RawMessage `json:"jwk"`
	Created time.Time       `json:"created"`
	// SignsFrom is when the key takes over.
	SignsFrom time.Time `json:"signs_from"`
	// LongestTTL is that of the tokens it has signed: the settings may since have become shorter.
	LongestTTL time.Duration `json:"longest_ttl"`
}

// KeyInfo is what is to be known of a signing key.
type KeyInfo struct {
	ID        string          `json:"kid"`
	Algorithm token.Algorithm `json:"alg"`
	// State is next (published, and will sign), signing, or old (published until its tokens expire).
	State   string    `json:"state"`
	Created time.Time `json:"created_at"`
	// SignsFrom is when it began or begins to sign.
	SignsFrom time.Time `json:"signs_from"`
	// PublishedUntil is set for an old key.
	PublishedUntil time.Time `json:"published_until,omitzero"`
}

// addKey takes a stored key into memory. The caller has mu, or is Open.
func (i *Issuer) addKey(record *keyRecord) error {
	key, err := token.ParseKey(record.JWK)
	if err != nil {
		return err
	}
	i.keys = slices.DeleteFunc(slices.Clone(i.keys), func(k *signingKey) bool { return k.ID() == key.ID() })
	i.keys = append(i.keys, &signingKey{key, *record})
	slices.SortStableFunc(i.keys, func(a, b *signingKey) int { return a.SignsFrom.Compare(b.SignsFrom) })
	return nil
}

// signer is the key that signs at a time; nil when there is none. The caller has mu.
func (i *Issuer) signer(now time.Time) *signingKey {
	for _, k := range slices.Backward(i.keys) {
		if !k.SignsFrom.After(now) {
			return k
		}
	}
	return nil
}

// retired is when the last token of i.keys[n] will have expired; zero while that cannot be said.
func (i *Issuer) retired(n int) time.Time {
	if n+1 == len(i.keys) {
		return time.Time{}
	}
	return i.keys[n+1].SignsFrom.Add(i.keys[n].LongestTTL + keySlack)
}

// published are the keys that tokens may be signed with, those of the next days included. The caller
// has mu, or is Open.
func (i *Issuer) published() []*token.Key {
	now := i.now()
	keys := make([]*token.Key, 0, len(i.keys))
	for n, k := range i.keys {
		if end := i.retired(n); end.IsZero() || now.Before(end) {
			keys = append(keys, k.Key)
		}
	}
	return keys
}

// lead is how long a new key is published before it signs.
func (i *Issuer) lead() time.Duration { return min(keyLead, i.cfg.KeyRotation/2) }

// maintainKeys makes the there was none, the next one in time, and removes those that are retired.
func (i *Issuer) maintainKeys() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	current := i.signer(now)
	switch {
	case current == nil:
		if err := i.newKey("there was none", now, now); err != nil {
			return err
		}
	case i.keys[len(i.keys)-1] != current: // there is a next one
	case current.Algorithm() != i.cfg.Algorithm:
		if err := i.newKey("key of another algorithm", now, now.Add(i.lead())); err != nil {
			return err
		}
	case !now.Before(current.SignsFrom.Add(i.cfg.KeyRotation - i.lead())):
		if err := i.newKey("rotation", now, now.Add(i.lead())); err != nil {
			return err
		}
	}
	if longest := i.longestTTL(); len(i.below(longest)) > 0 {
		if err := i.update(func(tx *bbolt.Tx) error { return i.raiseTTL(tx, longest) }); err != nil {
			return err
		}
	}
	for n := 0; n < len(i.keys); {
		if end := i.retired(n); end.IsZero() || now.Before(end) {
			n++
			continue
		}
		if err := i.removeKey(i.keys[n]); err != nil {
			return err
		}
	}
	return i.publish()
}

// newKey makes a key that signs from a time. The caller has mu.
func (i *Issuer) newKey(reason string, now, from time.Time) error {
	key, err := token.NewKey(i.cfg.Algorithm)
	if err != nil {
		return err
	}
	record := &keyRecord{Created: now.UTC(), SignsFrom: from.UTC(), LongestTTL: i.longestTTL()}
	if record.JWK, err = key.MarshalJSON(); err != nil {
		return fmt.Errorf("write a signing key: %w", err)
	}
	if err := i.update(func(tx *bbolt.Tx) error { return put(tx, keysBucket, key.ID(), record) }); err != nil {
		return err
	}
	if err := i.addKey(record); err != nil {
		return err
	}
	i.audit(entry{event: "key added", key: key.ID(), reason: reason})
	return nil
}

// removeKey takes a key out of memory and database. The caller has mu.
func (i *Issuer) removeKey(k *signingKey) error {
	if err := i.update(func(tx *bbolt.Tx) error { return tx.Bucket(keysBucket).Delete([]byte(k.ID())) }); err != nil {
		return err
	}
	i.keys = slices.DeleteFunc(slices.Clone(i.keys), func(other *signingKey) bool { return other == k })
	i.audit(entry{event: "key removed", key: k.ID(), reason: "every token signed with it has expired"})
	return nil
}

// below returns the places of those keys that sign, or will, and have signed nothing that holds for
// ttl. The caller has mu.
func (i *Issuer) below(ttl time.Duration) (places []int) {
	current := i.signer(i.now())
	for n, k := range i.keys {
		if k.LongestTTL < ttl && (current == nil || !k.SignsFrom.Before(current.SignsFrom)) {
			places = append(places, n)
		}
	}
	return places
}

// raiseTTL notes that the keys which sign, or will, do so for tokens that hold for ttl. The note is
// made before there is such a token. Should the transaction fail, the keys are published longer than
// they need be. The caller has mu.
func (i *Issuer) raiseTTL(tx *bbolt.Tx, ttl time.Duration) error {
	for _, n := range i.below(ttl) {
		record := i.keys[n].keyRecord
		record.LongestTTL = ttl
		if err := put(tx, keysBucket, i.keys[n].ID(), record); err != nil {
			return err
		}
		i.keys[n] = &signingKey{i.keys[n].Key, record}
	}
	return nil
}

// publish makes the verifiers of this process use the keys. The caller has mu.
func (i *Issuer) publish() error {
	if i.local == nil {
		return nil
	}
	return i.local.Replace(i.published()...)
}

// RotateKeys makes a new key, which is published at once and signs after 10 minutes, when everyone who
// keeps the published keys has it. When a next key is there already, it returns that one, and false.
func (i *Issuer) RotateKeys() (next KeyInfo, created bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	if current := i.signer(now); current == nil || i.keys[len(i.keys)-1] == current {
		from := now
		if current != nil {
			from = now.Add(i.lead())
		}
		if err := i.newKey("asked for", now, from); err != nil {
			return KeyInfo{}, false, err
		}
		if err := i.publish(); err != nil {
			return KeyInfo{}, false, err
		}
		created = true
	}
	return i.keyInfo(len(i.keys) - 1), created, nil
}

// RevokeKey is for a key that somebody else may have: it is neither published nor used from now on,
// and every token signed with it is worth nothing here at once, and elsewhere as soon as the published
// keys are fetched again. If it was the one that signs, the next one does at once, or a new one.
func (i *Issuer) RevokeKey(id string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := slices.IndexFunc(i.keys, func(k *signingKey) bool { return k.ID() == id })
	if n < 0 {
		return fmt.Errorf("key %q: %w", printable(id), ErrNoKey)
	}
	now := i.now()
	var heir *keyRecord
	if i.keys[n] == i.signer(now) {
		if n+1 < len(i.keys) {
			next := i.keys[n+1].keyRecord
			heir = &next
		} else {
			key, err := token.NewKey(i.cfg.Algorithm)
			if err != nil {
				return err
			}
			heir = &keyRecord{Created: now.UTC(), LongestTTL: i.longestTTL()}
			if heir.JWK, err = key.MarshalJSON(); err != nil {
				return fmt.Errorf("write a signing key: %w", err)
			}
		}
		heir.SignsFrom = now.UTC()
	}
	revoked := revokedKey{Expires: now.Add(max(i.longestTTL(), i.longestSigned())).Unix() + 1}
	if err := i.update(func(tx *bbolt.Tx) error {
		if heir != nil {
			key, err := token.ParseKey(heir.JWK)
			if err != nil {
				return err
			}
			if err := put(tx, keysBucket, key.ID(), heir); err != nil {
				return err
			}
		}
		if err := put(tx, revokedKeysBucket, id, revoked); err != nil {
			return err
		}
		return tx.Bucket(keysBucket).Delete([]byte(id))
	}); err != nil {
		return err
	}
	i.revoked.addKey(id, revoked)
	i.keys = slices.Delete(slices.Clone(i.keys), n, n+1)
	if heir != nil {
		if err := i.addKey(heir); err != nil {
			return err
		}
	}
	i.audit(entry{event: "key revoked", key: id})
	return i.publish()
}

// SigningKeys returns the published keys, the oldest first.
func (i *Issuer) SigningKeys() []KeyInfo {
	i.mu.RLock()
	defer i.mu.RUnlock()
	all := make([]KeyInfo, 0, len(i.keys))
	for n := range i.keys {
		all = append(all, i.keyInfo(n))
	}
	return all
}

func (i *Issuer) keyInfo(n int) KeyInfo {
	now, k := i.now(), i.keys[n]
	info := KeyInfo{ID: k.ID(), Algorithm: k.Algorithm(), State: "old", Created: k.Created, SignsFrom: k.SignsFrom}
	switch current := i.signer(now); {
	case k == current:
		info.State = "signing"
	case current == nil || k.SignsFrom.After(now):
		info.State = "next"
	default:
		info.PublishedUntil = i.retired(n)
	}
	return info
}
