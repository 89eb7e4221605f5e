package issuer

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/auth/token"
)

// served returns the ids of the keys that the issuer publishes.
func (b *bench) served(t testing.TB) (ids []string) {
	t.Helper()
	r, _ := http.NewRequest(http.MethodGet, b.server.URL+jwksPath, nil)
	got := b.send(t, r)
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(got.Body), &set); err != nil || got.Header.Get("Cache-Control") != "public, max-age=300" {
		t.Fatal(err, got.Header)
	}
	for _, k := range set.Keys {
		if !k.IsPublic() {
			t.Fatal("a private key is published")
		}
		ids = append(ids, k.KeyID)
	}
	return ids
}

// elsewhere verifies as a process does that has just fetched the keys.
func (b *bench) elsewhere(t testing.TB) *token.Verifier {
	t.Helper()
	r, _ := http.NewRequest(http.MethodGet, b.server.URL+jwksPath, nil)
	set, err := token.ParseKeySet(b.cfg.URL, []byte(b.send(t, r).Body))
	if err != nil {
		t.Fatal(err)
	}
	return token.NewVerifier(token.Config{Keys: fixed{set}, Now: b.clock.Now})
}

func signedBy(t testing.TB, raw string) string {
	t.Helper()
	j, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.ES256, jose.RS256, jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	return j.Signatures[0].Header.KeyID
}

func TestKeysRotateWithoutAnyTokenBeingRefused(t *testing.T) {
	b := newBench(t, func(c *Config) { c.KeyRotation, c.AccessTTL = 24*time.Hour, 2*time.Hour })
	secret := b.add(t, "shop", "*")
	type given struct {
		raw   string
		until time.Time
	}
	var tokens []given
	signers, published := map[string]bool{}, 0
	var lastSet *token.Verifier // what somebody knows who fetches every 5 minutes
	for minute := range 4 * 24 * 60 / 5 {
		if err := b.maintainKeys(); err != nil {
			t.Fatal(err)
		}
		raw := b.token(t, "shop", secret).AccessToken
		signers[signedBy(t, raw)] = true
		if lastSet != nil {
			if _, err := lastSet.Verify(t.Context(), raw); err != nil {
				t.Fatalf("after %d steps, by one who knows the keys of 5 minutes ago: %v", minute, err)
			}
		}
		lastSet = b.elsewhere(t)
		tokens = append(tokens, given{raw, b.clock.Now().Add(b.cfg.AccessTTL - time.Second)})
		for len(tokens) > 0 && tokens[0].until.Before(b.clock.Now()) {
			tokens = tokens[1:]
		}
		if _, err := lastSet.Verify(t.Context(), tokens[0].raw); err != nil {
			t.Fatalf("after %d steps: the oldest token that should hold does not: %v", minute, err)
		}
		published = max(published, len(b.served(t)))
		if minute%288 == 100 {
			b.reopen(t)
		}
		b.clock.pass(5 * time.Minute)
	}
	if len(signers) != 4 || published != 2 {
		t.Errorf("%d keys signed in 4 days, at most %d were published at once", len(signers), published)
	}
}

func TestRotationOnDemandPublishesBeforeItSigns(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	old := b.served(t)[0]
	next, created, err := b.RotateKeys()
	if err != nil || !created || next.State != "next" {
		t.Fatal(next, created, err)
	}
	if again, created, _ := b.RotateKeys(); created || again.ID != next.ID {
		t.Errorf("a second next key: %+v", again)
	}
	if ids := b.served(t); len(ids) != 2 {
		t.Errorf("published: %v", ids)
	}
	b.clock.pass(keyLead - time.Second)
	before := b.token(t, "shop", secret).AccessToken
	b.clock.pass(time.Second)
	after := b.token(t, "shop", secret).AccessToken
	if signedBy(t, before) != old || signedBy(t, after) != next.ID {
		t.Errorf("signed by %s and %s", signedBy(t, before), signedBy(t, after))
	}
	b.reopen(t)
	if keys := b.SigningKeys(); keys[0].State != "old" || keys[0].PublishedUntil.IsZero() || keys[1].State != "signing" {
		t.Errorf("%+v", keys)
	}
	b.clock.pass(DefaultAccessTTL - 2*time.Second)
	if !b.holds(t, before) {
		t.Error("a token of the old key does not hold")
	}
	b.clock.pass(2*time.Second + keySlack)
	if ids := b.served(t); len(ids) != 1 || ids[0] != next.ID { // before anything is swept
		t.Errorf("published: %v", ids)
	}
	if err := b.maintainKeys(); err != nil || len(b.keys) != 1 {
		t.Errorf("%d keys, %v", len(b.keys), err)
	}
}

