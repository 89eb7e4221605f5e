package token

import (
	"fmt"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
)

func manyTokens(b *testing.B, key *Key, n int) []string {
	tokens := make([]string, n)
	for i := range tokens {
		tokens[i] = sign(b, key, with(func(c *Claims) { c.ID = fmt.Sprint("id-", i) }))
	}
	return tokens
}

// BenchmarkKnown is a call whose token was accepted before, and its permission.
func BenchmarkKnown(b *testing.B) {
	key := newKey(b, EdDSA)
	revoked := NewRevocationSet(RevocationList{Revoked: []RevokedToken{{"other", goodClaims().ExpiresAt.Unix()}}}, goodClaims().IssuedAt.Time)
	for _, tokens := range []int{1, 1000} {
		requests := make([]*http.Request, tokens)
		for i, raw := range manyTokens(b, key, tokens) {
			requests[i] = &http.Request{URL: &url.URL{Path: "/"}, Header: http.Header{"Authorization": {"Bearer " + raw}}}
		}
		v := NewVerifier(Config{Keys: localKeys(b, key), Revocations: revoked})
		call := func(b *testing.B, i int) {
			claims, err := v.VerifyRequest(requests[i%tokens])
			if err == nil {
				err = AuthorizeFunction(claims, namespace, "iris")
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		for i := range tokens {
			call(b, i)
		}
		b.Run(fmt.Sprintf("tokens=%d", tokens), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				call(b, i)
			}
		})
		b.Run(fmt.Sprintf("tokens=%d/parallel", tokens), func(b *testing.B) {
			b.ReportAllocs()
			var next atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for i := int(next.Add(500)); pb.Next(); i++ {
					call(b, i)
				}
			})
		})
	}
}

// BenchmarkFirst is a call whose token is new.
func BenchmarkFirst(b *testing.B) {
	for _, algorithm := range Algorithms {
		key := newKey(b, algorithm)
		raw := sign(b, key, goodClaims())
		v := NewVerifier(Config{Keys: localKeys(b, key)})
		b.Run(string(algorithm), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				v.accepted.Purge()
				if _, err := v.Verify(b.Context(), raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRefused is a call whose token is turned down before its signature is looked at.
func BenchmarkRefused(b *testing.B) {
	key := newKey(b, EdDSA)
	v := NewVerifier(Config{Keys: localKeys(b, key)})
	raw := sign(b, key, with(func(c *Claims) { c.Issuer = "https://elsewhere" }))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), raw); err != errIssuer {
			b.Fatal(err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	for _, algorithm := range Algorithms {
		key := newKey(b, algorithm)
		claims := goodClaims()
		b.Run(string(algorithm), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				sign(b, key, claims)
			}
		})
	}
}
