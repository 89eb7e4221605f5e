package issuer

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/faas-predict/faas-predict/auth/token"
)

func TestScopesAndAudiencesOfClientCredentials(t *testing.T) {
	b := newBench(t)
	secrets := map[string]string{"shop": b.add(t, "shop", "openfaas-fn:iris*", "dev:*"), "ops": b.addAdmin(t, "ops")}
	for _, c := range []struct {
		client      string
		form        []string
		scope       string
		permissions string
		audience    string
		code        string
	}{
		{client: "shop", scope: "function", permissions: "openfaas-fn:iris* dev:*"},
		{client: "shop", form: []string{"scope", ""}, scope: "function", permissions: "openfaas-fn:iris* dev:*"},
		{client: "shop", form: []string{"audience", "openfaas-fn:iris-2", "audience", "dev:x*"}, scope: "function", permissions: "openfaas-fn:iris* dev:*", audience: "openfaas-fn:iris-2 dev:x*"},
		{client: "shop", form: []string{"audience", b.cfg.URL, "resource", b.cfg.URL}, scope: "function", permissions: "openfaas-fn:iris* dev:*"},
		{client: "shop", form: []string{"scope", "system"}, code: codeInvalidScope},
		{client: "shop", form: []string{"scope", "function system"}, code: codeInvalidScope},
		{client: "shop", form: []string{"scope", "openid"}, code: codeInvalidScope},
		{client: "shop", form: []string{"audience", "openfaas-fn:*"}, code: codeInvalidTarget},
		{client: "shop", form: []string{"audience", "openfaas-fn:tulip"}, code: codeInvalidTarget},
		{client: "shop", form: []string{"audience", "*"}, code: codeInvalidTarget},
		{client: "shop", form: []string{"audience", "*:*"}, code: codeInvalidTarget},
		{client: "shop", form: []string{"audience", "dev:x", "audience", "prod:x"}, code: codeInvalidTarget},
		{client: "shop", form: []string{"audience", "iris"}, code: codeInvalidTarget},
		{client: "shop", form: []string{"audience", "a:b:c"}, code: codeInvalidTarget},
		{client: "shop", form: []string{"resource", "https://elsewhere.example"}, code: codeInvalidTarget},
		{client: "ops", scope: "function system", permissions: "*"},
		{client: "ops", form: []string{"scope", "system"}, scope: "system"},
		{client: "ops", form: []string{"scope", "function"}, scope: "function", permissions: "*"},
		{client: "ops", form: []string{"audience", "dev:x"}, scope: "function", permissions: "*", audience: "dev:x"},
		{client: "ops", form: []string{"scope", "function system", "audience", "dev:x"}, code: codeInvalidScope},
	} {
		got := b.post(t, tokenPath, append([]string{"grant_type", GrantClientCredentials, "client_id", c.client, "client_secret", secrets[c.client]}, c.form...)...)
		if c.code != "" {
			got.wants(t, http.StatusBadRequest, c.code)
			continue
		}
		if got.Status != http.StatusOK {
			t.Errorf("%s %v: %s", c.client, c.form, got.Body)
			continue
		}
		claims := b.claims(t, got.AccessToken)
		if claims.Scope != c.scope || strings.Join(claims.Function.Permissions, " ") != c.permissions || strings.Join(claims.Function.Audience, " ") != c.audience {
			t.Errorf("%s %v: scope %q, function %+v", c.client, c.form, claims.Scope, claims.Function)
		}
	}
}

func TestClientsLifetimeReplacesTheIssuers(t *testing.T) {
	b := newBench(t)
	secret, err := b.AddClient(Client{Name: "shop", Functions: []string{"*"}, AccessTTLSeconds: 7200})
	if err != nil {
		t.Fatal(err)
	}
	got := b.token(t, "shop", secret)
	if c := b.claims(t, got.AccessToken); got.ExpiresIn != 7200 || c.ExpiresAt.Sub(c.IssuedAt.Time) != 2*time.Hour {
		t.Errorf("%+v", got)
	}
	if k := b.keys[0]; k.LongestTTL != 2*time.Hour {
		t.Errorf("the key that signed it is kept for %s", k.LongestTTL)
	}
}

