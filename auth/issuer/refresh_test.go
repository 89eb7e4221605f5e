package issuer

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

func (b *bench) refreshed(t testing.TB, name, secret, refresh string, form ...string) reply {
	t.Helper()
	return b.post(t, tokenPath, append([]string{"grant_type", GrantRefreshToken, "client_id", name, "client_secret", secret, "refresh_token", refresh}, form...)...)
}

func (b *bench) holds(t testing.TB, raw string) bool {
	t.Helper()
	_, err := b.verifier().Verify(t.Context(), raw)
	return err == nil
}

func (b *bench) families(t testing.TB, client string) (n int) {
	t.Helper()
	_ = b.db.View(func(tx *bbolt.Tx) error { n = len(familiesOf(tx, client)); return nil })
	return n
}

func TestRefreshTokenIsUsedOnce(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "openfaas-fn:*")
	first := b.token(t, "shop", secret, "scope", "function offline_access")
	if !strings.HasPrefix(first.RefreshToken, RefreshPrefix) || first.Scope != "function offline_access" || b.claims(t, first.AccessToken).Scope != "function" {
		t.Fatalf("%+v", first)
	}
	second := b.refreshed(t, "shop", secret, first.RefreshToken)
	if second.Status != http.StatusOK || second.RefreshToken == first.RefreshToken || second.RefreshToken == "" {
		t.Fatalf("%+v", second)
	}
	bystander := b.token(t, "shop", secret, "scope", "offline_access")
	narrower := b.exchanged(t, second.AccessToken, "audience", "openfaas-fn:iris")
	for _, raw := range []string{first.AccessToken, second.AccessToken, bystander.AccessToken, narrower.AccessToken} {
		if !b.holds(t, raw) {
			t.Fatal("a token does not hold before anything was revoked")
		}
	}

	b.refreshed(t, "shop", secret, first.RefreshToken).wants(t, http.StatusBadRequest, codeInvalidGrant)
	for _, raw := range []string{first.AccessToken, second.AccessToken, narrower.AccessToken} {
		if b.holds(t, raw) {
			t.Error("a token of the family holds after one was used twice")
		}
	}
	// The one that came after it is worth nothing either, and neither is the replayed one again.
	b.refreshed(t, "shop", secret, second.RefreshToken).wants(t, http.StatusBadRequest, codeInvalidGrant)
	b.refreshed(t, "shop", secret, first.RefreshToken).wants(t, http.StatusBadRequest, codeInvalidGrant)
	if !b.holds(t, bystander.AccessToken) || b.refreshed(t, "shop", secret, bystander.RefreshToken).Status != http.StatusOK {
		t.Error("another family of the same client was ended too")
	}
	lines := b.log.lines(t, "refresh token reused")
	if len(lines) != 1 || lines[0]["client_id"] != "shop" || !strings.Contains(lines[0]["reason"].(string), "2 access tokens") {
		t.Errorf("audit: %v", lines)
	}
}

func TestOneOfManyAtOnceWinsAndTheFamilyEnds(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	first := b.token(t, "shop", secret, "scope", "offline_access")
	const callers = 8
	replies := make([]reply, callers)
	var all sync.WaitGroup
	for n := range callers {
		all.Go(func() { replies[n] = b.refreshed(t, "shop", secret, first.RefreshToken) })
	}
	all.Wait()
	won := slices.IndexFunc(replies, func(r reply) bool { return r.Status == http.StatusOK })
	for n, r := range replies {
		if n != won {
			r.wants(t, http.StatusBadRequest, codeInvalidGrant)
		}
	}
	if won < 0 {
		t.Fatal("nobody won")
	}
	if b.holds(t, replies[won].AccessToken) || b.holds(t, first.AccessToken) {
		t.Error("the winner's token holds, although the refresh token was used twice")
	}
	b.refreshed(t, "shop", secret, replies[won].RefreshToken).wants(t, http.StatusBadRequest, codeInvalidGrant)
}

