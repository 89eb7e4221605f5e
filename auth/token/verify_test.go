package token

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	issuerName = "https://gateway.example.com"
	namespace  = "openfaas-fn"
)

func newKey(t testing.TB, algorithm Algorithm) *Key {
	t.Helper()
	key, err := NewKey(algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func localKeys(t testing.TB, keys ...*Key) *LocalKeys {
	t.Helper()
	l, err := NewLocalKeys(issuerName, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func sign(t testing.TB, key *Key, c *Claims) string {
	t.Helper()
	raw, err := key.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// goodClaims are those of a token for the function iris, valid for ten minutes.
func goodClaims() *Claims {
	now := time.Now()
	return &Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: issuerName, Subject: "team-a", Audience: jwt.ClaimStrings{issuerName}, ID: "id-1",
			IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(10 * time.Minute)),
		},
		Scope: ScopeFunction, ClientID: "team-a",
		Function: Grants{Permissions: []string{namespace + ":iris*"}},
	}
}

func with(change func(*Claims)) *Claims {
	c := goodClaims()
	change(c)
	return c
}

// forge writes a token that Key.Sign would not.
func forge(t testing.TB, header map[string]any, claims any, signature func(signed []byte) []byte) string {
	t.Helper()
	segment := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	signed := segment(header) + "." + segment(claims)
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature([]byte(signed)))
}

// signature signs anything with a key by its own algorithm, whatever a header says.
func signature(t testing.TB, key *Key) func([]byte) []byte {
	return func(signed []byte) []byte {
		sig, err := key.Algorithm().method().Sign(string(signed), key.jwk.Key)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
}

func none([]byte) []byte { return nil }

func hs256(secret []byte) func([]byte) []byte {
	return func(signed []byte) []byte {
		mac := hmac.New(sha256.New, secret)
		mac.Write(signed)
		return mac.Sum(nil)
	}
}

// wantRefused checks that err is want, and that it says nothing of the token.
func wantRefused(t *testing.T, raw string, err error, want *Error) {
	t.Helper()
	var refused *Error
	if !errors.As(err, &refused) {
		t.Fatalf("got error %v, want a refusal: %s", err, want.Description)
	}
	if refused != want {
		t.Errorf("refused with %q, want %q", refused.Description, want.Description)
	}
	for _, part := range strings.Split(raw, ".") {
		if len(part) > 3 && strings.Contains(err.Error(), part) {
			t.Errorf("the error quotes the token: %s", err)
		}
	}
}

func TestAcceptsTheThreeAlgorithms(t *testing.T) {
	for _, algorithm := range Algorithms {
		key := newKey(t, algorithm)
		v := NewVerifier(Config{Keys: localKeys(t, key)})
		want := goodClaims()
		raw := sign(t, key, want)
		for _, when := range []string{"first", "again"} {
			got, err := v.Verify(t.Context(), raw)
			if err != nil {
				t.Fatalf("%s, %s: %v", algorithm, when, err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, %s: claims (-want +got):\n%s", algorithm, when, diff)
			}
		}
	}
}

// The attacks that a verifier must withstand, each as a token of its own.
func TestAttacks(t *testing.T) {
	ed, ec, rs := newKey(t, EdDSA), newKey(t, ES256), newKey(t, RS256)
	stranger := newKey(t, EdDSA)
	v := NewVerifier(Config{Keys: localKeys(t, ed, ec, rs)})
	header := func(alg any, key *Key, more ...map[string]any) map[string]any {
		h := map[string]any{"alg": alg, "typ": "at+jwt", "kid": key.ID()}
		for _, m := range more {
			maps.Copy(h, m)
		}
		return h
	}
	strangerJWK := PublicSet(stranger).Keys[0]

	type attack struct {
		name string
		raw  string
		want *Error
	}
	attacks := []attack{
		{"empty", "", errMalformed},
		{"not a token", "letmein", errMalformed},
		{"two parts", "e30.e30", errMalformed},
		{"four parts", sign(t, ed, goodClaims()) + ".e30", errMalformed},
		{"five parts, as JWE has", "e30.e30.e30.e30.e30", errMalformed},
		{"header is not an object", "W10.e30.e30", errMalformed},
		{"claims are not an object", forge(t, header("EdDSA", ed), []int{1}, signature(t, ed)), errMalformed},
		{"time is a string", forge(t, header("EdDSA", ed), map[string]any{"iss": issuerName, "exp": "never"}, signature(t, ed)), errMalformed},
		{"line break in the signature", strings.Replace(sign(t, ed, goodClaims()), ".", ".\n", 1), errMalformed},
		{"padding", sign(t, ed, goodClaims()) + "=", errMalformed},
		{"unused bits of the last character", misspelled(sign(t, ed, goodClaims())), errMalformed},
		{"huge", sign(t, ed, with(func(c *Claims) { c.Subject = strings.Repeat("a", MaxBytes) })), errTooLong},
		{"huge and nothing but dots", strings.Repeat(".", 1<<20), errTooLong},

		{"alg missing", forge(t, map[string]any{"kid": ed.ID()}, goodClaims(), signature(t, ed)), errAlgorithm},
		{"alg is a number", forge(t, header(256, ed), goodClaims(), signature(t, ed)), errAlgorithm},
		{"alg is a list", forge(t, header([]string{"EdDSA"}, ed), goodClaims(), signature(t, ed)), errAlgorithm},
		{"alg in other letters", forge(t, header("eddsa", ed), goodClaims(), signature(t, ed)), errAlgorithm},
		{"alg Ed25519 (RFC 9864)", forge(t, header("Ed25519", ed), goodClaims(), signature(t, ed)), errAlgorithm},
		{"alg PS256 with an RS256 key", forge(t, header("PS256", rs), goodClaims(), signature(t, rs)), errAlgorithm},
		{"alg RS512 with an RS256 key", forge(t, header("RS512", rs), goodClaims(), signature(t, rs)), errAlgorithm},
		{"alg ES256 with an RS256 key", forge(t, header("ES256", rs), goodClaims(), signature(t, ec)), errAlgorithm},
		{"alg RS256 with an ES256 key", forge(t, header("RS256", ec), goodClaims(), signature(t, rs)), errAlgorithm},
		{"alg ES256 with an EdDSA key", forge(t, header("ES256", ed), goodClaims(), signature(t, ec)), errAlgorithm},
		{"alg EdDSA with an ES256 key", forge(t, header("EdDSA", ec), goodClaims(), signature(t, ed)), errAlgorithm},

		{"no kid", forge(t, map[string]any{"alg": "EdDSA"}, goodClaims(), signature(t, ed)), errNoKeyID},
		{"kid is empty", forge(t, header("EdDSA", ed, map[string]any{"kid": ""}), goodClaims(), signature(t, ed)), errNoKeyID},
		{"kid is a number", forge(t, header("EdDSA", ed, map[string]any{"kid": 1}), goodClaims(), signature(t, ed)), errNoKeyID},
		{"kid is a list", forge(t, header("EdDSA", ed, map[string]any{"kid": []string{ed.ID()}}), goodClaims(), signature(t, ed)), errNoKeyID},
		{"another key's kid", forge(t, header("EdDSA", ed), goodClaims(), signature(t, stranger)), errSignature},
		{"crit", forge(t, header("EdDSA", ed, map[string]any{"crit": []string{"exp"}}), goodClaims(), signature(t, ed)), errCritical},
		{"crit and b64 false", forge(t, header("EdDSA", ed, map[string]any{"crit": []string{"b64"}, "b64": false}), goodClaims(), signature(t, ed)), errCritical},
		{"key in the header (jwk)", forge(t, header("EdDSA", stranger, map[string]any{"jwk": strangerJWK}), goodClaims(), signature(t, stranger)), errUnknownKey},
		{"own key in the header under a known kid", forge(t, header("EdDSA", ed, map[string]any{"jwk": strangerJWK}), goodClaims(), signature(t, stranger)), errSignature},
		{"key by address (jku)", forge(t, header("EdDSA", stranger, map[string]any{"jku": "http://127.0.0.1:1/keys"}), goodClaims(), signature(t, stranger)), errUnknownKey},
		{"certificate by address (x5u)", forge(t, header("EdDSA", stranger, map[string]any{"x5u": "http://127.0.0.1:1/cert"}), goodClaims(), signature(t, stranger)), errUnknownKey},
		{"typ of a logout token", forge(t, header("EdDSA", ed, map[string]any{"typ": "logout+jwt"}), goodClaims(), signature(t, ed)), errType},
		{"typ of an id token", forge(t, header("EdDSA", ed, map[string]any{"typ": "id_token+jwt"}), goodClaims(), signature(t, ed)), errType},
		{"typ is a number", forge(t, header("EdDSA", ed, map[string]any{"typ": 1}), goodClaims(), signature(t, ed)), errType},

		{"expired", sign(t, ed, with(func(c *Claims) { c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-2 * time.Second)) })), errExpired},
		{"never expires", sign(t, ed, with(func(c *Claims) { c.ExpiresAt = nil })), errNoExpiry},
		{"not valid yet", sign(t, ed, with(func(c *Claims) { c.NotBefore = jwt.NewNumericDate(time.Now().Add(time.Minute)) })), errNotYet},
		{"issued in the future", sign(t, ed, with(func(c *Claims) { c.IssuedAt = jwt.NewNumericDate(time.Now().Add(time.Minute)) })), errIssuedLater},
		{"expires at the end of numbers", forge(t, header("EdDSA", ed), map[string]any{"iss": issuerName, "aud": issuerName, "exp": -1e300}, signature(t, ed)), errExpired},
		{"wrong issuer", sign(t, ed, with(func(c *Claims) { c.Issuer = "https://elsewhere.example.com" })), errIssuer},
		{"issuer with a slash more", sign(t, ed, with(func(c *Claims) { c.Issuer += "/" })), errIssuer},
		{"issuer missing", sign(t, ed, with(func(c *Claims) { c.Issuer = "" })), errIssuer},
		{"wrong audience", sign(t, ed, with(func(c *Claims) { c.Audience = jwt.ClaimStrings{"another-client"} })), errAudience},
		{"audience missing", sign(t, ed, with(func(c *Claims) { c.Audience = nil })), errAudience},
		{"changed claims", tampered(t, sign(t, ed, goodClaims())), errSignature},
		{"signature of another token", strings.Join(append(strings.Split(sign(t, ed, goodClaims()), ".")[:2],
			strings.Split(sign(t, ed, with(func(c *Claims) { c.ID = "id-2" })), ".")[2]), "."), errSignature},
		{"signature missing", strings.Join(strings.Split(sign(t, ed, goodClaims()), ".")[:2], ".") + ".", errSignature},
		{"ES256 with r and s of zero", forge(t, header("ES256", ec), goodClaims(), func([]byte) []byte { return make([]byte, 64) }), errSignature},
		{"ES256 with a signature in ASN.1", forge(t, header("ES256", ec), goodClaims(), func(signed []byte) []byte {
			digest := sha256.Sum256(signed)
			sig, err := ecdsa.SignASN1(rand.Reader, ec.jwk.Key.(*ecdsa.PrivateKey), digest[:])
			if err != nil {
				t.Fatal(err)
			}
			return sig
		}), errSignature},
	}
	for bits := range 1 << 4 { // every spelling of none
		alg := []byte("none")
		for i := range alg {
			if bits&(1<<i) != 0 {
				alg[i] -= 'a' - 'A'
			}
		}
		attacks = append(attacks, attack{"alg " + string(alg), forge(t, header(string(alg), ed), goodClaims(), none), errAlgorithm})
	}
	for _, key := range []*Key{ed, ec, rs} {
		for form, secret := range publicForms(t, key) {
			for _, alg := range []string{"HS256", "HS384", "HS512", "hs256"} {
				attacks = append(attacks, attack{
					fmt.Sprintf("%s with the public %s key in %s", alg, key.Algorithm(), form),
					forge(t, header(alg, key), goodClaims(), hs256(secret)), errAlgorithm,
				})
			}
			attacks = append(attacks, attack{
				fmt.Sprintf("HMAC with the public %s key in %s called %[1]s", key.Algorithm(), form),
				forge(t, header(string(key.Algorithm()), key), goodClaims(), hs256(secret)), errSignature,
			})
		}
	}
	for _, id := range []string{
		"../../../../etc/passwd", "/dev/null", "file:///dev/null", "http://127.0.0.1:1/keys", "' OR 1=1 --", "$(id)",
		ed.ID() + "\x00", ed.ID() + " ", strings.ToLower(ed.ID()) + "x", ed.ID()[:10], "*", ".",
	} {
		attacks = append(attacks, attack{"kid " + id, forge(t, header("EdDSA", ed, map[string]any{"kid": id}), goodClaims(), signature(t, ed)), errUnknownKey})
	}
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			for range 2 { // a refusal is not remembered as something better
				claims, err := v.Verify(t.Context(), a.raw)
				if claims != nil {
					t.Fatal("the token was accepted")
				}
				wantRefused(t, a.raw, err, a.want)
			}
		})
	}
	if n := v.accepted.Len(); n != 0 {
		t.Errorf("%d bad tokens are among the accepted ones", n)
	}
}

