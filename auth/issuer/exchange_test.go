package issuer

import (
	"crypto"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/auth/token"
)

func TestExchangeNarrowsAndNeverWidens(t *testing.T) {
	b := newBench(t)
	shop := b.token(t, "shop", b.add(t, "shop", "openfaas-fn:iris*", "dev:*")).AccessToken
	ops := b.addAdmin(t, "ops")
	admin := b.token(t, "ops", ops).AccessToken
	system := b.token(t, "ops", ops, "scope", "system").AccessToken
	narrowed := b.exchanged(t, shop, "audience", "openfaas-fn:iris-2").AccessToken
	for _, c := range []struct {
		name, subject string
		form          []string
		scope         string
		permissions   string
		code          string
	}{
		{name: "nothing asked", subject: shop, scope: "function", permissions: "openfaas-fn:iris* dev:*"},
		{name: "one function", subject: shop, form: []string{"audience", "dev:x", "scope", "function"}, scope: "function", permissions: "dev:x"},
		{name: "a pattern within", subject: shop, form: []string{"audience", "openfaas-fn:iris-*"}, scope: "function", permissions: "openfaas-fn:iris-*"},
		{name: "a wider pattern", subject: shop, form: []string{"audience", "openfaas-fn:*"}, code: codeInvalidTarget},
		{name: "a pattern that only looks narrower", subject: shop, form: []string{"audience", "*:iris"}, code: codeInvalidTarget},
		{name: "another function", subject: shop, form: []string{"audience", "openfaas-fn:tulip"}, code: codeInvalidTarget},
		{name: "one of two", subject: shop, form: []string{"audience", "dev:x", "audience", "prod:x"}, code: codeInvalidTarget},
		{name: "everything", subject: shop, form: []string{"audience", "*"}, code: codeInvalidTarget},
		{name: "system", subject: shop, form: []string{"scope", "system"}, code: codeInvalidScope},
		{name: "system besides", subject: shop, form: []string{"scope", "function system"}, code: codeInvalidScope},
		{name: "a refresh token", subject: shop, form: []string{"scope", "function offline_access"}, code: codeInvalidScope},
		{name: "back from narrowed", subject: narrowed, form: []string{"audience", "openfaas-fn:iris-3"}, code: codeInvalidTarget},
		{name: "back from narrowed, by pattern", subject: narrowed, form: []string{"audience", "openfaas-fn:iris*"}, code: codeInvalidTarget},
		{name: "narrowed again", subject: narrowed, scope: "function", permissions: "openfaas-fn:iris-2"},
		{name: "administrator", subject: admin, scope: "function system", permissions: "*"},
		{name: "administrator for a function", subject: admin, form: []string{"audience", "a:b"}, scope: "function", permissions: "a:b"},
		{name: "administrator, narrowed in name only", subject: admin, form: []string{"audience", "a:b", "scope", "system"}, code: codeInvalidScope},
		{name: "system alone", subject: system, scope: "system"},
		{name: "functions from system alone", subject: system, form: []string{"audience", "a:b"}, code: codeInvalidScope},
	} {
		got := b.exchanged(t, c.subject, c.form...)
		if c.code != "" {
			if got.Error != c.code || got.Status != http.StatusBadRequest {
				t.Errorf("%s: %d %s, want %s", c.name, got.Status, got.Body, c.code)
			}
			continue
		}
		if got.Status != http.StatusOK || got.IssuedTokenType != typeAccessToken || got.TokenType != "Bearer" || got.RefreshToken != "" || got.Scope != c.scope {
			t.Errorf("%s: %s", c.name, got.Body)
			continue
		}
		claims := b.claims(t, got.AccessToken)
		if claims.Scope != c.scope || strings.Join(claims.Function.Permissions, " ") != c.permissions {
			t.Errorf("%s: scope %q, functions %+v", c.name, claims.Scope, claims.Function)
		}
	}
}

