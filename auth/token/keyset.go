package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// KeySource has the keys of one issuer. Its methods are safe for concurrent use.
type KeySource interface {
	// Keys returns the keys as known now, and never blocks. While none are known it returns an error
	// that says why.
	Keys() (*KeySet, error)
	// Refresh is asked for newer keys than seen, because a token names one that seen lacks. It blocks
	// until it has asked the issuer or ctx ends. It may return seen, and MUST do so without asking
	// the issuer when it has asked recently: whoever sends tokens can make this be called at any rate.
	Refresh(ctx context.Context, seen *KeySet) (*KeySet, error)
}

// KeySet is the public keys of an issuer at one time. It does not change.
type KeySet struct {
	issuer string
	keys   map[string]publicKey
}

// publicKey carries its algorithm, so that a token's header cannot choose how it is checked.
type publicKey struct {
	algorithm Algorithm
	method    jwt.SigningMethod
	key       interface {
		Equal(crypto.PublicKey) bool
	}
}

func (k publicKey) equal(other publicKey) bool {
	return k.algorithm == other.algorithm && k.key.Equal(other.key)
}

// RSA keys outside these sizes are not used: shorter ones are forgeable (RFC 7518, section 3.3), and
// checking a signature of a longer one costs as much as its author likes.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// NewKeySet returns the keys of set that a token can be checked with, and leaves out all others:
// symmetric and private ones, those without a kid or for another use or algorithm, and every key
// whose kid is another's too. It is an error when none is left.
func NewKeySet(issuer string, set jose.JSONWebKeySet) (*KeySet, error) {
	if issuer == "" {
		return nil, errors.New("the issuer must have a name")
	}
	s := &KeySet{issuer: issuer, keys: make(map[string]publicKey, len(set.Keys))}
	twice := map[string]bool{}
	for _, jwk := range set.Keys {
		key, ok := usable(jwk)
		if !ok {
			continue
		}
		if _, taken := s.keys[jwk.KeyID]; taken {
			twice[jwk.KeyID] = true
		}
		s.keys[jwk.KeyID] = key
	}
	maps.DeleteFunc(s.keys, func(id string, _ publicKey) bool { return twice[id] })
	if len(s.keys) == 0 {
		return nil, fmt.Errorf("the key set of %s has no key that tokens can be checked with (a public one with a kid of its own, for one of %v)", issuer, Algorithms)
	}
	return s, nil
}

// ParseKeySet is NewKeySet for a JWK set (RFC 7517) as it is served. A key that cannot be read is left
// out like one that cannot be used, as section 5 asks: an issuer may publish kinds yet to be invented.
func ParseKeySet(issuer string, raw []byte) (*KeySet, error) {
	var served struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &served); err != nil {
		return nil, fmt.Errorf("the key set of %s is not a JWK set: %w", issuer, err)
	}
	var set jose.JSONWebKeySet
	for _, one := range served.Keys {
		var jwk jose.JSONWebKey
		if jwk.UnmarshalJSON(one) == nil {
			set.Keys = append(set.Keys, jwk)
		}
	}
	return NewKeySet(issuer, set)
}

func usable(jwk jose.JSONWebKey) (publicKey, bool) {
	if jwk.KeyID == "" || (jwk.Use != "" && jwk.Use != "sig") {
		return publicKey{}, false
	}
	var k publicKey
	switch key := jwk.Key.(type) {
	case ed25519.PublicKey:
		k.algorithm, k.key = EdDSA, key
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return publicKey{}, false
		}
		k.algorithm, k.key = ES256, key
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return publicKey{}, false
		}
		k.algorithm, k.key = RS256, key
	default:
		return publicKey{}, false
	}
	// A key for PS256, say, is the same RSA key and still not one for RS256.
	if jwk.Algorithm != "" && Algorithm(jwk.Algorithm) != k.algorithm {
		return publicKey{}, false
	}
	k.method = k.algorithm.method()
	return k, true
}

// Issuer is what the claim "iss" of the tokens signed with these keys must be.
func (s *KeySet) Issuer() string { return s.issuer }

// without returns the set without the keys of these ids, or the set itself when it has none of them.
func (s *KeySet) without(ids []string) *KeySet {
	if !slices.ContainsFunc(ids, func(id string) bool { _, there := s.keys[id]; return there }) {
		return s
	}
	left := &KeySet{issuer: s.issuer, keys: maps.Clone(s.keys)}
	for _, id := range ids {
		delete(left.keys, id)
	}
	return left
}

func (s *KeySet) equal(other *KeySet) bool {
	return other != nil && s.issuer == other.issuer && maps.EqualFunc(s.keys, other.keys, publicKey.equal)
}

// LocalKeys are the keys of an issuer in this process.
type LocalKeys struct {
	issuer  string
	current atomic.Pointer[KeySet]
}

var _ KeySource = (*LocalKeys)(nil)

// NewLocalKeys returns the keys of the issuer of that name.
func NewLocalKeys(issuer string, keys ...*Key) (*LocalKeys, error) {
	l := &LocalKeys{issuer: issuer}
	if err := l.Replace(keys...); err != nil {
		return nil, err
	}
	return l, nil
}

// Replace makes keys the ones that tokens are checked with from now on. Tokens of a key that is not
// among them are refused at once, also those that were accepted before.
func (l *LocalKeys) Replace(keys ...*Key) error {
	set, err := NewKeySet(l.issuer, PublicSet(keys...))
	if err != nil {
		return err
	}
	l.current.Store(set)
	return nil
}

// Keys implements KeySource.
func (l *LocalKeys) Keys() (*KeySet, error) { return l.current.Load(), nil }

// Refresh implements KeySource: there are no newer keys than those that Replace was given.
func (l *LocalKeys) Refresh(context.Context, *KeySet) (*KeySet, error) { return l.current.Load(), nil }