// publicForms are the bytes that a careless verifier would take as a shared secret.
func publicForms(t *testing.T, key *Key) map[string][]byte {
	public := key.jwk.Public()
	der, err := x509.MarshalPKIXPublicKey(public.Key)
	if err != nil {
		t.Fatal(err)
	}
	asJWK, err := public.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	forms := map[string][]byte{
		"PEM": block, "PEM without the last line break": bytes.TrimSpace(block), "DER": der, "JWK": asJWK, "nothing": nil,
	}
	switch k := public.Key.(type) {
	case interface{ Bytes() ([]byte, error) }: // an elliptic curve's point
		if forms["raw"], err = k.Bytes(); err != nil {
			t.Fatal(err)
		}
	default:
		forms["raw"] = der[len(der)-32:] // Ed25519's key ends its DER; of RSA's, some bytes
	}
	return forms
}

// misspelled changes bits of a token that base64 does not use.
func misspelled(raw string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, raw[len(raw)-1])
	return raw[:len(raw)-1] + string(alphabet[last^1])
}

// tampered gives a token more rights than it was signed with.
func tampered(t *testing.T, raw string) string {
	parts := strings.Split(raw, ".")
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	parts[1] = base64.RawURLEncoding.EncodeToString(bytes.Replace(claims, []byte("iris*"), []byte("*"), 1))
	return strings.Join(parts, ".")
}

