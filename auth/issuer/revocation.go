package issuer

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/auth/token"
)

// How many live tokens may be revoked one by one, each with an entry for what was made of it: of one
// client, and of all. Beyond that, revoking one takes back all of its client's, which is one entry. No
// client can so make the list longer than verifiers read (token.RevocationList).
const (
	maxRevokedOfClient = 2 * 1000
	maxRevoked         = 2 * 25_000
)

// revokedToken is an entry of the list that single tokens are on.
type revokedToken struct {
	Expires  int64  `json:"exp"`
	ClientID string `json:"client_id,omitempty"`
}

// revokedClient says that a client has nothing that was issued up to and including the second Before.
type revokedClient struct {
	Before int64 `json:"before"`
	// Expires is when all of that has expired.
	Expires int64 `json:"exp"`
}

// revokedKey is a signing key that was revoked. Verifiers elsewhere fetch the keys less often than the
// list, so the list says it too.
type revokedKey struct {
	// Expires is when all that it signed has expired.
	Expires int64 `json:"exp"`
}

// exchangedMark begins the id of every token that was made by an exchange of one of ours.
const exchangedMark = "x."

// exchangedID is the id of tokens made by exchanging the token of that id. It follows from the id, so
// that revoking a token takes back what was made of it without anybody having to write down what was:
// an exchange costs no write to disk. The price is that all that were made of one token share an id,
// and revoking one of them revokes all.
func exchangedID(id string) string {
	if strings.HasPrefix(id, exchangedMark) {
		return id
	}
	sum := sha256.Sum256([]byte(exchangedMark + id))
	return exchangedMark + base64.RawURLEncoding.EncodeToString(sum[:16])
}

// putRevoked revokes a token and what was made of it by exchange.
func putRevoked(tx *bbolt.Tx, id string, t revokedToken) error {
	if err := put(tx, revokedBucket, id, t); err != nil {
		return err
	}
	return put(tx, revokedBucket, exchangedID(id), t)
}

// revocations are what of the database counts now, and the list of it as it is served.
type revocations struct {
	mu      sync.RWMutex
	tokens  map[string]revokedToken
	clients map[string]revokedClient
	keys    map[string]revokedKey
	count   map[string]int // of tokens by client

	body []byte // nil when it must be made again
	etag string
	good int64 // the second until which body can be served
}

var _ token.Revocations = (*revocations)(nil)

func newRevocations() *revocations {
	return &revocations{tokens: map[string]revokedToken{}, clients: map[string]revokedClient{}, keys: map[string]revokedKey{}, count: map[string]int{}}
}

// Revoked implements token.Revocations.
func (r *revocations) Revoked(id, clientID string, issued time.Time) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if _, revoked := r.tokens[id]; revoked && id != "" {
		return true
	}
	c, known := r.clients[clientID]
	return known && clientID != "" && issued.Unix() <= c.Before
}

// earliest is the earliest time of issue that a client's new token may have, which is not before now.
// It is up to a second later when everything until now was taken back within this very second: times
// in tokens are whole seconds.
func (r *revocations) earliest(clientID string, now time.Time) time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c, known := r.clients[clientID]; known && c.Before >= now.Unix() {
		return time.Unix(c.Before+1, 0)
	}
	return now
}

// add takes note of a token that putRevoked has written.
func (r *revocations) add(id string, t revokedToken) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.insert(id, t)
	r.body = nil
}

func (r *revocations) insert(id string, t revokedToken) {
	if _, there := r.tokens[id]; !there {
		r.count[t.ClientID]++
	}
	r.tokens[id] = t
}

// addWithExchanged is add for the token and what was made of it.
func (r *revocations) addWithExchanged(id string, t revokedToken) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.insert(id, t)
	r.insert(exchangedID(id), t)
	r.body = nil
}

// addClient takes note of a client all of whose tokens are taken back. Single ones need no entry then.
func (r *revocations) addClient(id string, c revokedClient) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, there := r.clients[id]; there {
		c = revokedClient{max(c.Before, old.Before), max(c.Expires, old.Expires)}
	}
	r.clients[id] = c
	if r.count[id] > 0 {
		r.drop(func(t revokedToken) bool { return t.ClientID == id })
	}
	r.body = nil
}

// addKey takes note of a key that was revoked.
func (r *revocations) addKey(id string, k revokedKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys[id] = k
	r.body = nil
}