func TestRefreshTokenIsItsClientsOnly(t *testing.T) {
	b := newBench(t)
	shop, other := b.add(t, "shop", "*"), b.add(t, "other", "*")
	first := b.token(t, "shop", shop, "scope", "offline_access")
	b.refreshed(t, "other", other, first.RefreshToken).wants(t, http.StatusBadRequest, codeInvalidGrant)
	b.refreshed(t, "shop", "fpc_wrong", first.RefreshToken).wants(t, http.StatusUnauthorized, codeInvalidClient)
	b.refreshed(t, "shop", shop, "").wants(t, http.StatusBadRequest, codeInvalidRequest)
	b.refreshed(t, "shop", shop, "fpr_garbage").wants(t, http.StatusBadRequest, codeInvalidGrant)
	if got := b.refreshed(t, "shop", shop, first.RefreshToken); got.Status != http.StatusOK {
		t.Errorf("a stranger's attempts ended the family: %s", got.Body)
	}
}

func TestRefreshNarrowsAndNeverWidens(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "openfaas-fn:*")
	first := b.token(t, "shop", secret, "scope", "function offline_access", "audience", "openfaas-fn:iris*")
	for code, form := range map[string][]string{
		codeInvalidScope:  {"scope", "system"},
		codeInvalidTarget: {"audience", "openfaas-fn:*"},
	} {
		b.refreshed(t, "shop", secret, first.RefreshToken, form...).wants(t, http.StatusBadRequest, code)
	}
	// Asking for too much used nothing up.
	second := b.refreshed(t, "shop", secret, first.RefreshToken, "audience", "openfaas-fn:iris-2")
	if c := b.claims(t, second.AccessToken); !slices.Equal(c.Function.Audience, []string{"openfaas-fn:iris-2"}) {
		t.Errorf("%+v", c.Function)
	}
	third := b.refreshed(t, "shop", secret, second.RefreshToken)
	if c := b.claims(t, third.AccessToken); !slices.Equal(c.Function.Audience, []string{"openfaas-fn:iris*"}) {
		t.Errorf("%+v", c.Function)
	}
}

func TestRefreshTokensExpireAndAreSwept(t *testing.T) {
	b := newBench(t, func(c *Config) { c.RefreshTTL = time.Hour })
	secret := b.add(t, "shop", "*")
	first := b.token(t, "shop", secret, "scope", "offline_access")
	b.clock.pass(59 * time.Minute)
	second := b.refreshed(t, "shop", secret, first.RefreshToken)
	if second.Status != http.StatusOK {
		t.Fatal(second.Body)
	}
	b.clock.pass(59 * time.Minute)
	if err := b.removeExpired(); err != nil || b.families(t, "shop") != 1 {
		t.Fatalf("%d families, %v", b.families(t, "shop"), err)
	}
	b.clock.pass(time.Minute)
	b.refreshed(t, "shop", secret, second.RefreshToken).wants(t, http.StatusBadRequest, codeInvalidGrant)
	if err := b.removeExpired(); err != nil || b.families(t, "shop") != 0 {
		t.Errorf("%d families, %v", b.families(t, "shop"), err)
	}
}

func TestRefreshTokensSurviveARestart(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	first := b.token(t, "shop", secret, "scope", "offline_access")
	b.reopen(t)
	second := b.refreshed(t, "shop", secret, first.RefreshToken)
	if second.Status != http.StatusOK {
		t.Fatal(second.Body)
	}
	b.reopen(t)
	b.refreshed(t, "shop", secret, first.RefreshToken).wants(t, http.StatusBadRequest, codeInvalidGrant)
	b.reopen(t)
	if b.holds(t, second.AccessToken) {
		t.Error("a revocation was forgotten")
	}
}

func TestRefreshTokensAreBounded(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	oldest := b.token(t, "shop", secret, "scope", "offline_access")
	b.clock.pass(time.Second)
	last := oldest
	for range maxFamilies {
		last = b.token(t, "shop", secret, "scope", "offline_access")
	}
	if n := b.families(t, "shop"); n != maxFamilies {
		t.Errorf("%d families", n)
	}
	b.refreshed(t, "shop", secret, oldest.RefreshToken).wants(t, http.StatusBadRequest, codeInvalidGrant)
	for range maxLive - 1 {
		if last = b.refreshed(t, "shop", secret, last.RefreshToken); last.Status != http.StatusOK {
			t.Fatal(last.Body)
		}
	}
	over := b.refreshed(t, "shop", secret, last.RefreshToken)
	over.wants(t, http.StatusTooManyRequests, codeUnavailable)
	b.clock.pass(DefaultAccessTTL + 2*time.Minute)
	if again := b.refreshed(t, "shop", secret, last.RefreshToken); again.Status != http.StatusOK {
		t.Errorf("the refused token was used up: %s", again.Body)
	}
}