func TestKindsOfAccessToken(t *testing.T) {
	key := newKey(t, EdDSA)
	v := NewVerifier(Config{Keys: localKeys(t, key)})
	for _, typ := range []any{"at+jwt", "AT+JWT", "application/at+jwt", "JWT", "jwt", nil} {
		header := map[string]any{"alg": "EdDSA", "kid": key.ID(), "typ": typ}
		if typ == nil {
			delete(header, "typ")
		}
		if _, err := v.Verify(t.Context(), forge(t, header, goodClaims(), signature(t, key))); err != nil {
			t.Errorf("typ %v: %v", typ, err)
		}
	}
}

func TestClocksMayBeASecondApart(t *testing.T) {
	key := newKey(t, EdDSA)
	start := time.Now().Truncate(time.Second)
	now := start
	v := NewVerifier(Config{Keys: localKeys(t, key), Now: func() time.Time { return now }})
	raw := sign(t, key, with(func(c *Claims) {
		c.IssuedAt = jwt.NewNumericDate(start.Add(10 * time.Second))
		c.NotBefore = c.IssuedAt
		c.ExpiresAt = jwt.NewNumericDate(start.Add(20 * time.Second))
	}))
	for _, step := range []struct {
		at   time.Duration
		want *Error
	}{
		{8 * time.Second, errNotYet}, {9 * time.Second, nil}, {10 * time.Second, nil},
		{21*time.Second - 1, nil}, {21 * time.Second, errExpired}, {time.Hour, errExpired},
	} {
		now = start.Add(step.at)
		_, err := v.Verify(t.Context(), raw)
		if step.want == nil {
			if err != nil {
				t.Errorf("after %v: %v", step.at, err)
			}
			continue
		}
		wantRefused(t, raw, err, step.want)
	}
	if v.accepted.Len() != 0 {
		t.Error("an expired token keeps its place among the accepted ones")
	}
}

