package issuer

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/auth/token"
)

// RefreshPrefix begins every refresh token.
const RefreshPrefix = "fpr_"

const (
	familyIDSize      = 24 // the time it began, so that the oldest of a client comes first, and 128 random bits
	refreshSecretSize = 32
	// maxFamilies is how many refresh tokens a client may hold. When it gets one more, the oldest goes.
	maxFamilies = 256
	// maxLive is how many access tokens of one family may be alive: they are revoked with it, so they
	// must be remembered. A client that renews its token when it expires has one or two.
	maxLive = 64
)

// family is the refresh tokens that came one out of the other. Only the last one is good.
//
// There is no grace for one that is used twice at about the same time. Whoever sends it has proved to
// be the client, so it can get a new family with its secret at any moment; that is one request. A grace
// would be a time in which a thief who holds both stays unnoticed. So a client that loses an answer,
// or lets two of its threads renew the same token, starts over with its secret.
type family struct {
	// Hash is the SHA-256 of the last token.
	Hash     []byte      `json:"hash"`
	Scope    []string    `json:"scope"`
	Audience []string    `json:"audience,omitempty"`
	Expires  int64       `json:"exp"`
	Live     []liveToken `json:"live"`
}

// liveToken is an access token that a family gave out.
type liveToken struct {
	ID      string `json:"jti"`
	Expires int64  `json:"exp"`
}

// familyKey is where a client's family is stored.
func familyKey(client string, id []byte) []byte { return append([]byte(client+"\x00"), id...) }

// newRefresh returns a token of a family and what is stored of it.
func newRefresh(id []byte) (refresh string, hash []byte) {
	raw := append(slices.Clone(id), random(refreshSecretSize)...)
	sum := sha256.Sum256(raw)
	return RefreshPrefix + base64.RawURLEncoding.EncodeToString(raw), sum[:]
}