func TestExchangedTokenHoldsNoLongerThanTheFirst(t *testing.T) {
	b := newBench(t)
	shop := b.token(t, "shop", b.add(t, "shop", "*")).AccessToken
	b.clock.pass(20 * time.Minute)
	got := b.exchanged(t, shop, "audience", "a:b")
	if c := b.claims(t, got.AccessToken); !c.ExpiresAt.Equal(b.claims(t, shop).ExpiresAt.Time) || got.ExpiresIn < 599 || got.ExpiresIn > 601 {
		t.Errorf("expires %s, in %d s", c.ExpiresAt, got.ExpiresIn)
	}
	b.clock.pass(10*time.Minute + 2*time.Second)
	b.exchanged(t, shop, "audience", "a:b").wants(t, http.StatusBadRequest, codeInvalidRequest)
}

func TestExchangeRefusesWhatIsNoGoodToken(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	good := b.token(t, "shop", secret).AccessToken
	stranger, err := token.NewKey(token.ES256)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := stranger.Sign(b.claims(t, good))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	none := jwt.NewWithClaims(jwt.SigningMethodNone, b.claims(t, good))
	none.Header["kid"] = b.keys[0].ID()
	unsigned, err := none.SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	revoked := b.token(t, "shop", secret).AccessToken
	if got := b.post(t, revokePath, "client_id", "shop", "client_secret", secret, "token", revoked); got.Status != http.StatusOK {
		t.Fatal(got.Body)
	}
	for name, raw := range map[string]string{
		"another key under the issuer's name": forged, "no signature": unsigned, "cut signature": parts[0] + "." + parts[1] + ".",
		"changed claims": parts[0] + "." + parts[1] + "x." + parts[2], "no token": "x", "huge": strings.Repeat("x", 60<<10), "revoked": revoked,
	} {
		got := b.exchanged(t, raw)
		if got.Status != http.StatusBadRequest || got.Error != codeInvalidRequest || strings.Contains(got.Body, raw[:min(20, len(raw))]) && len(raw) > 1 {
			t.Errorf("%s: %d %s", name, got.Status, got.Body)
		}
	}
	for _, form := range [][]string{
		{"subject_token", good},
		{"subject_token", good, "subject_token_type", "urn:ietf:params:oauth:token-type:saml2"},
		{"subject_token_type", typeIDToken},
		{"subject_token", good, "subject_token_type", typeIDToken, "actor_token", good},
		{"subject_token", good, "subject_token_type", typeIDToken, "requested_token_type", typeIDToken},
	} {
		b.post(t, tokenPath, append(form, "grant_type", GrantTokenExchange)...).wants(t, http.StatusBadRequest, codeInvalidRequest)
	}
	got := b.exchanged(t, good, "client_id", "shop", "client_secret", "wrong")
	got.wants(t, http.StatusUnauthorized, codeInvalidClient)
	if b.exchanged(t, good, "requested_token_type", typeAccessToken).Status != http.StatusOK {
		t.Error("the good token is refused")
	}
}

func TestRevokingTakesAlongWhatWasExchanged(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	first, second := b.token(t, "shop", secret).AccessToken, b.token(t, "shop", secret).AccessToken
	child := b.exchanged(t, first, "audience", "a:*").AccessToken
	grandchild := b.exchanged(t, child, "audience", "a:b").AccessToken
	nephew := b.exchanged(t, second, "audience", "a:b").AccessToken
	b.post(t, revokePath, "client_id", "shop", "client_secret", secret, "token", first)
	for name, raw := range map[string]string{"the token": first, "what was made of it": child, "what was made of that": grandchild} {
		if b.holds(t, raw) {
			t.Errorf("%s holds", name)
		}
	}
	if !b.holds(t, second) || !b.holds(t, nephew) {
		t.Error("another token was revoked too")
	}
}

// provider is an outside OpenID Connect issuer.
type provider struct {
	*httptest.Server
	key     *token.Key
	signer  crypto.Signer
	fetches atomic.Int64
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{}
	var err error
	if p.key, err = token.NewKey(token.RS256); err != nil {
		t.Fatal(err)
	}
	raw, _ := p.key.MarshalJSON()
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(raw); err != nil {
		t.Fatal(err)
	}
	p.signer = jwk.Key.(crypto.Signer)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, p.URL, p.URL+"/keys")
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		p.fetches.Add(1)
		raw, _ := json.Marshal(token.PublicSet(p.key))
		w.Write(raw)
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

