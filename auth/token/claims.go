// Package token signs and verifies the bearer tokens that say who may call which function.
//
// It is a leaf: whatever issues tokens and whatever checks them imports it, and it imports neither.
// It stores nothing and serves nothing; how a client proves who it is stays with the issuer.
package token

import (
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// Scopes of an access token. Each is a word of the claim "scope".
const (
	// ScopeFunction is for calling functions, as far as the claim "function" allows.
	ScopeFunction = "function"
	// ScopeSystem is for the provider's /system routes: its bearer is an administrator.
	ScopeSystem = "system"
)

// Claims are what an access token says: RFC 9068's, and the claim "function" as stock of-watchdog's
// jwt_auth reads it.
type Claims struct {
	jwt.RegisteredClaims
	// Scope is a list of words separated by spaces (RFC 8693, section 4.2).
	Scope string `json:"scope,omitempty"`
	// ClientID is the registered client that the token was issued to (RFC 8693, section 4.3).
	ClientID string `json:"client_id,omitempty"`
	// Function says which functions may be called.
	Function Grants `json:"function,omitzero"`
}

// Grants name functions as "namespace:function", where * stands for any run of characters on its
// side of the colon, and "*" alone for every function of every namespace.
type Grants struct {
	// Permissions are the functions that the bearer may call at all.
	Permissions []string `json:"permissions,omitempty"`
	// Audience narrows them to the functions that this token is meant for; empty narrows nothing.
	Audience []string `json:"audience,omitempty"`
}

// Allow reports whether both lists admit the function.
func (g Grants) Allow(namespace, function string) bool {
	match := func(pattern string) bool { return Match(pattern, namespace, function) }
	return slices.ContainsFunc(g.Permissions, match) && (len(g.Audience) == 0 || slices.ContainsFunc(g.Audience, match))
}

// Match reports whether a pattern of Grants names the function. The whole name must match: a pattern
// is not searched for in it, and no * reaches across the colon.
func Match(pattern, namespace, function string) bool {
	if pattern == "*" {
		return true
	}
	inNamespace, inFunction, ok := strings.Cut(pattern, ":")
	return ok && inNamespace != "" && inFunction != "" && !strings.Contains(function, ":") &&
		matchPart(inNamespace, namespace) && matchPart(inFunction, function)
}

// matchPart is asked for every call, so it allocates nothing, which a library for globs does.
func matchPart(pattern, s string) bool {
	head, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return s == pattern
	}
	s, found := strings.CutPrefix(s, head)
	for found {
		var part string
		part, rest, wild = strings.Cut(rest, "*")
		if !wild {
			return strings.HasSuffix(s, part)
		}
		_, s, found = strings.Cut(s, part)
	}
	return false
}

// HasScope reports whether scope is one of the token's.
func (c *Claims) HasScope(scope string) bool {
	for word := range strings.FieldsSeq(c.Scope) {
		if word == scope {
			return true
		}
	}
	return false
}
