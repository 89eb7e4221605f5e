package issuer

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

func (b *bench) attempt(t testing.TB, name, secret string) reply {
	t.Helper()
	return b.post(t, tokenPath, "grant_type", GrantClientCredentials, "client_id", name, "client_secret", secret)
}

// A clock on the wall would say little on a busy machine; what is counted is the work.
func TestUnknownClientCostsAsMuchAsAWrongSecret(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	disabled := b.add(t, "closed", "*")
	if err := b.SetDisabled("closed", true); err != nil {
		t.Fatal(err)
	}
	if n, s := b.secrets.nobody, b.clients["shop"].Secret; n.KiB != s.KiB || n.Passes != s.Passes || n.Threads != s.Threads || len(n.Sum) != len(s.Sum) || len(n.Salt) != len(s.Salt) {
		t.Errorf("unknown clients are checked with %+v, known ones with %+v", n, s)
	}
	work := func(name, secret string) (int64, reply) {
		before := b.secrets.hashes.Load()
		got := b.attempt(t, name, secret)
		return b.secrets.hashes.Load() - before, got
	}
	var bodies []string
	for _, c := range [][2]string{{"shop", "wrong"}, {"nobody", "wrong"}, {"nobody", secret}, {"closed", "wrong"}, {"No Name", "wrong"}, {"shop", secret[:len(secret)-1]}} {
		hashes, got := work(c[0], c[1])
		got.wants(t, http.StatusUnauthorized, codeInvalidClient)
		if hashes != 1 {
			t.Errorf("%s with %.8s: %d hashes", c[0], c[1], hashes)
		}
		bodies = append(bodies, got.Body)
	}
	for _, body := range bodies {
		if body != bodies[0] {
			t.Errorf("the answers differ: %s and %s", body, bodies[0])
		}
	}
	if hashes, got := work("closed", disabled); hashes != 1 || !strings.Contains(got.Body, "disabled") {
		t.Errorf("%d hashes, %s", hashes, got.Body)
	}
}

func TestVerifiedSecretIsRememberedUntilSomethingChanges(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	hashes := func(n int64, what string, do func()) {
		t.Helper()
		before := b.secrets.hashes.Load()
		do()
		if got := b.secrets.hashes.Load() - before; got != n {
			t.Errorf("%s: %d hashes, want %d", what, got, n)
		}
	}
	ask := func() { b.token(t, "shop", secret) }
	hashes(1, "the first time", ask)
	hashes(0, "again", ask)
	b.clock.pass(DefaultAccessTTL)
	hashes(0, "when its token has expired", ask)
	b.clock.pass(DefaultAccessTTL + rememberBeyond)
	hashes(1, "after a long silence", ask)
	hashes(1, "a wrong one", func() { b.attempt(t, "shop", "wrong") })
	hashes(0, "after a wrong one", ask)
	old := secret
	var err error
	if secret, err = b.ResetSecret("shop"); err != nil {
		t.Fatal(err)
	}
	hashes(1, "the old one", func() {
		b.attempt(t, "shop", old).wants(t, http.StatusUnauthorized, codeInvalidClient)
	})
	hashes(1, "the new one", ask)
	if len(b.secrets.verified) != 1 {
		t.Errorf("%d are remembered", len(b.secrets.verified))
	}
}

func TestSecretsAreStoredAsHashes(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	if !strings.HasPrefix(secret, SecretPrefix) || len(secret) != len(SecretPrefix)+43 {
		t.Errorf("secret of %d characters", len(secret))
	}
	h := b.clients["shop"].Secret
	if h.KiB != 19<<10 || h.Passes != 2 || h.Threads != 1 || len(h.Salt) != 16 || len(h.Sum) != 32 {
		t.Errorf("%+v", h)
	}
	b.reopen(t)
	b.token(t, "shop", secret)
}

