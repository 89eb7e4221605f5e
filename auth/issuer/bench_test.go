package issuer

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/faas-predict/faas-predict/auth/token"
)

// BenchmarkToken is tokens a second by algorithm and grant, without the network: go test -bench Token.
func BenchmarkToken(b *testing.B) {
	for _, algorithm := range token.Algorithms {
		i, err := Open(Config{URL: "http://auth.example", Dir: filepath.Join(b.TempDir(), "auth"), Log: discard, Algorithm: algorithm})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { i.Close() })
		secret, err := i.AddClient(Client{Name: "shop", Functions: []string{"openfaas-fn:*"}})
		if err != nil {
			b.Fatal(err)
		}
		handler := i.Handler()
		post := func(b *testing.B, form ...string) *httptest.ResponseRecorder {
			v := url.Values{}
			for pair := range slices.Chunk(form, 2) {
				v.Add(pair[0], pair[1])
			}
			r := httptest.NewRequest(http.MethodPost, tokenPath, strings.NewReader(v.Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if w.Code != http.StatusOK {
				b.Fatal(w.Body)
			}
			return w
		}
		perSecond := func(b *testing.B) { b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s") }
		client := []string{"client_id", "shop", "client_secret", secret}
		b.Run(string(algorithm)+"/client_credentials", func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					post(b, append(client, "grant_type", GrantClientCredentials)...)
				}
			})
			perSecond(b)
		})
		subject := askAs(i, "shop", secret, tokenPath, "grant_type", GrantClientCredentials).AccessToken
		b.Run(string(algorithm)+"/token-exchange", func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					post(b, "grant_type", GrantTokenExchange, "subject_token_type", typeIDToken, "subject_token", subject, "audience", "openfaas-fn:iris", "scope", "function")
				}
			})
			perSecond(b)
		})
		b.Run(string(algorithm)+"/offline_access", func(b *testing.B) {
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					post(b, append(client, "grant_type", GrantClientCredentials, "scope", "function offline_access")...)
				}
			})
			perSecond(b)
		})
	}
}

// BenchmarkRefresh is one chain of refresh tokens: each waits for the disk.
func BenchmarkRefresh(b *testing.B) {
	i, err := Open(Config{URL: "http://auth.example", Dir: filepath.Join(b.TempDir(), "auth"), Log: discard, AccessTTL: MinAccessTTL})
	if err != nil {
		b.Fatal(err)
	}
	defer i.Close()
	secret, err := i.AddClient(Client{Name: "shop", Functions: []string{"openfaas-fn:*"}})
	if err != nil {
		b.Fatal(err)
	}
	offline := func() string {
		return askAs(i, "shop", secret, tokenPath, "grant_type", GrantClientCredentials, "scope", "offline_access").RefreshToken
	}
	refresh, n := offline(), 1
	for b.Loop() {
		if n == maxLive {
			b.StopTimer()
			refresh, n = offline(), 1
			b.StartTimer()
		}
		n++
		got := askAs(i, "shop", secret, tokenPath, "grant_type", GrantRefreshToken, "refresh_token", refresh)
		if got.Status != http.StatusOK {
			b.Fatal(got.Body)
		}
		refresh = got.RefreshToken
	}
}

// BenchmarkSecret is what a client costs that is not remembered.
func BenchmarkSecret(b *testing.B) {
	s := newSecrets(0, nil)
	secret, hash := s.generate()
	for b.Loop() {
		s.sum(secret, hash, len(hash.Sum))
	}
}