func TestRegistrationRefusesWhatCouldBeMisread(t *testing.T) {
	b := newBench(t)
	for want, c := range map[string]Client{
		`client name ""`:           {Functions: []string{"*"}},
		`client name "-x"`:         {Name: "-x", Functions: []string{"*"}},
		`client name "Shop"`:       {Name: "Shop", Functions: []string{"*"}},
		`client name "a|b"`:        {Name: "a|b", Functions: []string{"*"}},
		`at least one function`:    {Name: "a"},
		`function pattern "iris"`:  {Name: "a", Functions: []string{"iris"}},
		`function pattern "**"`:    {Name: "a", Functions: []string{"**"}},
		`function pattern ":x"`:    {Name: "a", Functions: []string{":x"}},
		`function pattern "x:"`:    {Name: "a", Functions: []string{"x:"}},
		`function pattern ""`:      {Name: "a", Functions: []string{""}},
		`function pattern "a:b:c"`: {Name: "a", Functions: []string{"a:b:c"}},
		`function pattern "a:b c"`: {Name: "a", Functions: []string{"a:b c"}},
		`function pattern "a:b/c"`: {Name: "a", Functions: []string{"a:b/c"}},
		`lifetime of its tokens`:   {Name: "a", Functions: []string{"*"}, AccessTTLSeconds: 90000},
		`together`:                 {Name: "a", Functions: slices.Repeat([]string{"n:" + strings.Repeat("f", 200)}, 20)},
	} {
		if _, err := b.AddClient(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", c, err, want)
		}
	}
	b.add(t, "shop", "*")
	if _, err := b.AddClient(Client{Name: "shop", Functions: []string{"*"}}); err == nil {
		t.Error("registered twice")
	}
	if n := len(b.Clients()); n != 1 {
		t.Errorf("%d clients", n)
	}
}

// A token with as much in it as anybody may have must still be one that verifiers look at.
func TestLargestTokenIsAccepted(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Algorithm = token.RS256 })
	var patterns []string
	for n := range maxPatternBytes / 128 {
		patterns = append(patterns, fmt.Sprintf("openfaas-fn:%0116d", n))
	}
	secret := b.add(t, strings.Repeat("c", 63), patterns...)
	form := []string{"scope", "function"}
	for n := range maxAudienceBytes / 128 {
		form = append(form, "audience", patterns[n])
	}
	got := b.token(t, strings.Repeat("c", 63), secret, form...)
	b.claims(t, got.AccessToken)
	t.Logf("%d bytes", len(got.AccessToken))
}

// What one pattern covers, no name that it stands for escapes.
func TestCoverIsNeverWiderThanMatch(t *testing.T) {
	part := rapid.StringMatching(`[ab*]{1,4}`)
	rapid.Check(t, func(t *rapid.T) {
		wide := part.Draw(t, "wide namespace") + ":" + part.Draw(t, "wide function")
		narrow := part.Draw(t, "narrow namespace") + ":" + part.Draw(t, "narrow function")
		if rapid.Bool().Draw(t, "all") {
			wide = "*"
		}
		if !covers(token.Grants{Permissions: []string{wide}}, narrow) {
			return
		}
		expanded := ""
		for _, r := range narrow {
			if r == '*' {
				expanded += rapid.StringMatching(`[abc]{0,3}`).Draw(t, "*")
			} else {
				expanded += string(r)
			}
		}
		namespace, function, _ := strings.Cut(expanded, ":")
		if token.Match(narrow, namespace, function) && !token.Match(wide, namespace, function) {
			t.Fatalf("%s covers %s, but not %s", wide, narrow, expanded)
		}
	})
}

func TestChangedClientLosesItsTokens(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	other := b.token(t, "other", b.add(t, "other", "*"))
	changes := map[string]func() error{
		"reset":   func() (err error) { secret, err = b.ResetSecret("shop"); return err },
		"disable": func() error { return b.SetDisabled("shop", true) },
		"revoke":  func() error { return b.RevokeTokens("shop") },
		"remove":  func() error { return b.RemoveClient("shop") },
	}
	for _, name := range []string{"reset", "disable", "revoke", "remove"} {
		before := b.token(t, "shop", secret, "scope", "offline_access")
		narrower := b.exchanged(t, before.AccessToken, "audience", "a:b")
		old := secret
		if err := changes[name](); err != nil {
			t.Fatal(err)
		}
		if b.holds(t, before.AccessToken) || b.holds(t, narrower.AccessToken) || b.families(t, "shop") != 0 {
			t.Errorf("%s: a token from before holds", name)
		}
		if name != "revoke" {
			got := b.post(t, tokenPath, "grant_type", GrantClientCredentials, "client_id", "shop", "client_secret", old)
			got.wants(t, http.StatusUnauthorized, codeInvalidClient)
		}
		b.exchanged(t, before.AccessToken).wants(t, http.StatusBadRequest, codeInvalidRequest)
		if name == "disable" {
			if err := b.SetDisabled("shop", false); err != nil {
				t.Fatal(err)
			}
		}
		if name != "remove" {
			// In the same second as the change: the new token is not among the old ones.
			if after := b.token(t, "shop", secret); !b.holds(t, after.AccessToken) {
				t.Errorf("%s: a token from after does not hold", name)
			}
		}
		b.clock.pass(2 * time.Second)
	}
	if !b.holds(t, other.AccessToken) {
		t.Error("another client's token does not hold")
	}
	// Somebody else of that name later gets nothing of the first one's.
	again := b.token(t, "shop", b.add(t, "shop", "a:*"))
	if !b.holds(t, again.AccessToken) {
		t.Error("a client of an earlier one's name gets no tokens")
	}
	if err := b.RemoveClient("nobody"); err == nil {
		t.Error("removed nobody")
	}
}
