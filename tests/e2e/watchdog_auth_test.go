package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/faas-predict/faas-predict/auth/token"
)

// authority is an issuer as stock OpenFaaS has one, whose tokens a test makes as it likes.
type authority struct {
	t       *testing.T
	server  *httptest.Server
	key     atomic.Pointer[token.Key]
	revoked atomic.Pointer[token.RevocationList]
	down    atomic.Bool
	fetches atomic.Int64 // of keys
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.rotate(token.ES256)
	a.revoked.Store(&token.RevocationList{})
	a.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.down.Load() {
			panic(http.ErrAbortHandler)
		}
		switch r.URL.Path {
		case token.DiscoveryPath:
			json.NewEncoder(w).Encode(token.Discovery{
				Issuer: a.server.URL, JWKSURI: a.server.URL + "/keys", RevocationListURI: a.server.URL + "/revoked",
			})
		case "/keys":
			a.fetches.Add(1)
			json.NewEncoder(w).Encode(token.PublicSet(a.key.Load()))
		case "/revoked":
			json.NewEncoder(w).Encode(a.revoked.Load())
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(a.server.Close)
	return a
}

func (a *authority) rotate(algorithm token.Algorithm) {
	key, err := token.NewKey(algorithm)
	if err != nil {
		a.t.Fatal(err)
	}
	a.key.Store(key)
}

// claims are those of a good token for the function iris.
func (a *authority) claims() *token.Claims {
	now := time.Now()
	return &token.Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: a.server.URL, Audience: jwt.ClaimStrings{a.server.URL}, Subject: "fed:someone", ID: uuid.NewString(),
			IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(time.Minute)),
		},
		Function: token.Grants{Permissions: []string{"openfaas-fn:iris"}},
	}
}

func (a *authority) sign(c *token.Claims) string {
	signed, err := a.key.Load().Sign(c)
	if err != nil {
		a.t.Fatal(err)
	}
	return signed
}

func (a *authority) token(change func(*token.Claims)) string {
	c := a.claims()
	if change != nil {
		change(c)
	}
	return a.sign(c)
}

func bearing(tokens ...string) http.Header {
	h := http.Header{}
	for _, t := range tokens {
		h.Add("Authorization", "Bearer "+t)
	}
	return h
}

const echoes = "def predict(request):\n    return 'got ' + request\n"

func (a *authority) guarded(more ...string) *watchdog {
	return launch(a.t, bundle(a.t, map[string]string{"main.py": echoes}), append([]string{
		"jwt_auth=true", "jwt_auth_debug=true", "authority=" + a.server.URL, "OPENFAAS_NAME=iris", "OPENFAAS_NAMESPACE=openfaas-fn",
	}, more...)...)
}

func (w *watchdog) send(path, body string, header http.Header) answer {
	w.t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://f"+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	return w.do(req)
}

