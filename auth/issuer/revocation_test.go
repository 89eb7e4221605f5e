package issuer

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/faas-predict/faas-predict/auth/token"
)

func (b *bench) list(t testing.TB) (out token.RevocationList) {
	t.Helper()
	r, _ := http.NewRequest(http.MethodGet, b.server.URL+revocationsPath, nil)
	if err := json.Unmarshal([]byte(b.send(t, r).Body), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (b *bench) introspected(t testing.TB, name, secret, raw string) (out introspection) {
	t.Helper()
	got := b.post(t, introspectPath, "client_id", name, "client_secret", secret, "token", raw)
	if err := json.Unmarshal([]byte(got.Body), &out); err != nil || got.Status != http.StatusOK {
		t.Fatal(got.Body, err)
	}
	return out
}

func TestRevocationIsTheClientsOrAnAdministrators(t *testing.T) {
	b := newBench(t)
	shop, other, ops := b.add(t, "shop", "*"), b.add(t, "other", "*"), b.addAdmin(t, "ops")
	revoke := func(name, secret, raw string) reply {
		return b.post(t, revokePath, "client_id", name, "client_secret", secret, "token", raw, "token_type_hint", "access_token")
	}
	got := b.token(t, "shop", shop, "scope", "offline_access")
	revoke("other", other, got.AccessToken).wants(t, http.StatusBadRequest, codeUnauthorized)
	if r := revoke("other", other, got.RefreshToken); r.Status != http.StatusOK { // not to be told from one that there is not
		t.Error(r.Body)
	}
	b.post(t, revokePath, "token", got.AccessToken).wants(t, http.StatusUnauthorized, codeInvalidClient)
	revoke("shop", shop, "").wants(t, http.StatusBadRequest, codeInvalidRequest)
	if !b.holds(t, got.AccessToken) || b.families(t, "shop") != 1 {
		t.Fatal("somebody else could revoke it")
	}
	for range 2 { // the second time there is nothing to do
		if r := revoke("shop", shop, got.AccessToken); r.Status != http.StatusOK || r.Body != "" {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	}
	if r := revoke("shop", shop, "not a token"); r.Status != http.StatusOK {
		t.Error(r.Body)
	}
	if b.holds(t, got.AccessToken) || len(b.log.lines(t, "token revoked")) != 1 {
		t.Errorf("it holds, or the audit log has %v", b.log.lines(t, "token revoked"))
	}
	// A refresh token takes along what came of it, whoever revokes it.
	for _, c := range [][2]string{{"shop", shop}, {"ops", ops}} {
		got := b.token(t, "shop", shop, "scope", "offline_access")
		revoke(c[0], c[1], got.RefreshToken)
		if b.holds(t, got.AccessToken) || b.refreshed(t, "shop", shop, got.RefreshToken).Status == http.StatusOK {
			t.Errorf("revoked by %s, it holds", c[0])
		}
	}
	byAdmin := b.token(t, "shop", shop).AccessToken
	if revoke("ops", ops, byAdmin); b.holds(t, byAdmin) {
		t.Error("an administrator cannot revoke")
	}
}

func TestIntrospectionTellsOnlyItsOwner(t *testing.T) {
	b := newBench(t)
	shop, other, ops := b.add(t, "shop", "a:*"), b.add(t, "other", "*"), b.addAdmin(t, "ops")
	got := b.token(t, "shop", shop, "scope", "offline_access")
	for _, c := range [][2]string{{"shop", shop}, {"ops", ops}} {
		in := b.introspected(t, c[0], c[1], got.AccessToken)
		if !in.Active || in.TokenType != "Bearer" || in.ClientID != "shop" || in.Scope != "function" || in.Issuer != b.cfg.URL || in.ID == "" || in.Expires-in.Issued != 1800 || !slices.Equal(in.Function.Permissions, []string{"a:*"}) {
			t.Errorf("%s: %+v", c[0], in)
		}
		if in := b.introspected(t, c[0], c[1], got.RefreshToken); !in.Active || in.TokenType != "refresh_token" || in.ClientID != "shop" || in.Scope != "function offline_access" {
			t.Errorf("%s: %+v", c[0], in)
		}
	}
	if in := b.introspected(t, "other", other, got.AccessToken); !cmp.Equal(in, introspection{}) {
		t.Errorf("%+v", in)
	}
	if in := b.introspected(t, "other", other, got.RefreshToken); !cmp.Equal(in, introspection{}) {
		t.Errorf("%+v", in)
	}
	if in := b.introspected(t, "shop", shop, "garbage"); !cmp.Equal(in, introspection{}) {
		t.Errorf("%+v", in)
	}
	b.post(t, introspectPath, "token", got.AccessToken).wants(t, http.StatusUnauthorized, codeInvalidClient)
	next := b.refreshed(t, "shop", shop, got.RefreshToken)
	if b.introspected(t, "shop", shop, got.RefreshToken).Active || !b.introspected(t, "shop", shop, next.RefreshToken).Active {
		t.Error("a used refresh token is active, or the next one is not")
	}
	b.clock.pass(DefaultAccessTTL + 2*time.Second)
	if in := b.introspected(t, "shop", shop, got.AccessToken); !cmp.Equal(in, introspection{}) {
		t.Errorf("expired: %+v", in)
	}
}

func TestListIsServedUntilItDoesNotMatterAnyMore(t *testing.T) {
	b := newBench(t)
	shop := b.add(t, "shop", "*")
	if l := b.list(t); len(l.Revoked) != 0 || len(l.Clients) != 0 {
		t.Fatalf("%+v", l)
	}
	raw := b.token(t, "shop", shop).AccessToken
	c := b.claims(t, raw)
	b.post(t, revokePath, "client_id", "shop", "client_secret", shop, "token", raw)
	b.add(t, "gone", "*")
	if err := b.RemoveClient("gone"); err != nil {
		t.Fatal(err)
	}
	l := b.list(t)
	if len(l.Revoked) != 2 || !slices.Contains(l.Revoked, token.RevokedToken{ID: c.ID, Expires: c.ExpiresAt.Unix()}) || len(l.Clients) != 1 || l.Clients[0].ClientID != "gone" || l.Clients[0].Before != b.clock.Now().Unix() {
		t.Errorf("%+v", l)
	}
	// A verifier elsewhere that has this list refuses what this one refuses.
	if set := token.NewRevocationSet(l, b.clock.Now()); !set.Revoked(c.ID, "shop", c.IssuedAt.Time) || set.Revoked("other", "shop", c.IssuedAt.Time) {
		t.Error("verifiers would not refuse it")
	}

	get := func(etag string) reply {
		r, _ := http.NewRequest(http.MethodGet, b.server.URL+revocationsPath, nil)
		r.Header.Set("If-None-Match", etag)
		return b.send(t, r)
	}
	etag := get("").Header.Get("ETag")
	if got := get(etag); got.Status != http.StatusNotModified || got.Body != "" {
		t.Errorf("%d %s", got.Status, got.Body)
	}
	b.reopen(t)
	if got := get(etag); got.Status != http.StatusNotModified {
		t.Errorf("another list after a restart: %s", got.Body)
	}
	b.clock.pass(DefaultAccessTTL + keySlack + 5*time.Second)
	if got := get(etag); got.Status != http.StatusOK || got.Body != `{"revoked":[],"clients":[]}` {
		t.Errorf("%d %s", got.Status, got.Body)
	}
	if err := b.removeExpired(); err != nil {
		t.Fatal(err)
	}
	b.reopen(t)
	if tokens, clients := b.revoked.sizes(); tokens != 0 || clients != 0 {
		t.Errorf("%d tokens and %d clients are stored", tokens, clients)
	}
}

func TestClientCannotMakeTheListLong(t *testing.T) {
	b := newBench(t)
	b.add(t, "shop", "*")
	b.clock.pass(time.Second)
	expires := b.clock.Now().Add(time.Hour)
	b.revoked.add("others", revokedToken{expires.Unix(), "other"})
	for n := range maxRevokedOfClient {
		b.revoked.add(fmt.Sprint(n), revokedToken{expires.Unix(), "shop"})
	}
	secret, err := b.ResetSecret("shop")
	if err != nil {
		t.Fatal(err)
	}
	if l := b.list(t); len(l.Revoked) != 1 || len(l.Clients) != 1 {
		t.Fatalf("%d tokens and %d clients: a reset takes back all, one by one is not needed", len(l.Revoked), len(l.Clients))
	}
	for n := range maxRevokedOfClient {
		b.revoked.add(fmt.Sprint(n), revokedToken{expires.Unix(), "shop"})
	}
	b.clock.pass(2 * time.Second)
	one, two := b.token(t, "shop", secret), b.token(t, "shop", secret)
	b.post(t, revokePath, "client_id", "shop", "client_secret", secret, "token", one.AccessToken)
	if l := b.list(t); len(l.Revoked) != 1 || len(l.Clients) != 1 || b.holds(t, one.AccessToken) || b.holds(t, two.AccessToken) {
		t.Errorf("%d tokens and %d clients", len(l.Revoked), len(l.Clients))
	}
}

func TestATokenRevokedAfterAllOfItsClientsStaysRevoked(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	if err := b.RevokeTokens("shop"); err != nil {
		t.Fatal(err)
	}
	b.clock.pass(2 * time.Second)
	revoked, kept := b.token(t, "shop", secret).AccessToken, b.token(t, "shop", secret).AccessToken
	if got := b.post(t, revokePath, "token", revoked, "client_id", "shop", "client_secret", secret); got.Status != http.StatusOK {
		t.Fatal(got.Status)
	}
	for _, when := range []string{"at once", "after a restart"} {
		if b.holds(t, revoked) {
			t.Error(when, "the revoked token holds")
		}
		if !b.holds(t, kept) {
			t.Error(when, "the other one does not")
		}
		b.reopen(t)
	}
}
