package issuer

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/faas-predict/faas-predict/auth/token"
)

// ScopeOffline asks for a refresh token (OpenID Connect Core 1.0, section 11). It is in no access token.
const ScopeOffline = "offline_access"

// Limits on what a request may ask for.
const (
	maxAudiences     = 64
	maxAudienceBytes = 1 << 10
	// maxSubject is OpenID Connect's limit for "sub", and room for the issuer's name.
	maxSubject = 512
)

// may is all that somebody may be given.
type may struct {
	scope     []string
	functions token.Grants
}

// asked is what a request asks for.
type asked struct {
	scope    []string
	offline  bool
	audience []string // patterns of functions
}

// ask reads scope, audience and resource.
func (i *Issuer) ask(q *request) (asked, *refusal) {
	var a asked
	for _, word := range strings.Fields(q.form.Get("scope")) {
		switch {
		case word == ScopeOffline:
			a.offline = true
		case word != token.ScopeFunction && word != token.ScopeSystem:
			return a, refuseAbout(codeInvalidScope, word, fmt.Sprintf("the scope must be of the words %s, %s and %s", token.ScopeFunction, token.ScopeSystem, ScopeOffline))
		case !slices.Contains(a.scope, word):
			a.scope = append(a.scope, word)
		}
	}
	size := 0
	for _, target := range q.form["audience"] {
		if target == i.cfg.URL { // where every token of ours is for: this narrows nothing
			continue
		}
		if ValidatePattern(target) != nil {
			return a, refuseAbout(codeInvalidTarget, target, "the audience must be NAMESPACE:FUNCTION, where * stands for any run of letters, or this issuer's URL")
		}
		if size += len(target); size > maxAudienceBytes || len(a.audience) == maxAudiences {
			return a, refuse(codeInvalidTarget, fmt.Sprintf("the audiences must be at most %d, with %d bytes together", maxAudiences, maxAudienceBytes))
		}
		if !slices.Contains(a.audience, target) {
			a.audience = append(a.audience, target)
		}
	}
	for _, target := range q.form["resource"] {
		if target != i.cfg.URL {
			return a, refuseAbout(codeInvalidTarget, target, "the resource must be this issuer's URL; functions are named by audience")
		}
	}
	return a, nil
}

// narrow is the part of m that is asked for, which never is more than m. Without a scope it is all that
// m has, except that a token meant for some functions is not for the provider.
func (m may) narrow(a asked) (may, *refusal) {
	out := may{scope: m.scope}
	switch {
	case len(a.scope) > 0:
		out.scope = a.scope
	case len(a.audience) > 0:
		out.scope = []string{token.ScopeFunction}
	}
	for _, word := range out.scope {
		if !slices.Contains(m.scope, word) {
			return out, refuseAbout(codeInvalidScope, word, "this scope may not be had by who asks for it")
		}
	}
	if len(a.audience) > 0 && slices.Contains(out.scope, token.ScopeSystem) {
		// It would open the provider's /system routes, which no audience narrows.
		return out, refuse(codeInvalidScope, "a token of scope system cannot be narrowed to functions: ask for one without audience, or for scope function")
	}
	if !slices.Contains(out.scope, token.ScopeFunction) {
		return out, nil
	}
	out.functions = m.functions
	if len(a.audience) == 0 {
		return out, nil
	}
	for _, target := range a.audience {
		if !covers(m.functions, target) {
			return out, refuseAbout(codeInvalidTarget, target, "this function may not be called by who asks for it")
		}
	}
	out.functions.Audience = a.audience
	return out, nil
}

// covers reports whether g admits every function that a pattern names. It is said by matching the
// pattern itself, * included: only a * of g matches that, and matches whatever stands for it too.
func covers(g token.Grants, pattern string) bool {
	namespace, function, found := strings.Cut(pattern, ":")
	if !found { // "*"
		return slices.Contains(g.Permissions, pattern) && (len(g.Audience) == 0 || slices.Contains(g.Audience, pattern))
	}
	return g.Allow(namespace, function)
}

// issue is a token to be made.
type issue struct {
	may
	subject, client string
	id              string // a new one if empty
	ttl             time.Duration
	notAfter        time.Time // zero: ttl alone counts
}

// sign makes the token. The caller has mu, for reading at least.
func (i *Issuer) sign(s issue) (string, *token.Claims, *refusal) {
	now := i.now().Truncate(time.Second)
	issued := i.revoked.earliest(s.client, now)
	expires := issued.Add(s.ttl)
	if !s.notAfter.IsZero() && expires.After(s.notAfter) {
		expires = s.notAfter
	}
	if !expires.After(now) {
		return "", nil, refuse(codeInvalidRequest, "the token that is exchanged has expired")
	}
	if s.id == "" {
		s.id = randomText(16)
	}
	claims := &token.Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: i.cfg.URL, Subject: s.subject, Audience: jwt.ClaimStrings{i.cfg.URL}, ID: s.id,
			ExpiresAt: jwt.NewNumericDate(expires), NotBefore: jwt.NewNumericDate(now), IssuedAt: jwt.NewNumericDate(issued),
		},
		Scope: strings.Join(s.scope, " "), ClientID: s.client, Function: s.functions,
	}
	key := i.signer(i.now())
	if key == nil {
		key = i.keys[0] // the clock went back behind the first one
	}
	signed, err := key.Sign(claims)
	if err != nil {
		return "", nil, failed(err)
	}
	return signed, claims, nil
}

// tokenAnswer is RFC 6749, section 5.1, and RFC 8693, section 2.2.1.
type tokenAnswer struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type,omitempty"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"`
	RefreshToken    string `json:"refresh_token,omitempty"`
	Scope           string `json:"scope,omitempty"`
}

func (i *Issuer) answerTo(signed string, c *token.Claims) tokenAnswer {
	left := c.ExpiresAt.Sub(i.now().Truncate(time.Second))
	return tokenAnswer{AccessToken: signed, TokenType: "Bearer", ExpiresIn: int64(left / time.Second), Scope: c.Scope}
}

// clientCredentials answers RFC 6749, section 4.4. A refresh token, which that section does not want
// given without need, comes only with scope offline_access.
func (i *Issuer) clientCredentials(q *request, e *entry) (tokenAnswer, *refusal) {
	c, refused := i.authenticate(q)
	if refused != nil {
		return tokenAnswer{}, refused
	}
	a, refused := i.ask(q)
	if refused != nil {
		return tokenAnswer{}, refused
	}
	granted, refused := may{scopeOf(c), token.Grants{Permissions: c.Functions}}.narrow(a)
	if refused != nil {
		return tokenAnswer{}, refused
	}
	i.mu.RLock()
	defer i.mu.RUnlock()
	if refused := i.current(c); refused != nil {
		return tokenAnswer{}, refused
	}
	signed, claims, refused := i.sign(issue{may: granted, subject: c.Name, client: c.Name, ttl: i.ttl(c)})
	if refused != nil {
		return tokenAnswer{}, refused
	}
	out := i.answerTo(signed, claims)
	if a.offline {
		refresh, err := i.newFamily(c.Name, granted, claims)
		if err != nil {
			return tokenAnswer{}, failed(err)
		}
		out.RefreshToken, out.Scope = refresh, claims.Scope+" "+ScopeOffline
	}
	e.issued(claims)
	return out, nil
}
