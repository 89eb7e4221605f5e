package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// fakeIssuer answers without a network, so that tests run in the time of synctest.
type fakeIssuer struct {
	mu      sync.Mutex
	fetches map[string]int
	answers map[string]func(*http.Request) *http.Response
	down    bool
	hangs   bool // until the request's context ends
}

const (
	keysPath    = "/oauth/keys"
	revokedPath = "/oauth/revocations"
)

func newFakeIssuer(t testing.TB, keys ...*Key) *fakeIssuer {
	f := &fakeIssuer{fetches: map[string]int{}, answers: map[string]func(*http.Request) *http.Response{}}
	f.serve(t, DiscoveryPath, Discovery{Issuer: issuerName, JWKSURI: issuerName + keysPath})
	f.serve(t, keysPath, PublicSet(keys...))
	return f
}

func (f *fakeIssuer) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.fetches[r.URL.Path]++
	down, hangs, answer := f.down, f.hangs, f.answers[r.URL.Path]
	f.mu.Unlock()
	switch {
	case hangs:
		<-r.Context().Done()
		return nil, r.Context().Err()
	case down:
		return nil, errors.New("connection refused")
	case answer == nil:
		return response(http.StatusNotFound, ""), nil
	}
	return answer(r), nil
}

func response(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

// serve answers path with v as JSON under an ETag of its own.
func (f *fakeIssuer) serve(t testing.TB, path string, v any) {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	etag := fmt.Sprintf(`"%x"`, raw)
	f.handle(path, func(r *http.Request) *http.Response {
		if r.Header.Get("If-None-Match") == etag {
			return response(http.StatusNotModified, "")
		}
		res := response(http.StatusOK, string(raw))
		res.Header.Set("ETag", etag)
		return res
	})
}

func (f *fakeIssuer) handle(path string, answer func(*http.Request) *http.Response) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[path] = answer
}

func (f *fakeIssuer) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeIssuer) fetched(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fetches[path]
}

func (f *fakeIssuer) withRevocations(t testing.TB, list RevocationList) {
	f.serve(t, DiscoveryPath, Discovery{Issuer: issuerName, JWKSURI: issuerName + keysPath, RevocationListURI: issuerName + revokedPath})
	f.serve(t, revokedPath, list)
}

// open returns a verifier of the issuer's tokens; it ends with the test.
func (f *fakeIssuer) open(t testing.TB, change ...func(*AuthorityConfig)) (*Verifier, *Authority) {
	t.Helper()
	cfg := AuthorityConfig{URL: issuerName, Transport: f, Logger: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	a, err := NewAuthority(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return NewVerifier(Config{Keys: a, Revocations: a}), a
}

func mustVerify(t *testing.T, v *Verifier, raw string) {
	t.Helper()
	if _, err := v.Verify(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
}

func mustRefuse(t *testing.T, v *Verifier, raw string, want *Error) {
	t.Helper()
	_, err := v.Verify(t.Context(), raw)
	wantRefused(t, raw, err, want)
}

func TestIssuerThatStartsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t, EdDSA)
		f := newFakeIssuer(t, key)
		f.down = true
		v, a := f.open(t)
		synctest.Wait()
		time.Sleep(time.Minute)
		_, err := v.Verify(t.Context(), sign(t, key, goodClaims()))
		var refused *Error
		if !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable || refused.Code != "" {
			t.Fatalf("got %v, want one to try again", err)
		}
		if !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("the error does not say why: %v", err)
		}
		if n := f.fetched(DiscoveryPath); n < 4 || n > 12 {
			t.Errorf("the issuer was tried %d times in a minute", n)
		}
		f.set(func() { f.down = false })
		ctx, cancel := context.WithTimeout(t.Context(), maxRetry)
		defer cancel()
		if err := a.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, v, sign(t, key, goodClaims()))
	})
}

func TestIssuerThatGoesDownStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t, EdDSA)
		f := newFakeIssuer(t, key)
		f.withRevocations(t, RevocationList{Revoked: []RevokedToken{{"bad", time.Now().Add(time.Hour).Unix()}}})
		v, _ := f.open(t)
		synctest.Wait()
		long := func(c *Claims) { c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(time.Hour)) }
		known := sign(t, key, with(long))
		mustVerify(t, v, known)
		for _, failure := range []func(){
			func() { f.down = true },
			func() { f.hangs = true },
			func() {
				f.hangs, f.down = false, false
				for _, path := range []string{keysPath, revokedPath} {
					f.answers[path] = func(*http.Request) *http.Response { return response(http.StatusOK, "<html>") }
				}
			},
			func() {
				f.answers[keysPath] = func(*http.Request) *http.Response { return response(http.StatusOK, `{"keys":[]}`) }
			},
		} {
			f.set(failure)
			time.Sleep(12 * time.Minute)
			mustVerify(t, v, known)
			mustVerify(t, v, sign(t, key, with(func(c *Claims) { c.ID = "new" })))
			mustRefuse(t, v, sign(t, key, with(func(c *Claims) { c.ID = "bad" })), errRevoked)
		}
	})
}

func TestNewKeyIsFoundAtOnceAndOldOneForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := newKey(t, EdDSA), newKey(t, RS256)
		f := newFakeIssuer(t, old)
		v, _ := f.open(t)
		synctest.Wait()
		before := sign(t, old, goodClaims())
		mustVerify(t, v, before)
		time.Sleep(minRefresh)
		f.serve(t, keysPath, PublicSet(old, next))
		var callers sync.WaitGroup
		after := sign(t, next, goodClaims())
		for range 50 {
			callers.Go(func() {
				if _, err := v.Verify(t.Context(), after); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		if n := f.fetched(keysPath); n != 2 {
			t.Errorf("50 callers with the new key made %d fetches, want 1", n-1)
		}
		mustVerify(t, v, before)
		f.serve(t, keysPath, PublicSet(next))
		time.Sleep(5 * time.Minute)
		mustVerify(t, v, after)
		mustRefuse(t, v, before, errUnknownKey)
	})
}

func TestFloodOfUnknownKids(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t, EdDSA)
		f := newFakeIssuer(t, key)
		v, _ := f.open(t, func(c *AuthorityConfig) { c.RefreshInterval = 24 * time.Hour })
		synctest.Wait()
		flood := func(d time.Duration) int {
			before := f.fetched(keysPath) + f.fetched(DiscoveryPath)
			for i := range int(d / (100 * time.Millisecond)) {
				header := map[string]any{"alg": "EdDSA", "kid": fmt.Sprint(i)}
				raw := forge(t, header, goodClaims(), none)
				_, err := v.Verify(t.Context(), raw)
				wantRefused(t, raw, err, errUnknownKey)
				time.Sleep(100 * time.Millisecond)
			}
			return f.fetched(keysPath) + f.fetched(DiscoveryPath) - before
		}
		if n := flood(5 * time.Minute); n > 2*30 {
			t.Errorf("%d requests in five minutes, want two each ten seconds at most", n)
		}
		f.set(func() { f.down = true })
		if n := flood(10 * time.Minute); n > 8 {
			t.Errorf("%d requests in ten minutes to an issuer that is down, want ever fewer", n)
		}
		mustVerify(t, v, sign(t, key, goodClaims()))

		f.set(func() { f.down = false })
		next := newKey(t, EdDSA)
		f.serve(t, keysPath, PublicSet(next))
		time.Sleep(maxRefresh)
		mustVerify(t, v, sign(t, next, goodClaims()))
		if n := flood(20 * time.Second); n < 2 || n > 4 {
			t.Errorf("%d requests in twenty seconds after a success, want the pause of ten seconds again", n)
		}
	})
}

func TestUnknownKidDoesNotWaitLongerThanItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t, EdDSA)
		f := newFakeIssuer(t, key)
		v, a := f.open(t)
		synctest.Wait()
		time.Sleep(minRefresh)
		f.set(func() { f.hangs = true })
		raw := sign(t, newKey(t, EdDSA), goodClaims())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := v.Verify(ctx, raw); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("waited %v", d)
		}
		go func() { time.Sleep(time.Second); a.Close() }()
		if _, err := v.Verify(t.Context(), raw); !errors.Is(err, errClosed) {
			t.Errorf("at the end: %v", err)
		}
		mustVerify(t, v, sign(t, key, goodClaims()))
	})
}

func TestRevocationIsKnownWithinTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t, EdDSA)
		f := newFakeIssuer(t, key)
		f.withRevocations(t, RevocationList{})
		v, _ := f.open(t)
		synctest.Wait()
		raw, other := sign(t, key, goodClaims()), sign(t, key, with(func(c *Claims) { c.ID, c.ClientID = "id-2", "team-b" }))
		mustVerify(t, v, raw)
		mustVerify(t, v, other)
		time.Sleep(time.Minute)
		f.withRevocations(t, RevocationList{Revoked: []RevokedToken{{"id-1", time.Now().Add(time.Hour).Unix()}}})
		time.Sleep(10 * time.Second)
		mustRefuse(t, v, raw, errRevoked)
		mustVerify(t, v, other)
		f.withRevocations(t, RevocationList{Clients: []RevokedClient{{"team-b", time.Now().Unix()}}})
		time.Sleep(10 * time.Second)
		mustVerify(t, v, raw)
		mustRefuse(t, v, other, errRevoked)
		mustVerify(t, v, sign(t, key, with(func(c *Claims) { c.ClientID = "team-b" }))) // issued later
	})
}

func TestRevocationsAreAskedForWithTheirETag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t, EdDSA)
		f := newFakeIssuer(t, key)
		f.withRevocations(t, RevocationList{Revoked: []RevokedToken{{"id-1", time.Now().Add(time.Hour).Unix()}}})
		answer, full := f.answers[revokedPath], 0
		f.handle(revokedPath, func(r *http.Request) *http.Response {
			res := answer(r)
			if res.StatusCode == http.StatusOK {
				full++
			}
			return res
		})
		v, _ := f.open(t)
		time.Sleep(time.Minute)
		if n := f.fetched(revokedPath); full != 1 || n < 12 || n > 16 {
			t.Errorf("%d of %d answers carried the list, want 1 of about 13", full, n)
		}
		mustRefuse(t, v, sign(t, key, goodClaims()), errRevoked)
	})
}

// A verifier that starts anew must not let in what was revoked before.
func TestNoTokenIsAcceptedBeforeTheRevocationsAreKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t, EdDSA)
		f := newFakeIssuer(t, key)
		f.withRevocations(t, RevocationList{})
		f.handle(revokedPath, func(*http.Request) *http.Response { return response(http.StatusInternalServerError, "") })
		v, _ := f.open(t)
		time.Sleep(time.Minute)
		_, err := v.Verify(t.Context(), sign(t, key, goodClaims()))
		var refused *Error
		if !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable {
			t.Fatalf("got %v", err)
		}
		f.withRevocations(t, RevocationList{Revoked: []RevokedToken{{"id-1", time.Now().Add(time.Hour).Unix()}}})
		time.Sleep(time.Minute)
		mustRefuse(t, v, sign(t, key, goodClaims()), errRevoked)
	})
}

func TestIssuerThatStartsToServeRevocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t, EdDSA)
		f := newFakeIssuer(t, key)
		v, _ := f.open(t)
		synctest.Wait()
		raw := sign(t, key, with(func(c *Claims) { c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(time.Hour)) }))
		mustVerify(t, v, raw)
		f.withRevocations(t, RevocationList{Revoked: []RevokedToken{{"id-1", time.Now().Add(time.Hour).Unix()}}})
		time.Sleep(5 * time.Minute)
		mustRefuse(t, v, raw, errRevoked)
	})
}