func TestRevokedKeyIsGoneAtOnce(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	raw := b.token(t, "shop", secret).AccessToken
	first := b.served(t)[0]
	if err := b.RevokeKey(first); err != nil {
		t.Fatal(err)
	}
	if ids := b.served(t); len(ids) != 1 || ids[0] == first {
		t.Errorf("published: %v", ids)
	}
	if b.holds(t, raw) {
		t.Error("a token of the revoked key holds")
	}
	b.exchanged(t, raw).wants(t, http.StatusBadRequest, codeInvalidRequest)
	if !b.holds(t, b.token(t, "shop", secret).AccessToken) {
		t.Error("no good tokens after it")
	}
	// With a next key there, that one signs now; revoking the next one changes nothing.
	second := b.served(t)[0]
	next, _, err := b.RotateKeys()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.RevokeKey(second); err != nil {
		t.Fatal(err)
	}
	if got := signedBy(t, b.token(t, "shop", secret).AccessToken); got != next.ID {
		t.Errorf("signed by %s, want the next key %s", got, next.ID)
	}
	third, _, _ := b.RotateKeys()
	if err := b.RevokeKey(third.ID); err != nil {
		t.Fatal(err)
	}
	b.reopen(t)
	if got := signedBy(t, b.token(t, "shop", secret).AccessToken); got != next.ID || len(b.served(t)) != 1 {
		t.Errorf("signed by %s, published %v", got, b.served(t))
	}
	if err := b.RevokeKey("nothing"); err == nil {
		t.Error("revoked nothing")
	}
	if want := []string{first, second, third.ID}; !slices.Equal(b.list(t).Keys, slices.Sorted(slices.Values(want))) {
		t.Errorf("listed: %v, want %v", b.list(t).Keys, want)
	}
	b.clock.pass(2 * MaxAccessTTL)
	if err := b.removeExpired(); err != nil {
		t.Fatal(err)
	}
	b.reopen(t)
	if left := b.list(t).Keys; len(left) > 0 {
		t.Errorf("still listed when nothing they signed can hold: %v", left)
	}
}

func TestRevokedKeyReachesVerifiersElsewhereWithTheirBound(t *testing.T) {
	const bound = time.Second
	server := httptest.NewUnstartedServer(nil)
	url := "http://" + server.Listener.Addr().String()
	own, err := Open(Config{URL: url, Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	server.Config.Handler = own.Handler()
	server.Start()
	defer server.Close()
	authority, err := token.NewAuthority(token.AuthorityConfig{URL: url, RevocationBound: bound, RefreshInterval: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer authority.Close()
	if err := authority.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	secret, err := own.AddClient(Client{Name: "shop", Functions: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := sdk.NewClientCredentialsTokenSource("shop", secret, url+"/oauth/token", "function", "client_credentials", "").Token()
	if err != nil {
		t.Fatal(err)
	}
	v := token.NewVerifier(token.Config{Keys: authority, Revocations: authority})
	if _, err := v.Verify(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	if err := own.RevokeKey(own.SigningKeys()[0].ID); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if _, err := v.Verify(t.Context(), raw); err != nil {
			break
		}
		if time.Since(began) > bound {
			t.Fatalf("a token of the revoked key is accepted after %s", bound)
		}
	}
}

func TestNewAlgorithmTakesOverLikeARotation(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	before := b.token(t, "shop", secret).AccessToken
	b.cfg.Algorithm = token.EdDSA
	b.reopen(t)
	if k := b.SigningKeys(); len(k) != 2 || k[0].State != "signing" || k[1].State != "next" || k[1].Algorithm != token.EdDSA {
		t.Fatalf("%+v", k)
	}
	b.clock.pass(keyLead)
	after := b.token(t, "shop", secret).AccessToken
	if signedBy(t, after) == signedBy(t, before) || !b.holds(t, before) || !b.holds(t, after) {
		t.Error("the new algorithm did not take over")
	}
}

func TestKeyOutlivesShortenedSettings(t *testing.T) {
	b := newBench(t, func(c *Config) { c.AccessTTL = 10 * time.Hour })
	secret := b.add(t, "shop", "*")
	raw := b.token(t, "shop", secret).AccessToken
	b.cfg.AccessTTL = time.Minute
	b.reopen(t)
	if _, _, err := b.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	b.clock.pass(9 * time.Hour)
	if err := b.maintainKeys(); err != nil {
		t.Fatal(err)
	}
	if !b.holds(t, raw) {
		t.Error("its key went before the token expired")
	}
}

func TestEveryAlgorithmSigns(t *testing.T) {
	for _, algorithm := range token.Algorithms {
		b := newBench(t, func(c *Config) { c.Algorithm = algorithm })
		b.claims(t, b.token(t, "shop", b.add(t, "shop", "*")).AccessToken)
	}
}