func (p *provider) sign(t *testing.T, claims jwt.MapClaims) string {
	t.Helper()
	j := jwt.NewWithClaims(jwt.SigningMethodRS256, claims)
	j.Header["kid"] = p.key.ID()
	raw, err := j.SignedString(p.signer)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestOutsideTokensGetWhatTheRulesGive(t *testing.T) {
	p := newProvider(t)
	trust, err := ParseTrust([]byte(fmt.Sprintf(`
- issuer: %s
  audience: faas
  claim: realm_access.groups
  rules:
    - {match: "team-*", functions: ["openfaas-fn:iris*"]}
    - {match: team-ml, functions: ["dev:*"]}
    - {match: operators, admin: true}
`, p.URL)))
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, func(c *Config) { c.Trust = trust })
	if err := b.outside.get(p.URL).authority.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	claims := func(change ...any) jwt.MapClaims {
		c := jwt.MapClaims{"iss": p.URL, "aud": "faas", "sub": "ann", "exp": b.clock.Now().Add(5 * time.Minute).Unix(), "iat": b.clock.Now().Unix()}
		groups := []any{}
		for n := 0; n < len(change); n += 2 {
			if change[n] == "groups" {
				groups = change[n+1].([]any)
			} else {
				c[change[n].(string)] = change[n+1]
			}
		}
		c["realm_access"] = map[string]any{"groups": groups}
		return c
	}
	got, err := sdk.ExchangeIDToken(b.server.URL+tokenPath, p.sign(t, claims("groups", []any{"team-shop"})), sdk.WithScope([]string{"function"}), sdk.WithAudience([]string{"openfaas-fn:iris"}))
	if err != nil {
		t.Fatal(err)
	}
	c := b.claims(t, got.IDToken)
	if c.Subject != p.URL+"|ann" || c.ClientID != c.Subject || !c.Function.Allow("openfaas-fn", "iris") || c.Function.Allow("openfaas-fn", "iris-2") || c.ExpiresAt.After(b.clock.Now().Add(5*time.Minute)) {
		t.Errorf("%+v", c)
	}
	for _, row := range []struct {
		name        string
		raw         string
		form        []string
		scope       string
		permissions string
		code        string
	}{
		{name: "two rules", raw: p.sign(t, claims("groups", []any{"team-ml", "x"})), scope: "function", permissions: "openfaas-fn:iris* dev:*"},
		{name: "administrator", raw: p.sign(t, claims("groups", []any{"operators"})), scope: "system function", permissions: "*"},
		{name: "no rule", raw: p.sign(t, claims("groups", []any{"strangers"})), code: codeInvalidRequest},
		{name: "no claim", raw: p.sign(t, claims()), code: codeInvalidRequest},
		{name: "beyond its rules", raw: p.sign(t, claims("groups", []any{"team-a"})), form: []string{"audience", "dev:x"}, code: codeInvalidTarget},
		{name: "system without a rule for it", raw: p.sign(t, claims("groups", []any{"team-a"})), form: []string{"scope", "system"}, code: codeInvalidScope},
		{name: "meant for others", raw: p.sign(t, claims("groups", []any{"operators"}, "aud", "other")), code: codeInvalidRequest},
		{name: "expired", raw: p.sign(t, claims("groups", []any{"operators"}, "exp", b.clock.Now().Add(-time.Minute).Unix())), code: codeInvalidRequest},
		{name: "of nobody", raw: p.sign(t, claims("groups", []any{"operators"}, "sub", "")), code: codeInvalidRequest},
		{name: "another issuer's name", raw: p.sign(t, claims("groups", []any{"operators"}, "iss", "https://elsewhere.example")), code: codeInvalidRequest},
		{name: "our name", raw: p.sign(t, claims("groups", []any{"operators"}, "iss", b.cfg.URL, "aud", b.cfg.URL)), code: codeInvalidRequest},
	} {
		got := b.exchanged(t, row.raw, row.form...)
		if row.code != "" {
			if got.Error != row.code {
				t.Errorf("%s: %s, want %s", row.name, got.Body, row.code)
			}
			continue
		}
		c := b.claims(t, got.AccessToken)
		if c.Scope != row.scope || strings.Join(c.Function.Permissions, " ") != row.permissions {
			t.Errorf("%s: scope %q, functions %v", row.name, c.Scope, c.Function.Permissions)
		}
	}
	// Whoever came from outside can be shut out by the name in the audit log.
	ann := b.exchanged(t, p.sign(t, claims("groups", []any{"team-shop"}))).AccessToken
	if err := b.RevokeTokens(p.URL + "|ann"); err != nil || b.holds(t, ann) || b.holds(t, got.IDToken) {
		t.Errorf("tokens hold: %v", err)
	}
	// The issuer goes away: known keys go on, as long as this process lives.
	p.Close()
	if got := b.exchanged(t, p.sign(t, claims("sub", "eve", "groups", []any{"team-x"}))); got.Status != http.StatusOK {
		t.Error(got.Body)
	}
}