// full reports whether no more tokens of a client can be revoked one by one.
func (r *revocations) full(clientID string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.count[clientID] >= maxRevokedOfClient || len(r.tokens) >= maxRevoked
}

// removeExpired forgets what no longer matters, and reports whether there was any.
func (r *revocations) removeExpired(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := len(r.tokens) + len(r.clients) + len(r.keys)
	r.drop(func(t revokedToken) bool { return over(t.Expires, now) })
	maps.DeleteFunc(r.clients, func(_ string, c revokedClient) bool { return over(c.Expires, now) })
	maps.DeleteFunc(r.keys, func(_ string, k revokedKey) bool { return over(k.Expires, now) })
	r.body = nil
	return len(r.tokens)+len(r.clients)+len(r.keys) != before
}

// drop forgets the tokens for which gone is true. The caller has mu.
func (r *revocations) drop(gone func(revokedToken) bool) {
	for id, t := range r.tokens {
		if !gone(t) {
			continue
		}
		delete(r.tokens, id)
		if r.count[t.ClientID]--; r.count[t.ClientID] == 0 {
			delete(r.count, t.ClientID)
		}
	}
}

// over reports whether nobody accepts a token of that expiry any more, whose clock may differ.
func over(expires int64, now time.Time) bool {
	return now.Unix() > expires+int64(keySlack/time.Second)
}

// list returns the list for verifiers, and its entity tag.
func (r *revocations) list(now time.Time) (body []byte, etag string) {
	r.mu.RLock()
	body, etag, good := r.body, r.etag, r.good
	r.mu.RUnlock()
	if body != nil && now.Unix() <= good {
		return body, etag
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := token.RevocationList{Revoked: []token.RevokedToken{}, Clients: []token.RevokedClient{}}
	r.good = now.Add(time.Hour).Unix()
	for id, t := range r.tokens {
		if !over(t.Expires, now) {
			out.Revoked = append(out.Revoked, token.RevokedToken{ID: id, Expires: t.Expires})
			r.good = min(r.good, t.Expires+int64(keySlack/time.Second))
		}
	}
	slices.SortFunc(out.Revoked, func(a, b token.RevokedToken) int { return cmp.Compare(a.ID, b.ID) })
	for _, id := range slices.Sorted(maps.Keys(r.clients)) {
		if c := r.clients[id]; !over(c.Expires, now) {
			out.Clients = append(out.Clients, token.RevokedClient{ClientID: id, Before: c.Before})
			r.good = min(r.good, c.Expires+int64(keySlack/time.Second))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.keys)) {
		if k := r.keys[id]; !over(k.Expires, now) {
			out.Keys = append(out.Keys, id)
			r.good = min(r.good, k.Expires+int64(keySlack/time.Second))
		}
	}
	r.body, _ = json.Marshal(out) // strings and numbers
	sum := sha256.Sum256(r.body)
	r.etag = `"` + hex.EncodeToString(sum[:16]) + `"`
	return r.body, r.etag
}

// sizes returns how many tokens and clients are listed.
func (r *revocations) sizes() (tokens, clients int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.tokens), len(r.clients)
}

// allUntilNow is the revocation of all that a client has been given. The caller has mu.
func (i *Issuer) allUntilNow(clientID string) revokedClient {
	last := i.revoked.earliest(clientID, i.now()).Unix()
	longest := max(i.longestTTL(), i.longestSigned())
	return revokedClient{Before: last, Expires: last + int64(longest/time.Second) + 1}
}

// longestSigned is the lifetime of the longest token that may still hold. The caller has mu.
func (i *Issuer) longestSigned() (longest time.Duration) {
	for _, k := range i.keys {
		longest = max(longest, k.LongestTTL)
	}
	return longest
}

// revokeToken takes back one access token and what was made of it.
func (i *Issuer) revokeToken(c *token.Claims) error {
	t := revokedToken{c.ExpiresAt.Unix(), c.ClientID}
	if i.revoked.full(c.ClientID) {
		return i.RevokeTokens(c.ClientID)
	}
	if err := i.batch(func(tx *bbolt.Tx) error { return putRevoked(tx, c.ID, t) }); err != nil {
		return err
	}
	i.revoked.addWithExchanged(c.ID, t)
	return nil
}
