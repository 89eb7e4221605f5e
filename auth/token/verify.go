package token

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/golang-lru/v2"
)

const (
	// MaxBytes is the longest token that is looked at.
	MaxBytes = 8 << 10
	// Leeway is how far the clocks of issuer and verifier may be apart.
	Leeway = time.Second
	// DefaultCacheSize is how many verified tokens are remembered. One takes less than 1 KiB, with few grants.
	DefaultCacheSize = 10_000
)

// Config of a Verifier.
type Config struct {
	// Keys is where the issuer's keys come from. It must be set.
	Keys KeySource
	// Revocations says which tokens no longer hold; nil when there are none.
	Revocations Revocations
	// Audience is what the claim "aud" must contain. The default is the issuer, which is what
	// OpenFaaS puts there and stock of-watchdog expects.
	Audience string
	// CacheSize is how many verified tokens are remembered; 0 is DefaultCacheSize.
	CacheSize int
	// Concurrency is how many signatures are checked at once; 0 is GOMAXPROCS.
	Concurrency int
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Verifier tells good tokens from bad ones. Safe for concurrent use.
type Verifier struct {
	keys        KeySource
	revocations Revocations
	audience    string
	now         func() time.Time
	parser      *jwt.Parser
	// accepted is keyed by digest so that it holds no token that could be used. Only what was
	// verified gets in, so a flood of bad tokens pushes out nothing.
	accepted *lru.Cache[[sha256.Size]byte, *acceptance]
	// checks has room for the signature checks under way. First-time tokens wait here rather than
	// taking every core from those that are known.
	checks chan struct{}
}

// acceptance is a token that was verified.
type acceptance struct {
	claims *Claims
	keyID  string
	key    publicKey
	until  time.Time
	// with is the key set that key was last seen in.
	with atomic.Pointer[KeySet]
}

// NewVerifier returns a Verifier. It starts nothing that has to be ended.
func NewVerifier(cfg Config) *Verifier {
	if cfg.CacheSize <= 0 {
		cfg.CacheSize = DefaultCacheSize
	}
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = runtime.GOMAXPROCS(0)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	accepted, err := lru.New[[sha256.Size]byte, *acceptance](cfg.CacheSize)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Verifier{
		keys: cfg.Keys, revocations: cfg.Revocations, audience: cfg.Audience, now: cfg.Now,
		// Strict: bits that do not count would give one token many spellings, each with a place of
		// its own among the accepted ones.
		parser:   jwt.NewParser(jwt.WithStrictDecoding()),
		accepted: accepted,
		checks:   make(chan struct{}, cfg.Concurrency),
	}
}

// VerifyRequest is Verify for the bearer token of a request: what follows "Bearer " in its one Authorization
// header (RFC 6750, section 2.1). An *Error is also 401 without a code when there is no bearer token, 400
// when it is not clear which token is meant or the token stands where logs keep it, in the query.
func (v *Verifier) VerifyRequest(r *http.Request) (*Claims, error) {
	raw, err := bearer(r)
	if err != nil {
		return nil, err
	}
	claims, err := v.Verify(r.Context(), raw)
	// Looking at each character of every call's token would show, and a token that is known has only good ones.
	if errors.Is(err, errMalformed) && !isB64Token(raw) {
		return nil, errHeaderSyntax
	}
	return claims, err
}

// Verify returns what a token says if it is good: signed by the issuer with a key that it publishes,
// for this audience, within its time, and not revoked. The claims are shared with other callers, who
// must not change them either. Every error is an *Error.
//
// A token that was accepted before costs a digest and a look-up. Only a token that nothing but its
// signature can betray costs a signature check, and waits until fewer than Config.Concurrency are
// under way or ctx ends. One whose key is unknown may wait for the keys to be fetched again.
func (v *Verifier) Verify(ctx context.Context, raw string) (*Claims, error) {
	if len(raw) > MaxBytes {
		return nil, errTooLong
	}
	keys, err := v.keys.Keys()
	if err != nil {
		return nil, unavailable("tokens cannot be checked yet, because the issuer's keys are not known", err)
	}
	// Sum256 only reads, and a copy of the token would be all that a known one costs in memory.
	digest := sha256.Sum256(unsafe.Slice(unsafe.StringData(raw), len(raw)))
	claims := v.recall(digest, keys)
	if claims == nil {
		if claims, err = v.check(ctx, raw, digest, keys); err != nil {
			return nil, err
		}
	}
	if v.revocations != nil {
		var issued time.Time
		if claims.IssuedAt != nil {
			issued = claims.IssuedAt.Time
		}
		if v.revocations.Revoked(claims.ID, claims.ClientID, issued) {
			return nil, errRevoked
		}
	}
	return claims, nil
}

// recall returns the claims of a token that was accepted before and still would be, or nil.
func (v *Verifier) recall(digest [sha256.Size]byte, keys *KeySet) *Claims {
	a, found := v.accepted.Get(digest)
	if !found {
		return nil
	}
	if !v.now().Before(a.until) {
		v.accepted.Remove(digest)
		return nil
	}
	if with := a.with.Load(); with != keys {
		// The keys have changed since: the token holds while its own is still among them.
		key, published := keys.keys[a.keyID]
		if !published || !key.equal(a.key) || with.issuer != keys.issuer {
			v.accepted.Remove(digest)
			return nil
		}
		a.with.Store(keys)
	}
	return a.claims
}

// check verifies a token that is not known, and remembers it.
func (v *Verifier) check(ctx context.Context, raw string, digest [sha256.Size]byte, keys *KeySet) (*Claims, error) {
	t, claims, err := v.parse(raw)
	if err != nil {
		return nil, err
	}
	if err := v.admit(claims, keys); err != nil {
		return nil, err
	}
	keyID := t.Header["kid"].(string)
	key, published := keys.keys[keyID]
	if !published {
		if keys, err = v.keys.Refresh(ctx, keys); err != nil {
			return nil, unavailable("the token's key is not known, and asking the issuer for it did not succeed", err)
		}
		if key, published = keys.keys[keyID]; !published {
			return nil, errUnknownKey
		}
		// What was fetched may be of another issuer.
		if err := v.admit(claims, keys); err != nil {
			return nil, err
		}
	}
	if t.Method.Alg() != string(key.algorithm) {
		return nil, errAlgorithm
	}
	select {
	case v.checks <- struct{}{}:
	case <-ctx.Done():
		return nil, unavailable("the token was not checked in time", ctx.Err())
	}
	defer func() { <-v.checks }()
	// Calls that came with the same new token waited too; one check is enough for all.
	if known := v.recall(digest, keys); known != nil {
		return known, nil
	}
	signed := raw[:strings.LastIndexByte(raw, '.')]
	if key.method.Verify(signed, t.Signature, key.key) != nil {
		return nil, errSignature
	}
	a := &acceptance{claims: claims, keyID: keyID, key: key, until: claims.ExpiresAt.Add(Leeway)}
	a.with.Store(keys)
	v.accepted.Add(digest, a)
	return claims, nil
}

// parse takes a token apart without believing any of it. Of the header only alg, kid and typ count:
// keys that a token brings along or points to (jwk, jku, x5c, x5u) are not looked at.
func (v *Verifier) parse(raw string) (*jwt.Token, *Claims, error) {
	// Go's base64 skips line breaks, which would be one more way of spelling a token differently.
	for i := range len(raw) {
		if c := raw[i]; !isBase64URL(c) && c != '.' {
			return nil, nil, errMalformed
		}
	}
	claims := &Claims{}
	t, _, err := v.parser.ParseUnverified(raw, claims)
	switch {
	case errors.Is(err, jwt.ErrTokenUnverifiable): // alg is missing or nothing the library has
		return nil, nil, errAlgorithm
	case err != nil: // not wrapped: it may quote the token
		return nil, nil, errMalformed
	}
	if !slices.Contains(Algorithms, Algorithm(t.Method.Alg())) {
		return nil, nil, errAlgorithm
	}
	if _, extended := t.Header["crit"]; extended {
		return nil, nil, errCritical
	}
	if typ, given := t.Header["typ"]; given && !accessTokenType(typ) {
		return nil, nil, errType
	}
	if id, _ := t.Header["kid"].(string); id == "" {
		return nil, nil, errNoKeyID
	}
	return t, claims, nil
}

func isBase64URL(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// accessTokenType reports whether a typ is one of an access token (RFC 9068, section 4) or says no more
// than JWT, as older issuers do. Others, such as logout+jwt, are of statements that are no access tokens.
func accessTokenType(typ any) bool {
	s, ok := typ.(string)
	if !ok {
		return false
	}
	s = strings.ToLower(s) // a media type (RFC 7515, section 4.1.9)
	s = strings.TrimPrefix(s, "application/")
	return s == "at+jwt" || s == "jwt"
}

// admit checks what a token says against what is expected here.
func (v *Verifier) admit(c *Claims, keys *KeySet) error {
	audience := v.audience
	if audience == "" {
		audience = keys.issuer
	}
	now := v.now()
	switch {
	case c.Issuer != keys.issuer:
		return errIssuer
	case !slices.Contains(c.Audience, audience):
		return errAudience
	case c.ExpiresAt == nil:
		return errNoExpiry
	case !now.Before(c.ExpiresAt.Add(Leeway)):
		return errExpired
	case c.NotBefore != nil && now.Add(Leeway).Before(c.NotBefore.Time):
		return errNotYet
	case c.IssuedAt != nil && now.Add(Leeway).Before(c.IssuedAt.Time):
		return errIssuedLater
	}
	return nil
}