// parseRefresh takes a refresh token apart. ok is false for what can be none.
func parseRefresh(refresh string) (id, hash []byte, ok bool) {
	text, found := strings.CutPrefix(refresh, RefreshPrefix)
	if !found {
		return nil, nil, false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != familyIDSize+refreshSecretSize {
		return nil, nil, false
	}
	sum := sha256.Sum256(raw)
	return raw[:familyIDSize], sum[:], true
}

// newFamily stores a family that begins with an access token, and returns its refresh token.
func (i *Issuer) newFamily(client string, granted may, first *token.Claims) (refresh string, err error) {
	now := i.now()
	id := binary.BigEndian.AppendUint64(nil, uint64(now.UnixNano()))
	id = append(id, random(familyIDSize-len(id))...)
	refresh, hash := newRefresh(id)
	f := family{
		Hash: hash, Scope: granted.scope, Audience: granted.functions.Audience, Expires: now.Add(i.cfg.RefreshTTL).Unix(),
		Live: []liveToken{{first.ID, first.ExpiresAt.Unix()}},
	}
	return refresh, i.batch(func(tx *bbolt.Tx) error {
		keys := familiesOf(tx, client)
		for _, key := range keys[:max(0, len(keys)+1-maxFamilies)] {
			if err := tx.Bucket(familiesBucket).Delete(key); err != nil {
				return err
			}
		}
		return putFamily(tx, familyKey(client, id), f)
	})
}

func putFamily(tx *bbolt.Tx, key []byte, f family) error {
	raw, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return tx.Bucket(familiesBucket).Put(key, raw)
}

// familiesOf returns the keys of a client's families, the oldest first.
func familiesOf(tx *bbolt.Tx, client string) (keys [][]byte) {
	prefix := familyKey(client, nil)
	cursor := tx.Bucket(familiesBucket).Cursor()
	for key, _ := cursor.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = cursor.Next() {
		keys = append(keys, slices.Clone(key))
	}
	return keys
}

func removeFamilies(tx *bbolt.Tx, client string) error {
	for _, key := range familiesOf(tx, client) {
		if err := tx.Bucket(familiesBucket).Delete(key); err != nil {
			return err
		}
	}
	return nil
}

func getFamily(tx *bbolt.Tx, key []byte) (f family, found bool, err error) {
	raw := tx.Bucket(familiesBucket).Get(key)
	if raw == nil {
		return f, false, nil
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, false, fmt.Errorf("record of a refresh token: %w", err)
	}
	return f, true, nil
}

// endFamily removes a family and revokes the access tokens that came of it, which it returns.
func endFamily(tx *bbolt.Tx, client string, key []byte, f family, now time.Time) (map[string]revokedToken, error) {
	ended := map[string]revokedToken{}
	for _, t := range f.Live {
		if over(t.Expires, now) {
			continue
		}
		ended[t.ID] = revokedToken{t.Expires, client}
		if err := putRevoked(tx, t.ID, ended[t.ID]); err != nil {
			return nil, err
		}
	}
	return ended, tx.Bucket(familiesBucket).Delete(key)
}

// outcome of looking at a refresh token.
type outcome int

const (
	unknown outcome = iota
	good
	reused
	tooMany
)

var refusedReuse = refuse(codeInvalidGrant, "the refresh token was used before, so all that came of it is revoked now")

// refresh answers RFC 6749, section 6. The token that is sent is used up.
func (i *Issuer) refresh(q *request, e *entry) (tokenAnswer, *refusal) {
	c, refused := i.authenticate(q)
	if refused != nil {
		return tokenAnswer{}, refused
	}
	sent := q.form.Get("refresh_token")
	if sent == "" {
		return tokenAnswer{}, refuse(codeInvalidRequest, "refresh_token is missing")
	}
	a, refused := i.ask(q)
	if refused != nil {
		return tokenAnswer{}, refused
	}
	id, hash, ok := parseRefresh(sent)
	if !ok {
		return tokenAnswer{}, refuse(codeInvalidGrant, "this is not a refresh token of this issuer")
	}
	out, refused := i.rotate(q, e, c, a, id, hash)
	if refused == refusedReuse && i.revoked.full(c.Name) {
		if err := i.RevokeTokens(c.Name); err != nil {
			return tokenAnswer{}, failed(err)
		}
	}
	return out, refused
}

// rotate gives the next tokens of the family with an id for the token with a hash.
func (i *Issuer) rotate(q *request, e *entry, c *clientRecord, a asked, id, hash []byte) (tokenAnswer, *refusal) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if refused := i.current(c); refused != nil {
		return tokenAnswer{}, refused
	}
	key := familyKey(c.Name, id)
	// What the family allows does not change, so it is looked at before anything is used up: a request
	// that asks for too much costs the client nothing.
	var before family
	if err := i.db.View(func(tx *bbolt.Tx) (err error) { before, _, err = getFamily(tx, key); return err }); err != nil {
		return tokenAnswer{}, failed(err)
	}
	var granted may
	if before.Hash != nil {
		m := may{before.Scope, token.Grants{Permissions: c.Functions, Audience: before.Audience}}
		var refused *refusal
		if granted, refused = m.narrow(a); refused != nil {
			return tokenAnswer{}, refused
		}
	}
	now := i.now()
	next, nextHash := newRefresh(id)
	access := liveToken{ID: randomText(16), Expires: now.Add(i.ttl(c)).Unix() + 1} // see revocations.earliest
	var found outcome
	var ended map[string]revokedToken
	if err := i.batch(func(tx *bbolt.Tx) error {
		f, there, err := getFamily(tx, key)
		switch {
		case err != nil:
			return err
		case !there || f.Expires <= now.Unix():
			found = unknown
			return nil
		case subtle.ConstantTimeCompare(f.Hash, hash) != 1:
			found = reused
			ended, err = endFamily(tx, c.Name, key, f, now)
			return err
		}
		f.Live = slices.DeleteFunc(f.Live, func(t liveToken) bool { return over(t.Expires, now) })
		if len(f.Live) >= maxLive {
			found = tooMany
			return nil
		}
		found = good
		f.Hash, f.Expires, f.Live = nextHash, now.Add(i.cfg.RefreshTTL).Unix(), append(f.Live, access)
		return putFamily(tx, key, f)
	}); err != nil {
		return tokenAnswer{}, failed(err)
	}
	switch found {
	case unknown:
		return tokenAnswer{}, refuse(codeInvalidGrant, "the refresh token has expired, was revoked, or is another client's")
	case tooMany:
		return tokenAnswer{}, &refusal{
			status: http.StatusTooManyRequests, code: codeUnavailable, retry: time.Minute,
			reason: fmt.Sprintf("%d access tokens of this refresh token are alive, which is the most: use them", maxLive),
		}
	case reused:
		i.revokedAll(ended)
		i.audit(entry{event: "refresh token reused", client: c.Name, subject: c.Name, remote: q.address, reason: fmt.Sprintf("all that came of it is revoked: %d access tokens", len(ended))})
		return tokenAnswer{}, refusedReuse
	}
	signed, claims, refused := i.sign(issue{may: granted, subject: c.Name, client: c.Name, ttl: i.ttl(c), id: access.ID})
	if refused != nil {
		return tokenAnswer{}, refused
	}
	out := i.answerTo(signed, claims)
	out.RefreshToken, out.Scope = next, claims.Scope+" "+ScopeOffline
	e.issued(claims)
	return out, nil
}

// revokedAll takes note of tokens that endFamily has written.
func (i *Issuer) revokedAll(ended map[string]revokedToken) {
	for id, t := range ended {
		i.revoked.addWithExchanged(id, t)
	}
}

// findFamily returns the key of the family with an id, and its client: the one that is named, or any
// if client is empty.
func findFamily(tx *bbolt.Tx, client string, id []byte) (key []byte, owner string) {
	if client != "" {
		return familyKey(client, id), client
	}
	cursor := tx.Bucket(familiesBucket).Cursor()
	for key, _ := cursor.First(); key != nil; key, _ = cursor.Next() {
		owner, end, _ := bytes.Cut(key, []byte{0})
		if bytes.Equal(end, id) {
			return slices.Clone(key), string(owner)
		}
	}
	return nil, ""
}

// removeExpiredFamilies removes refresh tokens that have run out, some at a time: nobody waits for it.
func (i *Issuer) removeExpiredFamilies(now time.Time) error {
	const atOnce = 1000
	var keys [][]byte
	if err := i.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(familiesBucket).ForEach(func(key, raw []byte) error {
			var f family
			if err := json.Unmarshal(raw, &f); err != nil {
				return fmt.Errorf("record of a refresh token: %w", err)
			}
			if f.Expires <= now.Unix() {
				keys = append(keys, slices.Clone(key))
			}
			return nil
		})
	}); err != nil {
		return err
	}
	for some := range slices.Chunk(keys, atOnce) {
		if err := i.update(func(tx *bbolt.Tx) error {
			for _, key := range some {
				// It may have been used in its last moment.
				if f, found, err := getFamily(tx, key); err != nil || !found || f.Expires > now.Unix() {
					continue
				}
				if err := tx.Bucket(familiesBucket).Delete(key); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}
