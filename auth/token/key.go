package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// Algorithm is a JWS algorithm (RFC 7518, section 3.1; RFC 8037) that tokens may be signed with.
type Algorithm string

// The accepted algorithms. There is no symmetric one: whoever can check a token must not be able to
// make one. Stock of-watchdog (0.11) accepts ES256 and RS256; it knows EdDSA by name, but its JWK
// library gives its JWT library a kind of key that this one does not take.
const (
	EdDSA Algorithm = "EdDSA"
	ES256 Algorithm = "ES256"
	RS256 Algorithm = "RS256"
)

// Algorithms are all that a verifier accepts.
var Algorithms = []Algorithm{EdDSA, ES256, RS256}

func (a Algorithm) method() jwt.SigningMethod { return jwt.GetSigningMethod(string(a)) }

// Key signs tokens. Safe for concurrent use.
type Key struct {
	jwk jose.JSONWebKey
}

// NewKey makes a key of its own id: the thumbprint of its public half (RFC 7638), so that two keys
// never share one.
func NewKey(algorithm Algorithm) (*Key, error) {
	var private crypto.Signer
	var err error
	switch algorithm {
	case EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case RS256:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		return nil, fmt.Errorf("signing algorithm %q: must be one of %v", algorithm, Algorithms)
	}
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	k := &Key{jose.JSONWebKey{Key: private, Algorithm: string(algorithm), Use: "sig"}}
	thumbprint, err := k.jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("name a signing key: %w", err)
	}
	k.jwk.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	return k, nil
}

// ParseKey reads what MarshalJSON wrote: a private JWK (RFC 7517) with its algorithm and id.
func ParseKey(raw []byte) (*Key, error) {
	k := &Key{}
	if err := k.jwk.UnmarshalJSON(raw); err != nil {
		return nil, fmt.Errorf("read a signing key: %w", err)
	}
	if _, ok := usable(k.jwk.Public()); !ok || k.jwk.IsPublic() || k.jwk.Algorithm == "" {
		return nil, fmt.Errorf("read a signing key: it must be a private JWK with kid, and with alg, one of %v and of the key's kind", Algorithms)
	}
	return k, nil
}

// MarshalJSON writes the key, its private half included.
func (k *Key) MarshalJSON() ([]byte, error) { return k.jwk.MarshalJSON() }

// ID is the key's "kid".
func (k *Key) ID() string { return k.jwk.KeyID }

// Algorithm is what the key signs with.
func (k *Key) Algorithm() Algorithm { return Algorithm(k.jwk.Algorithm) }

// Sign returns claims as a compact JWS of type "at+jwt" (RFC 9068).
func (k *Key) Sign(claims *Claims) (string, error) {
	t := jwt.NewWithClaims(k.Algorithm().method(), claims)
	t.Header["typ"], t.Header["kid"] = "at+jwt", k.jwk.KeyID
	signed, err := t.SignedString(k.jwk.Key)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return signed, nil
}

// PublicSet is what a verifier needs of the keys: a JWK set (RFC 7517) of their public halves.
func PublicSet(keys ...*Key) jose.JSONWebKeySet {
	set := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, 0, len(keys))}
	for _, k := range keys {
		set.Keys = append(set.Keys, k.jwk.Public())
	}
	return set
}