func TestOutsideKeysCanBeGivenWithoutDiscovery(t *testing.T) {
	p := newProvider(t)
	name := "http://kubernetes.default.svc.cluster.local"
	b := newBench(t, func(c *Config) {
		c.Trust = []Trust{{Issuer: name, JWKSURI: p.URL + "/keys", Rules: []Rule{{Match: "system:serviceaccount:shop:*", Functions: []string{"openfaas-fn:*"}}}}}
	})
	raw := p.sign(t, jwt.MapClaims{"iss": name, "aud": []string{b.cfg.URL}, "sub": "system:serviceaccount:shop:default", "exp": b.clock.Now().Add(time.Hour).Unix()})
	deadline := time.Now().Add(10 * time.Second)
	got := b.exchanged(t, raw)
	for got.Status == http.StatusServiceUnavailable && time.Now().Before(deadline) { // keys are fetched in the background
		time.Sleep(5 * time.Millisecond)
		got = b.exchanged(t, raw)
	}
	if got.Status != http.StatusOK || b.claims(t, got.AccessToken).Subject != name+"|system:serviceaccount:shop:default" {
		t.Error(got.Body)
	}
}

func TestTrustIsRefusedWhenItSaysTooLittle(t *testing.T) {
	for want, text := range map[string]string{
		"at least one rule":      `[{issuer: "https://a"}]`,
		"what to match":          `[{issuer: "https://a", rules: [{functions: ["*"]}]}]`,
		"must name functions":    `[{issuer: "https://a", rules: [{match: x}]}]`,
		`function pattern "x"`:   `[{issuer: "https://a", rules: [{match: x, functions: [x]}]}]`,
		"named twice":            `[{issuer: "https://a", rules: [{match: x, admin: true}]}, {issuer: "https://a", rules: [{match: x, admin: true}]}]`,
		"this issuer itself":     `[{issuer: "http://self", rules: [{match: x, admin: true}]}]`,
		"jwks_uri must be":       `[{issuer: "https://a", jwks_uri: "file:///x", rules: [{match: x, admin: true}]}]`,
		"field admn not found":   `[{issuer: "https://a", rules: [{match: x, admn: true}]}]`,
		"ca_file":                `[{issuer: "https://a", ca_file: /nowhere, rules: [{match: x, admin: true}]}]`,
		"must be an http or htt": `[{issuer: "a", rules: [{match: x, admin: true}]}]`,
	} {
		trust, err := ParseTrust([]byte(text))
		if err == nil {
			var i *Issuer
			if i, err = Open(Config{URL: "http://self", Dir: t.TempDir(), Trust: trust}); err == nil {
				i.Close()
			}
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	if all, err := ParseTrust(nil); err != nil || len(all) != 0 {
		t.Errorf("an empty file: %v, %v", all, err)
	}
}

func TestClaimsAreStringsListsOrPaths(t *testing.T) {
	claims := map[string]any{"sub": "a", "groups": []any{"x", 1, "y"}, "https://x.example/roles": "r", "a": map[string]any{"b": map[string]any{"c": "deep"}}, "n": 1.0}
	for name, want := range map[string][]string{"sub": {"a"}, "groups": {"x", "y"}, "https://x.example/roles": {"r"}, "a.b.c": {"deep"}, "a.b": nil, "a.x.c": nil, "n": nil, "none": nil, "sub.x": nil} {
		if got := claimed(claims, name); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