func TestAudienceOfItsOwn(t *testing.T) {
	key := newKey(t, EdDSA)
	v := NewVerifier(Config{Keys: localKeys(t, key), Audience: "models"})
	raw := sign(t, key, goodClaims())
	_, err := v.Verify(t.Context(), raw)
	wantRefused(t, raw, err, errAudience)
	if _, err := v.Verify(t.Context(), sign(t, key, with(func(c *Claims) { c.Audience = jwt.ClaimStrings{"x", "models"} }))); err != nil {
		t.Error(err)
	}
}

func TestKeyRotatedOutEndsItsTokens(t *testing.T) {
	old, next := newKey(t, EdDSA), newKey(t, ES256)
	keys := localKeys(t, old)
	v := NewVerifier(Config{Keys: keys})
	before := sign(t, old, goodClaims())
	if _, err := v.Verify(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	if err := keys.Replace(old, next); err != nil {
		t.Fatal(err)
	}
	for _, raw := range []string{before, sign(t, next, goodClaims())} {
		if _, err := v.Verify(t.Context(), raw); err != nil {
			t.Errorf("while the keys overlap: %v", err)
		}
	}
	if n := v.accepted.Len(); n != 2 {
		t.Errorf("%d tokens are accepted, want 2: a rotation forgets nothing", n)
	}
	if err := keys.Replace(next); err != nil {
		t.Fatal(err)
	}
	_, err := v.Verify(t.Context(), before)
	wantRefused(t, before, err, errUnknownKey)
}

func TestKeyReplacedUnderItsKidEndsItsTokens(t *testing.T) {
	old, next := newKey(t, EdDSA), newKey(t, EdDSA)
	next.jwk.KeyID = old.jwk.KeyID
	keys := localKeys(t, old)
	v := NewVerifier(Config{Keys: keys})
	raw := sign(t, old, goodClaims())
	if _, err := v.Verify(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	if err := keys.Replace(next); err != nil {
		t.Fatal(err)
	}
	_, err := v.Verify(t.Context(), raw)
	wantRefused(t, raw, err, errSignature)
}

func TestKeySetLeavesOutWhatCannotBeUsed(t *testing.T) {
	good, twice, other := newKey(t, EdDSA), newKey(t, EdDSA), newKey(t, ES256)
	other.jwk.KeyID = twice.jwk.KeyID
	set := PublicSet(good, twice, other)
	add := func(id, alg, use string, key any) {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key, KeyID: id, Algorithm: alg, Use: use})
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := good.jwk.Public().Key
	add("symmetric", "HS256", "sig", []byte("0123456789abcdef0123456789abcdef"))
	add("private", "EdDSA", "sig", good.jwk.Key)
	add("encrypts", "", "enc", public)
	add("other curve", "", "", p384.Public())
	add("other algorithm", "PS256", "", newKey(t, RS256).jwk.Public().Key)
	add("", "", "", public)
	raw, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Replace(raw, []byte(`{"keys":[`), []byte(`{"keys":[{"kty":"OKP","crv":"X448","kid":"new"},{"kty":"EC","x":1},7,`), 1)
	s, err := ParseKeySet(issuerName, raw)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.keys) != 1 || s.keys[good.ID()].algorithm != EdDSA {
		t.Errorf("usable keys: %v, want that of kid %s alone", s.keys, good.ID())
	}
	for name, raw := range map[string]string{"none": `{"keys":[]}`, "no list": `{}`, "no object": `[]`, "null": `null`} {
		if _, err := ParseKeySet(issuerName, []byte(raw)); err == nil {
			t.Errorf("%s: the set was taken", name)
		}
	}
}

