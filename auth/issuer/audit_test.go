package issuer

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Everything that opens something is sent in the right fields and in wrong ones, and none of it may be
// in the log.
func TestLogHasNoSecretAndNoToken(t *testing.T) {
	b := newBench(t)
	var secrets []string
	keep := func(s ...string) {
		for _, one := range s {
			if one != "" && !slices.Contains(secrets, one) {
				secrets = append(secrets, one)
			}
		}
	}
	shop, ops := b.add(t, "shop", "openfaas-fn:*"), b.addAdmin(t, "ops")
	keep(shop, ops, "guessed-secret")
	got := b.token(t, "shop", shop, "scope", "offline_access")
	second := b.refreshed(t, "shop", shop, got.RefreshToken)
	admin := b.token(t, "ops", ops).AccessToken
	narrow := b.exchanged(t, got.AccessToken, "audience", "openfaas-fn:iris")
	keep(got.AccessToken, got.RefreshToken, second.AccessToken, second.RefreshToken, admin, narrow.AccessToken)
	b.refreshed(t, "shop", shop, got.RefreshToken) // reuse
	b.exchanged(t, got.AccessToken)                // revoked
	b.post(t, revokePath, "client_id", "shop", "client_secret", shop, "token", second.AccessToken)
	b.post(t, revokePath, "client_id", "ops", "client_secret", ops, "token", admin)
	b.attempt(t, "shop", "guessed-secret")
	b.attempt(t, shop, shop) // the secret as the id
	for _, secret := range slices.Clone(secrets) {
		for _, field := range []string{"grant_type", "scope", "audience", "resource", "subject_token", "token", "refresh_token", "client_id", "subject_token_type", secret} {
			b.post(t, tokenPath, "grant_type", GrantTokenExchange, "subject_token_type", typeJWT, field, secret)
			b.post(t, tokenPath, "grant_type", GrantClientCredentials, "client_id", "shop", "client_secret", shop, field, secret)
			b.post(t, introspectPath+"?token="+secret, "token", secret)
		}
		b.send(t, func() *http.Request {
			r, _ := http.NewRequest(http.MethodPost, b.server.URL+tokenPath, strings.NewReader("grant_type=client_credentials"))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Authorization", "Bearer "+secret)
			return r
		}())
	}
	reset, err := b.ResetSecret("shop")
	if err != nil {
		t.Fatal(err)
	}
	keep(reset)
	for _, name := range []string{reset, admin} {
		b.RemoveClient(name)
		b.RevokeKey(name)
	}
	log := b.log.String()
	for _, secret := range secrets {
		for _, part := range append(strings.Split(secret, "."), secret, strings.TrimPrefix(secret, SecretPrefix)) {
			// The header and the claims of a token are public; what must not be there is its signature,
			// and the whole.
			if len(part) > 10 && strings.Contains(log, part) {
				t.Errorf("the log has %q", part)
			}
		}
	}
	if n := strings.Count(log, "\n"); n < 100 {
		t.Errorf("only %d lines", n)
	}
}

func TestAuditSaysWhoGotWhat(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "openfaas-fn:*")
	got := b.token(t, "shop", secret, "audience", "openfaas-fn:iris")
	b.attempt(t, "shop", "wrong")
	b.exchanged(t, got.AccessToken, "scope", "system")
	claims := b.claims(t, got.AccessToken)
	want := func(event string, fields ...string) {
		t.Helper()
		lines := b.log.lines(t, event)
		if len(lines) == 0 {
			t.Fatalf("no line %q in %s", event, b.log)
		}
		line := lines[len(lines)-1]
		for pair := range slices.Chunk(fields, 2) {
			if line[pair[0]] != pair[1] {
				t.Errorf("%s: %s is %v, want %s", event, pair[0], line[pair[0]], pair[1])
			}
		}
	}
	want("client added", "client_id", "shop", "functions", "openfaas-fn:*", "scope", "function")
	want("token issued", "client_id", "shop", "sub", "shop", "jti", claims.ID, "grant_type", GrantClientCredentials, "scope", "function",
		"functions", "openfaas-fn:*", "audience", "openfaas-fn:iris", "remote", "127.0.0.1")
	want("token refused", "client_id", "shop", "grant_type", GrantTokenExchange, "error", codeInvalidScope, "remote", "127.0.0.1")
	if lines := b.log.lines(t, "token refused"); len(lines) != 2 || lines[0]["error"] != codeInvalidClient || lines[0]["reason"] != wrongSecret || lines[0]["grant_type"] != GrantClientCredentials {
		t.Errorf("%v", lines)
	}
	if err := b.RemoveClient("shop"); err != nil {
		t.Fatal(err)
	}
	want("client removed", "client_id", "shop")
}

func TestMetricsCountIssuesAndRefusals(t *testing.T) {
	registry := prometheus.NewRegistry()
	b := newBench(t, func(c *Config) { c.Metrics = registry })
	secret := b.add(t, "shop", "*")
	got := b.token(t, "shop", secret)
	b.exchanged(t, got.AccessToken)
	b.exchanged(t, "x")
	b.attempt(t, "shop", "wrong")
	b.post(t, revokePath, "client_id", "shop", "client_secret", secret, "token", got.AccessToken)
	b.clock.pass(time.Second)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"faas_auth_tokens_issued_total client_credentials":    1,
		"faas_auth_tokens_issued_total " + GrantTokenExchange: 1,
		"faas_auth_refusals_total invalid_request":            1,
		"faas_auth_refusals_total invalid_client":             1,
		"faas_auth_secret_hashes_total":                       3,
		"faas_auth_revoked_tokens":                            2,
		"faas_auth_revoked_clients":                           0,
		"faas_auth_signing_keys":                              1,
		"faas_auth_clients":                                   1,
	} {
		if values[name] != want {
			t.Errorf("%s is %v, want %v", name, values[name], want)
		}
	}
}