func TestWatchdogAnswersOnlyCallsWithATokenForItsFunction(t *testing.T) {
	a := newAuthority(t)
	other := newAuthority(t)
	w := a.guarded()
	w.awaitReady()
	good := a.token(nil)
	past, ahead := jwt.NewNumericDate(time.Now().Add(-time.Hour)), jwt.NewNumericDate(time.Now().Add(time.Hour))
	for _, c := range []struct {
		name   string
		path   string
		header http.Header
		status int
		code   string // of RFC 6750
	}{
		{"good", "/", bearing(good), 200, ""},
		{"good again", "/", bearing(good), 200, ""},
		{"scheme in small letters", "/", http.Header{"Authorization": {"bearer " + good}}, 200, ""},
		{"another of this function", "/", bearing(a.token(func(c *token.Claims) { c.Function.Permissions = []string{"openfaas-fn:ir*"} })), 200, ""},
		{"none", "/", nil, 401, ""},
		{"basic", "/", http.Header{"Authorization": {"Basic YTpi"}}, 401, ""},
		{"two", "/", bearing(good, good), 400, "invalid_request"},
		{"in the query", "/?access_token=" + good, bearing(good), 400, "invalid_request"},
		{"no token at all", "/", http.Header{"Authorization": {"Bearer   "}}, 401, ""},
		{"two words", "/", http.Header{"Authorization": {"Bearer a b"}}, 400, "invalid_request"},
		{"nonsense", "/", bearing("abc"), 401, "invalid_token"},
		{"huge", "/", bearing(good + strings.Repeat("A", 16<<10)), 401, "invalid_token"},
		{"changed", "/", bearing(good[:len(good)-4] + "AAAA"), 401, "invalid_token"},
		{"foreign", "/", bearing(other.token(nil)), 401, "invalid_token"},
		{"foreign key", "/", bearing(other.token(func(c *token.Claims) { c.Issuer, c.Audience = a.server.URL, jwt.ClaimStrings{a.server.URL} })), 401, "invalid_token"},
		{"expired", "/", bearing(a.token(func(c *token.Claims) { c.ExpiresAt = past })), 401, "invalid_token"},
		{"not yet valid", "/", bearing(a.token(func(c *token.Claims) { c.NotBefore = ahead })), 401, "invalid_token"},
		{"for ever", "/", bearing(a.token(func(c *token.Claims) { c.ExpiresAt = nil })), 401, "invalid_token"},
		{"another audience", "/", bearing(a.token(func(c *token.Claims) { c.Audience = jwt.ClaimStrings{"https://elsewhere"} })), 401, "invalid_token"},
		{"another function", "/", bearing(a.token(func(c *token.Claims) { c.Function.Permissions = []string{"openfaas-fn:digits"} })), 403, "insufficient_scope"},
		{"a longer name", "/", bearing(a.token(func(c *token.Claims) { c.Function.Permissions = []string{"openfaas-fn:iris2", "openfaas-fn:iri"} })), 403, "insufficient_scope"},
		{"another namespace", "/", bearing(a.token(func(c *token.Claims) { c.Function.Permissions = []string{"staging:*", "*-fn2:iris"} })), 403, "insufficient_scope"},
		{"no function", "/", bearing(a.token(func(c *token.Claims) { c.Function.Permissions = nil })), 403, "insufficient_scope"},
		{"meant for another function", "/", bearing(a.token(func(c *token.Claims) { c.Function.Audience = []string{"openfaas-fn:digits"} })), 403, "insufficient_scope"},
		{"another scope", "/", bearing(a.token(func(c *token.Claims) { c.Scope = "system" })), 403, "insufficient_scope"},
	} {
		for _, kind := range []string{"text/plain", "application/x-ndjson"} {
			header := c.header.Clone()
			if header == nil {
				header = http.Header{}
			}
			header.Set("Content-Type", kind)
			got := w.send(c.path, `"x"`, header)
			if got.status != c.status {
				t.Errorf("%s, %s: %s, want %d", c.name, kind, got, c.status)
				continue
			}
			challenge := got.header.Get("WWW-Authenticate")
			switch {
			case c.status == 200 && challenge != "", c.status != 200 && !strings.HasPrefix(challenge, `Bearer realm="IAM function invoke"`),
				c.code == "" && strings.Contains(challenge, "error="), c.code != "" && !strings.Contains(challenge, `error="`+c.code+`"`):
				t.Errorf("%s, %s: WWW-Authenticate: %s", c.name, kind, challenge)
			}
			if c.status != 200 {
				got.problem(t)
			}
		}
	}
	for _, path := range []string{"/_/health", "/_/ready", "/_/version"} {
		if got := w.get(path); got.status != http.StatusOK {
			t.Errorf("%s: %s", path, got)
		}
	}
	said := w.stderr.String()
	if !strings.Contains(said, "refused") || !strings.Contains(said, "call_id") {
		t.Error("jwt_auth_debug says nothing of refusals")
	}
	for _, part := range strings.Split(good, ".") {
		if strings.Contains(said, part) {
			t.Error("a part of a token is in the log")
		}
	}
}