func TestAuthorityRefusesWhatItMustNotTrust(t *testing.T) {
	key := newKey(t, EdDSA)
	const inCluster = "http://gateway.openfaas:8080"
	discovery := func(d Discovery) func(testing.TB, *fakeIssuer) {
		return func(t testing.TB, f *fakeIssuer) { f.serve(t, DiscoveryPath, d) }
	}
	for _, test := range []struct {
		name   string
		config AuthorityConfig
		change func(testing.TB, *fakeIssuer)
		want   string // in the error; "": keys are taken
	}{
		{"itself", AuthorityConfig{}, discovery(Discovery{issuerName, issuerName + keysPath, ""}), ""},
		{"itself by a URL with a slash", AuthorityConfig{URL: issuerName + "/"}, discovery(Discovery{issuerName, issuerName + keysPath, ""}), ""},
		{"another issuer", AuthorityConfig{}, discovery(Discovery{"https://elsewhere", issuerName + keysPath, ""}), `says that its issuer is "https://elsewhere"`},
		{"another issuer that is expected", AuthorityConfig{Issuer: "https://elsewhere"}, discovery(Discovery{"https://elsewhere", issuerName + keysPath, ""}), ""},
		{"another issuer on a cluster's address", AuthorityConfig{URL: inCluster}, discovery(Discovery{issuerName, inCluster + keysPath, ""}), ""},
		{"another than expected on a cluster's address", AuthorityConfig{URL: inCluster, Issuer: "https://elsewhere"}, discovery(Discovery{issuerName, inCluster + keysPath, ""}), "says that its issuer is"},
		{"no issuer", AuthorityConfig{URL: inCluster}, discovery(Discovery{"", inCluster + keysPath, ""}), "names no issuer"},
		{"no keys", AuthorityConfig{}, discovery(Discovery{issuerName, "", ""}), `jwks_uri ""`},
		{"keys by http", AuthorityConfig{}, discovery(Discovery{issuerName, "http://gateway.example.com" + keysPath, ""}), "jwks_uri"},
		{"keys in a file", AuthorityConfig{URL: inCluster}, discovery(Discovery{issuerName, "file:///etc/passwd", ""}), "jwks_uri"},
		{"keys at a path", AuthorityConfig{}, discovery(Discovery{issuerName, keysPath, ""}), "jwks_uri"},
		{"revocations by http", AuthorityConfig{}, discovery(Discovery{issuerName, issuerName + keysPath, "http://gateway.example.com/r"}), "revocation_list_uri"},
		{"redirect", AuthorityConfig{}, func(_ testing.TB, f *fakeIssuer) {
			f.handle(DiscoveryPath, func(*http.Request) *http.Response {
				res := response(http.StatusFound, "")
				res.Header.Set("Location", "http://elsewhere/")
				return res
			})
		}, "302"},
		{"endless keys", AuthorityConfig{}, func(_ testing.TB, f *fakeIssuer) {
			f.handle(keysPath, func(*http.Request) *http.Response {
				return response(http.StatusOK, strings.Repeat(" ", maxKeySetBytes+1))
			})
		}, "longer than"},
		{"private keys", AuthorityConfig{}, func(t testing.TB, f *fakeIssuer) {
			f.serve(t, keysPath, map[string]any{"keys": []*Key{key}})
		}, "no key that tokens can be checked with"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeIssuer(t, key)
				test.change(t, f)
				_, a := f.open(t, func(c *AuthorityConfig) {
					c.Issuer = test.config.Issuer
					if test.config.URL != "" {
						c.URL = test.config.URL
					}
				})
				synctest.Wait()
				_, err := a.Keys()
				switch {
				case test.want == "" && err != nil:
					t.Error(err)
				case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
					t.Errorf("got %v, want an error with %q", err, test.want)
				}
			})
		})
	}
	for _, address := range []string{"", "gateway:8080", "ftp://gateway", "http://", "http://user:password@gateway", "http://gateway?x=1", "http://gateway#x", "%"} {
		if a, err := NewAuthority(AuthorityConfig{URL: address}); err == nil {
			a.Close()
			t.Errorf("authority %q was taken", address)
		}
	}
}

// The same over a network, and closed twice.
func TestAuthorityOverHTTP(t *testing.T) {
	key := newKey(t, ES256)
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	answer := func(path string, v any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) })
	}
	answer(DiscoveryPath, Discovery{Issuer: issuerName, JWKSURI: server.URL + keysPath})
	answer(keysPath, PublicSet(key))
	a, err := NewAuthority(AuthorityConfig{URL: server.URL, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := a.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	v := NewVerifier(Config{Keys: a, Revocations: a})
	mustVerify(t, v, sign(t, key, goodClaims()))
	a.Close()
	mustVerify(t, v, sign(t, key, goodClaims()))
}
