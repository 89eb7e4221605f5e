package issuer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/auth/reload"
)

func TestTrustFollowsItsFile(t *testing.T) {
	first, second := newProvider(t), newProvider(t)
	b := newBench(t)
	file := filepath.Join(t.TempDir(), "trust.yml")
	say := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	entry := func(p *provider, functions string) string {
		return fmt.Sprintf("- {issuer: %q, audience: faas, rules: [{match: '*', functions: ['openfaas-fn:%s']}]}\n", p.URL, functions)
	}
	exchange := func(p *provider) (may string, err error) {
		raw := p.sign(t, jwt.MapClaims{"iss": p.URL, "aud": "faas", "sub": "ann", "exp": b.clock.Now().Add(time.Minute).Unix(), "iat": b.clock.Now().Unix()})
		got, err := sdk.ExchangeIDToken(b.server.URL+tokenPath, raw, sdk.WithScope([]string{"function"}))
		if err != nil {
			return "", err
		}
		return strings.Join(b.claims(t, got.IDToken).Function.Permissions, " "), nil
	}
	wait := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(5 * reload.Every); !done(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not in time: %s", what)
			}
		}
	}
	say(entry(first, "iris"))
	stop, err := b.FollowTrust(file)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	wait("keys of the first", func() bool { may, _ := exchange(first); return may == "openfaas-fn:iris" })
	kept, fetches := b.outside.get(first.URL), first.fetches.Load()
	if _, err := exchange(second); err == nil {
		t.Error("an issuer that is not in the file is trusted")
	}

	say(entry(first, "iris") + entry(second, "ozone"))
	wait("the second", func() bool { may, _ := exchange(second); return may == "openfaas-fn:ozone" })
	if b.outside.get(first.URL) != kept || first.fetches.Load() != fetches {
		t.Error("the entry that stayed as it was lost its keys")
	}

	say(entry(first, "iris") + "- {issuer: " + second.URL + "}\n") // without a rule
	time.Sleep(3 * reload.Every)
	if may, err := exchange(second); may != "openfaas-fn:ozone" {
		t.Errorf("a file with an error took effect: %q %v", may, err)
	}

	say(entry(first, "digits"))
	wait("other rights", func() bool { may, _ := exchange(first); return may == "openfaas-fn:digits" })
	if _, err := exchange(second); err == nil {
		t.Error("an issuer that is no more in the file is trusted")
	}
}

func TestTrustIsSetWholeOrNotAtAll(t *testing.T) {
	p := newProvider(t)
	rules := []Rule{{Match: "*", Functions: []string{"*"}}}
	good := Trust{Issuer: p.URL, Rules: rules}
	b := newBench(t, func(c *Config) { c.Trust = []Trust{good} })
	before := b.outside.get(p.URL)
	for says, all := range map[string][]Trust{
		"named twice":        {good, good},
		"this issuer itself": {good, {Issuer: b.cfg.URL, Rules: rules}},
		"at least one rule":  {{Issuer: "https://new.example", Rules: rules}, {Issuer: p.URL}},
		"must be an http":    {{Issuer: "https://new.example", Rules: rules}, {Issuer: "ftp://x", Rules: rules}},
		"no such file":       {{Issuer: "https://new.example", Rules: rules, CAFile: filepath.Join(t.TempDir(), "none")}},
	} {
		if err := b.SetTrust(all); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", all, err, says)
		}
		if b.outside.get(p.URL) != before || b.outside.get("https://new.example") != nil {
			t.Errorf("%q changed what holds", says)
		}
	}
}