func TestStrangersCannotLockAClientOut(t *testing.T) {
	b := newBench(t, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	secret := b.add(t, "shop", "*")
	from := func(address, secret string) reply {
		r, _ := http.NewRequest(http.MethodPost, b.server.URL+tokenPath, strings.NewReader("grant_type=client_credentials&client_id=shop&client_secret="+secret))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("X-Forwarded-For", "203.0.113.1, "+address)
		return b.send(t, r)
	}
	// One address: after some failures it has to wait.
	limited := 0
	for range clientFailures + 5 {
		if got := from("192.0.2.1", "wrong"); got.Status == http.StatusTooManyRequests {
			limited++
			if got.Header.Get("Retry-After") == "" || got.Error != codeUnavailable {
				t.Errorf("%v %s", got.Header, got.Body)
			}
		}
	}
	if limited != 5 {
		t.Errorf("%d of 15 were limited", limited)
	}
	// The client itself, not known in this process yet, from its own address.
	if got := from("198.51.100.7", secret); got.Status != http.StatusOK {
		t.Fatalf("the client is locked out: %s", got.Body)
	}
	// Many addresses: each is heard once, and the client is known by now, from wherever.
	before := b.secrets.hashes.Load()
	for n := range 30 {
		from(fmt.Sprintf("192.0.2.%d", 100+n/3), "wrong")
	}
	if hashes := b.secrets.hashes.Load() - before; hashes > 12 {
		t.Errorf("%d hashes were computed for 10 addresses", hashes)
	}
	if got := from("192.0.2.1", secret); got.Status != http.StatusOK {
		t.Errorf("the client is locked out: %s", got.Body)
	}
	b.clock.pass(time.Minute)
	if got := from("192.0.2.1", "wrong"); got.Status != http.StatusUnauthorized {
		t.Errorf("limited for ever: %s", got.Body)
	}
}

func TestAddressIsLimitedWhateverTheClient(t *testing.T) {
	b := newBench(t)
	limited := 0
	for n := range addressFailures + 10 {
		if got := b.attempt(t, fmt.Sprintf("guess-%d", n), "wrong"); got.Status == http.StatusTooManyRequests {
			limited++
		}
	}
	if limited != 10 {
		t.Errorf("%d were limited, want 10", limited)
	}
}

func TestFailuresAreForgottenBeforeTheyTakeMemory(t *testing.T) {
	f := newFailures()
	now := time.Now()
	for n := range 3 * maxBuckets {
		f.begin(fmt.Sprint(n), netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), now)
	}
	if f.clients.Len() != maxBuckets || f.addresses.Len() != maxBuckets {
		t.Errorf("%d clients and %d addresses", f.clients.Len(), f.addresses.Len())
	}
}

// However many come at once, few hashes take memory at the same time, and everyone gets an answer.
func TestFloodOfWrongSecretsIsBounded(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	b.token(t, "shop", secret)
	var all sync.WaitGroup
	var statuses sync.Map
	for n := range 200 {
		all.Go(func() {
			got := b.attempt(t, fmt.Sprintf("guess-%d", n), "wrong")
			statuses.Store(got.Status, true)
			if inUse := len(b.secrets.slots); inUse > maxHashes {
				t.Errorf("%d at once", inUse)
			}
		})
	}
	if got := b.attempt(t, "shop", secret); got.Status != http.StatusOK {
		t.Errorf("the client does not get through: %s", got.Body)
	}
	all.Wait()
	statuses.Range(func(status, _ any) bool {
		if status != http.StatusUnauthorized && status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
			t.Errorf("status %v", status)
		}
		return true
	})
}

func TestForwardedAddressIsBelievedFromProxiesOnly(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		peer, want string
		forwarded  []string
	}{
		{"192.0.2.1:1", "192.0.2.1", []string{"1.1.1.1"}},
		{"10.0.0.1:1", "10.0.0.1", nil},
		{"10.0.0.1:1", "192.0.2.9", []string{"192.0.2.9"}},
		{"10.0.0.1:1", "192.0.2.9", []string{"1.1.1.1, 192.0.2.9"}},
		{"10.0.0.1:1", "192.0.2.9", []string{"1.1.1.1", "192.0.2.9, 10.0.0.2"}},
		{"10.0.0.1:1", "10.0.0.1", []string{"garbage"}},
		{"10.0.0.1:1", "10.0.0.2", []string{"garbage, 10.0.0.2"}},
		{"[fd00::1]:1", "2001:db8::5", []string{"2001:db8::5"}},
		{"[::ffff:10.0.0.1]:1", "192.0.2.9", []string{"::ffff:192.0.2.9"}},
		{"@", "invalid IP", []string{"1.1.1.1"}},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header{"X-Forwarded-For": c.forwarded}}
		if got := ClientAddress(r, proxies); got.String() != c.want {
			t.Errorf("%s with %v: %s, want %s", c.peer, c.forwarded, got, c.want)
		}
	}
	if a := limitedAs(netip.MustParseAddr("2001:db8:1:2:3::4")); a.String() != "2001:db8:1:2::" {
		t.Error(a)
	}
}