// slowMethod stands for signature checks that last as long as the test wants.
type slowMethod struct {
	jwt.SigningMethod
	entered, leave chan struct{}
}

func (m slowMethod) Verify(signed string, sig []byte, key any) error {
	m.entered <- struct{}{}
	<-m.leave
	return m.SigningMethod.Verify(signed, sig, key)
}

func TestKnownTokensDoNotWaitForNewOnes(t *testing.T) {
	key := newKey(t, EdDSA)
	keys := localKeys(t, key)
	v := NewVerifier(Config{Keys: keys, Concurrency: 1})
	known := sign(t, key, goodClaims())
	if _, err := v.Verify(t.Context(), known); err != nil {
		t.Fatal(err)
	}

	slow := slowMethod{EdDSA.method(), make(chan struct{}), make(chan struct{})}
	public := keys.current.Load().keys[key.ID()]
	public.method = slow
	keys.current.Store(&KeySet{issuerName, map[string]publicKey{key.ID(): public}})

	fresh := sign(t, key, with(func(c *Claims) { c.ID = "id-2" }))
	var calls sync.WaitGroup
	for range 2 { // the second finds what the first did
		calls.Go(func() {
			if _, err := v.Verify(context.Background(), fresh); err != nil {
				t.Error(err)
			}
		})
	}
	<-slow.entered
	if _, err := v.Verify(t.Context(), known); err != nil {
		t.Errorf("a known token while the only check is under way: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := v.Verify(ctx, sign(t, key, with(func(c *Claims) { c.ID = "id-3" })))
	var refused *Error
	if !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that leaves while waiting got %v", err)
	}
	close(slow.leave)
	calls.Wait()
}

func TestRevocationHoldsForKnownTokensToo(t *testing.T) {
	key := newKey(t, EdDSA)
	now := time.Now()
	revoked := &RevocationSet{}
	v := NewVerifier(Config{Keys: localKeys(t, key), Revocations: revoked})
	raw := sign(t, key, goodClaims())
	undated := sign(t, key, with(func(c *Claims) { c.IssuedAt, c.ID = nil, "" }))
	verify := func(raw string, want *Error) {
		t.Helper()
		_, err := v.Verify(t.Context(), raw)
		if want == nil {
			if err != nil {
				t.Error(err)
			}
			return
		}
		wantRefused(t, raw, err, want)
	}
	set := func(list RevocationList) { *revoked = *NewRevocationSet(list, now) }
	client := func(before time.Time) RevocationList {
		return RevocationList{Clients: []RevokedClient{{"team-a", before.Unix()}}}
	}

	verify(raw, nil)
	verify(undated, nil)
	set(RevocationList{Revoked: []RevokedToken{{"id-1", now.Add(time.Minute).Unix()}}})
	verify(raw, errRevoked)
	verify(undated, nil)
	set(RevocationList{Revoked: []RevokedToken{{"id-2", now.Add(time.Minute).Unix()}, {"", now.Add(time.Minute).Unix()}}})
	verify(raw, nil)
	verify(undated, nil)
	set(RevocationList{Revoked: []RevokedToken{{"id-1", now.Add(-time.Minute).Unix()}}})
	if len(revoked.tokens) != 0 {
		t.Error("a token that has expired is still listed")
	}
	set(client(now.Add(-time.Minute)))
	verify(raw, nil)
	verify(undated, errRevoked)
	set(client(now))
	verify(raw, errRevoked)
	set(RevocationList{Clients: []RevokedClient{{"team-b", now.Unix()}, {"", now.Unix()}}})
	verify(raw, nil)
}

// 100,000 distinct bad tokens, of every kind that gets some way into the verifier, while good ones
// are in use.
func TestFloodOfBadTokens(t *testing.T) {
	key, stranger := newKey(t, EdDSA), newKey(t, EdDSA)
	v := NewVerifier(Config{Keys: localKeys(t, key)})
	good := sign(t, key, goodClaims())
	if _, err := v.Verify(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	expired := with(func(c *Claims) { c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-time.Hour)) })
	header := func(alg, id string) map[string]any { return map[string]any{"alg": alg, "kid": id} }
	wrong := func([]byte) []byte { return make([]byte, 64) }
	kinds := []func(i int) string{
		func(i int) string { return fmt.Sprintf("%d.%d.%d", i, i, i) },
		func(i int) string { return forge(t, header("none", key.ID()), i, none) },
		func(i int) string { return forge(t, header("EdDSA", fmt.Sprint(i)), goodClaims(), wrong) },
		func(i int) string { return forge(t, header("EdDSA", key.ID()), expired, wrong) },
		func(i int) string {
			return forge(t, header("EdDSA", key.ID()), with(func(c *Claims) { c.ID = fmt.Sprint(i) }), wrong)
		},
		func(i int) string { return forge(t, header("EdDSA", stranger.ID()), goodClaims(), wrong) },
		func(i int) string { return strings.Repeat("a", MaxBytes) + fmt.Sprint(i) },
	}

	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	const flood = 100_000
	var senders sync.WaitGroup
	const parts = 4
	for part := range parts {
		senders.Go(func() {
			for i := part; i < flood; i += parts {
				raw := kinds[i%len(kinds)](i)
				if _, err := v.Verify(context.Background(), raw); err == nil {
					t.Errorf("bad token %d of kind %d was accepted", i, i%len(kinds))
					return
				}
			}
		})
	}
	over := make(chan struct{})
	go func() { senders.Wait(); close(over) }()
	calls := 0
	for running := true; running; calls++ {
		if _, err := v.Verify(t.Context(), good); err != nil {
			t.Fatalf("the good token was refused during the flood: %v", err)
		}
		select {
		case <-over:
			running = false
		case <-time.After(time.Millisecond):
		}
	}
	if n := v.accepted.Len(); n != 1 {
		t.Errorf("%d tokens are accepted after the flood, want the good one alone", n)
	}
	grown := int64(heap()) - int64(before)
	t.Logf("heap grew by %d bytes over %d bad tokens, during %d calls with the good one", grown, flood, calls)
	if grown > 1<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	runtime.KeepAlive(v)
}

