package issuer

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/faas-predict/faas-predict/auth/token"
)

// Token types of RFC 8693, section 3.
const (
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"
)

// exchange answers RFC 8693. The token that is sent is all the authentication there is, as go-sdk's
// ExchangeIDToken has it; a client that sends its secret nevertheless must send the right one.
//
// RFC 8693 wants invalid_request for a subject token that is no good, whatever is wrong with it.
func (i *Issuer) exchange(q *request, e *entry) (tokenAnswer, *refusal) {
	if _, _, given, refused := q.credentials(); refused != nil {
		return tokenAnswer{}, refused
	} else if given {
		if _, refused := i.authenticate(q); refused != nil {
			return tokenAnswer{}, refused
		}
	}
	form := q.form
	switch kind := form.Get("subject_token_type"); {
	case form.Get("subject_token") == "":
		return tokenAnswer{}, refuse(codeInvalidRequest, "subject_token is missing")
	case kind != typeIDToken && kind != typeAccessToken && kind != typeJWT:
		return tokenAnswer{}, refuse(codeInvalidRequest, "subject_token_type must be id_token, access_token or jwt, each after urn:ietf:params:oauth:token-type:")
	case form.Get("actor_token") != "" || form.Get("actor_token_type") != "":
		return tokenAnswer{}, refuse(codeInvalidRequest, "actor_token is not supported")
	}
	switch form.Get("requested_token_type") {
	case "", typeAccessToken, typeJWT:
	default:
		return tokenAnswer{}, refuse(codeInvalidRequest, "requested_token_type must be access_token or jwt")
	}
	a, refused := i.ask(q)
	if refused != nil {
		return tokenAnswer{}, refused
	}
	if a.offline {
		return tokenAnswer{}, refuse(codeInvalidScope, "an exchange gives no refresh token")
	}
	var out tokenAnswer
	issuer := claimedIssuer(form.Get("subject_token"))
	if issuer == i.cfg.URL {
		out, refused = i.exchangeOwn(q, e, a)
	} else if o := i.outside.get(issuer); o != nil {
		out, refused = i.exchangeOutside(q, e, a, o)
	} else {
		return tokenAnswer{}, refuse(codeInvalidRequest, "the subject token is not of this issuer, nor of one that it trusts")
	}
	if refused != nil {
		return tokenAnswer{}, refused
	}
	out.IssuedTokenType = typeAccessToken
	return out, nil
}

// claimedIssuer reads "iss" without believing it: it only chooses whose keys the token is checked with.
func claimedIssuer(raw string) string {
	if len(raw) > token.MaxBytes {
		return ""
	}
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(raw, &claims); err != nil && claims.Issuer == "" {
		return ""
	}
	return claims.Issuer
}

// exchangeOwn makes a narrower token of one of ours. It holds no longer, may call no more, and has no
// scope that the first one has not, whoever the client is.
func (i *Issuer) exchangeOwn(q *request, e *entry, a asked) (tokenAnswer, *refusal) {
	// From here on, so that the token is as good when the new one is signed as when it was verified. What
	// is revoked one by one is not held up by this, and takes the new one along by its id.
	i.mu.RLock()
	defer i.mu.RUnlock()
	subject, refused := i.verify(q.Context(), i.own, q.form.Get("subject_token"))
	if refused != nil {
		return tokenAnswer{}, refused
	}
	e.client, e.subject = subject.ClientID, subject.Subject
	granted, refused := may{strings.Fields(subject.Scope), subject.Function}.narrow(a)
	if refused != nil {
		return tokenAnswer{}, refused
	}
	if len(a.audience) > 0 {
		// What the token may call beyond its audience is nothing that the function it goes to need know.
		granted.functions.Permissions = a.audience
	}
	ttl := i.cfg.AccessTTL
	if c := i.clients[subject.ClientID]; c != nil {
		ttl = i.ttl(c)
	}
	signed, claims, refused := i.sign(issue{
		may: granted, subject: subject.Subject, client: subject.ClientID, id: exchangedID(subject.ID), ttl: ttl, notAfter: subject.ExpiresAt.Time,
	})
	if refused != nil {
		return tokenAnswer{}, refused
	}
	e.issued(claims)
	return i.answerTo(signed, claims), nil
}

// exchangeOutside makes a token for somebody whom an outside issuer vouches for.
func (i *Issuer) exchangeOutside(q *request, e *entry, a asked, o *outside) (tokenAnswer, *refusal) {
	raw := q.form.Get("subject_token")
	subject, refused := i.verify(q.Context(), o.verifier, raw)
	if refused != nil {
		return tokenAnswer{}, refused
	}
	name := o.Issuer + "|" + subject.Subject
	if subject.Subject == "" || len(name) > maxSubject {
		return tokenAnswer{}, refuse(codeInvalidRequest, "the subject token must say who it is of (sub), in a few hundred bytes at most")
	}
	e.client, e.subject = name, name
	m, err := o.may(raw)
	if err != nil {
		return tokenAnswer{}, refuse(codeInvalidRequest, "the subject token's claims cannot be read")
	}
	if len(m.scope) == 0 {
		return tokenAnswer{}, refuse(codeInvalidRequest, "the subject token is good, but no rule for its issuer matches its claim "+o.Claim)
	}
	granted, refused := m.narrow(a)
	if refused != nil {
		return tokenAnswer{}, refused
	}
	if len(a.audience) > 0 {
		granted.functions.Permissions = a.audience
	}
	i.mu.RLock()
	defer i.mu.RUnlock()
	signed, claims, refused := i.sign(issue{may: granted, subject: name, client: name, ttl: i.cfg.AccessTTL, notAfter: subject.ExpiresAt.Time})
	if refused != nil {
		return tokenAnswer{}, refused
	}
	e.issued(claims)
	return i.answerTo(signed, claims), nil
}

// verify checks a token, and turns what is wrong with it into a refusal.
func (i *Issuer) verify(ctx context.Context, v *token.Verifier, raw string) (*token.Claims, *refusal) {
	claims, err := v.Verify(ctx, raw)
	if err == nil {
		return claims, nil
	}
	var bad *token.Error
	if !errors.As(err, &bad) {
		return nil, failed(err)
	}
	if bad.Status == http.StatusServiceUnavailable {
		refused := later(bad.Description, time.Second)
		refused.cause = err
		return nil, refused
	}
	return nil, refuse(codeInvalidRequest, "the subject token is not good: "+bad.Description)
}

// add joins what two rules give.
func (m may) add(scope string, functions ...string) may {
	if !slices.Contains(m.scope, scope) {
		m.scope = append(m.scope, scope)
	}
	for _, pattern := range functions {
		if !slices.Contains(m.functions.Permissions, pattern) {
			m.functions.Permissions = append(m.functions.Permissions, pattern)
		}
	}
	return m
}