func TestWatchdogServesOnWhileTheIssuerIsDownAndTakesItsNewKey(t *testing.T) {
	a := newAuthority(t)
	a.down.Store(true)
	w := a.guarded()
	w.eventually(10*time.Second, "waiting for the issuer's keys", func() bool {
		return strings.Contains(w.get("/_/ready").body, "tokens cannot be checked")
	})
	if got := w.send("/", "x", bearing(a.token(nil))); got.status != http.StatusServiceUnavailable {
		t.Errorf("without keys: %s", got)
	}
	a.down.Store(false)
	w.awaitReady()
	a.down.Store(true)
	for range 3 {
		if got := w.send("/", "x", bearing(a.token(nil))); got.status != http.StatusOK {
			t.Fatalf("the issuer is down: %s", got)
		}
	}
	old := a.token(nil)
	if got := w.send("/", "x", bearing(old)); got.status != http.StatusOK {
		t.Fatal(got)
	}
	a.rotate(token.EdDSA)
	a.down.Store(false)
	// The last fetch of keys is a moment ago, and there is a pause between two for unknown ones.
	w.eventually(30*time.Second, "accepting the new key's token", func() bool {
		return w.send("/", "x", bearing(a.token(nil))).status == http.StatusOK
	})
	if got := w.send("/", "x", bearing(old)); got.status != http.StatusUnauthorized {
		t.Errorf("a token of the key that is gone: %s", got)
	}
	before := a.fetches.Load()
	for i := range 200 {
		stranger, err := token.NewKey(token.EdDSA)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := stranger.Sign(a.claims())
		if err != nil {
			t.Fatal(err)
		}
		if got := w.send("/", "x", bearing(signed)); got.status != http.StatusUnauthorized {
			t.Fatalf("%d: %s", i, got)
		}
	}
	if n := a.fetches.Load() - before; n > 1 {
		t.Errorf("200 unknown keys made the watchdog fetch the keys %d times", n)
	}
}

func TestWatchdogRefusesARevokedTokenWithinItsBound(t *testing.T) {
	const bound = 2 * time.Second
	a := newAuthority(t)
	w := a.guarded(fmt.Sprint("revocation_bound=", bound))
	w.awaitReady()
	revoked, kept := a.claims(), a.claims()
	for _, c := range []*token.Claims{revoked, kept} {
		if got := w.send("/", "x", bearing(a.sign(c))); got.status != http.StatusOK {
			t.Fatal(got)
		}
	}
	signed := a.sign(revoked)
	w.send("/", "x", bearing(signed))
	a.revoked.Store(&token.RevocationList{Revoked: []token.RevokedToken{{ID: revoked.ID, Expires: revoked.ExpiresAt.Unix()}}})
	began := time.Now()
	w.eventually(bound, "refusing the revoked token", func() bool {
		got := w.send("/", "x", bearing(signed))
		return got.status == http.StatusUnauthorized && strings.Contains(got.body, "revoked")
	})
	t.Logf("known after %s of %s", time.Since(began).Round(time.Millisecond), bound)
	if got := w.send("/", "x", bearing(a.sign(kept))); got.status != http.StatusOK {
		t.Errorf("the other token: %s", got)
	}
}

func TestWatchdogThatCannotKnowItsFunctionDoesNotStartOpen(t *testing.T) {
	a := newAuthority(t)
	for _, missing := range []string{"OPENFAAS_NAME=", "OPENFAAS_NAMESPACE=", "authority=ftp://x"} {
		w := a.guarded(missing)
		<-w.ended
		name, _, _ := strings.Cut(missing, "=")
		if w.err == nil || !strings.Contains(w.stderr.String(), name) {
			t.Errorf("%s: %v: %s", missing, w.err, w.stderr.String())
		}
	}
}