func TestAcceptedTokensAreBounded(t *testing.T) {
	key := newKey(t, EdDSA)
	v := NewVerifier(Config{Keys: localKeys(t, key), CacheSize: 10})
	for i := range 50 {
		if _, err := v.Verify(t.Context(), sign(t, key, with(func(c *Claims) { c.ID = fmt.Sprint(i) }))); err != nil {
			t.Fatal(err)
		}
	}
	if n := v.accepted.Len(); n != 10 {
		t.Errorf("%d tokens are remembered, want 10", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	keys := []*Key{newKey(t, EdDSA), newKey(t, ES256)}
	local := localKeys(t, keys...)
	v := NewVerifier(Config{Keys: local, CacheSize: 20})
	var tokens []string
	for i := range 40 {
		tokens = append(tokens, sign(t, keys[i%2], with(func(c *Claims) { c.ID = fmt.Sprint(i) })))
	}
	var callers sync.WaitGroup
	for c := range 8 {
		callers.Go(func() {
			for i := range 400 {
				if i%100 == 99 {
					if err := local.Replace(keys...); err != nil {
						t.Error(err)
					}
				}
				if _, err := v.Verify(context.Background(), tokens[(c+i)%len(tokens)]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	callers.Wait()
}

func TestKeysThatAreWrittenAndReadSign(t *testing.T) {
	for _, algorithm := range Algorithms {
		key := newKey(t, algorithm)
		raw, err := key.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		read, err := ParseKey(raw)
		if err != nil {
			t.Fatal(err)
		}
		v := NewVerifier(Config{Keys: localKeys(t, key)})
		if _, err := v.Verify(t.Context(), sign(t, read, goodClaims())); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
		if _, private := PublicSet(key).Keys[0].Key.(crypto.Signer); private {
			t.Errorf("%s: the public set has the private key", algorithm)
		}
	}
}

func TestSigningKeysThatAreNone(t *testing.T) {
	key := newKey(t, EdDSA)
	raw := func(change func(*jose.JSONWebKey)) []byte {
		jwk := key.jwk
		change(&jwk)
		b, err := jwk.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, raw := range map[string][]byte{
		"public":              raw(func(k *jose.JSONWebKey) { *k = k.Public() }),
		"symmetric":           raw(func(k *jose.JSONWebKey) { k.Key, k.Algorithm = []byte("0123456789abcdef"), "HS256" }),
		"symmetric for EdDSA": raw(func(k *jose.JSONWebKey) { k.Key = []byte("0123456789abcdef") }),
		"without kid":         raw(func(k *jose.JSONWebKey) { k.KeyID = "" }),
		"without alg":         raw(func(k *jose.JSONWebKey) { k.Algorithm = "" }),
		"alg none":            raw(func(k *jose.JSONWebKey) { k.Algorithm = "none" }),
		"another's alg":       raw(func(k *jose.JSONWebKey) { k.Algorithm = "ES256" }),
		"nothing":             nil,
	} {
		if _, err := ParseKey(raw); err == nil {
			t.Errorf("%s: the key was taken", name)
		}
	}
	if _, err := NewKey("HS256"); err == nil {
		t.Error("a symmetric key was made")
	}
}

func FuzzVerify(f *testing.F) {
	key, err := NewKey(EdDSA)
	if err != nil {
		f.Fatal(err)
	}
	v := NewVerifier(Config{Keys: localKeys(f, key)})
	good := sign(f, key, goodClaims())
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(forge(f, map[string]any{"alg": "none", "kid": key.ID()}, goodClaims(), none))
	f.Add("e30.e30.e30")
	f.Add("")
	f.Fuzz(func(t *testing.T, raw string) {
		claims, err := v.Verify(t.Context(), raw)
		if err == nil {
			if raw != good || claims == nil {
				t.Fatalf("accepted %q", raw)
			}
			return
		}
		var refused *Error
		if !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized || refused.Code != CodeInvalidToken {
			t.Fatalf("refused with %#v", err)
		}
	})
}

// FuzzSigned has the issuer's own key sign anything: what is accepted must still be of this issuer, for
// this audience, and within its time.
func FuzzSigned(f *testing.F) {
	key, err := NewKey(EdDSA)
	if err != nil {
		f.Fatal(err)
	}
	v := NewVerifier(Config{Keys: localKeys(f, key), CacheSize: 10})
	claims, err := json.Marshal(goodClaims())
	if err != nil {
		f.Fatal(err)
	}
	header := fmt.Sprintf(`{"alg":"EdDSA","kid":%q,"typ":"at+jwt"}`, key.ID())
	f.Add(header, string(claims))
	f.Add(header, fmt.Sprintf(`{"iss":%q,"aud":%[1]q,"exp":1e300,"nbf":-1e300,"iat":0.5}`, issuerName))
	f.Add(`{"alg":"none","kid":null,"crit":[]}`, `{"exp":1,"function":{"permissions":["*"]}}`)
	f.Fuzz(func(t *testing.T, header, claims string) {
		signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
		raw := signed + "." + base64.RawURLEncoding.EncodeToString(signature(t, key)([]byte(signed)))
		got, err := v.Verify(t.Context(), raw)
		if err != nil {
			var refused *Error
			if !errors.As(err, &refused) || refused.Code != CodeInvalidToken {
				t.Fatalf("refused with %#v", err)
			}
			return
		}
		if got.Issuer != issuerName || !strings.Contains(strings.Join(got.Audience, " "), issuerName) || time.Until(got.ExpiresAt.Time) < -Leeway {
			t.Fatalf("accepted %s", claims)
		}
		_ = AuthorizeFunction(got, namespace, "iris")
	})
}
