package issuer

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/auth/token"
)

// Grant types of the token endpoint.
const (
	GrantClientCredentials = "client_credentials"
	GrantRefreshToken      = "refresh_token"
	GrantTokenExchange     = "urn:ietf:params:oauth:grant-type:token-exchange"
)

// Paths that others refer to.
const (
	tokenPath       = "/oauth/token"
	revokePath      = "/oauth/revoke"
	introspectPath  = "/oauth/introspect"
	revocationsPath = "/oauth/revocations"
	jwksPath        = "/.well-known/jwks.json"
)

// Route is one row of Routes and AdminRoutes.
type Route struct {
	Method, Path string // as net/http.ServeMux reads them
	Doc          string
	handler      func(*Issuer) http.HandlerFunc
}

// Routes is every route of Handler.
var Routes = []Route{
	{"POST", tokenPath, "Get a token: client_credentials, refresh_token, or token exchange.", method((*Issuer).serveToken)},
	{"POST", revokePath, "Take back a token (RFC 7009): 200, also when there was nothing to take back.", method((*Issuer).serveRevoke)},
	{"POST", introspectPath, "Ask whether a token holds, and what it says (RFC 7662).", method((*Issuer).serveIntrospect)},
	{"GET", revocationsPath, "The tokens that were taken back and have not expired; what verifiers poll.", method((*Issuer).serveRevocations)},
	{"GET", jwksPath, "The public keys (RFC 7517).", method((*Issuer).serveKeys)},
	{"GET", token.DiscoveryPath, "What there is, and where (OpenID Connect Discovery 1.0).", method((*Issuer).serveDiscovery)},
}

func method(h func(*Issuer, http.ResponseWriter, *http.Request)) func(*Issuer) http.HandlerFunc {
	return func(i *Issuer) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { h(i, w, r) }
	}
}

// answer writes JSON that nobody may keep.
func answer(w http.ResponseWriter, status int, body any) {
	raw, err := json.Marshal(body)
	if err != nil { // strings, numbers and lists of them
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	w.WriteHeader(status)
	_, _ = w.Write(append(raw, '\n'))
}

func (i *Issuer) serveToken(w http.ResponseWriter, r *http.Request) {
	e := entry{event: "token issued"}
	var out tokenAnswer
	q, refused := i.read(w, r)
	e.remote = q.address
	if refused == nil {
		e.client = i.named(q)
		switch grant := q.form.Get("grant_type"); grant {
		case GrantClientCredentials:
			e.grant = grant
			out, refused = i.clientCredentials(q, &e)
		case GrantRefreshToken:
			e.grant = grant
			out, refused = i.refresh(q, &e)
		case GrantTokenExchange:
			e.grant = grant
			out, refused = i.exchange(q, &e)
		case "":
			refused = refuse(codeInvalidRequest, "grant_type is missing")
		default:
			refused = refuseAbout(codeUnsupportedGrant, grant, "the grant_type must be "+GrantClientCredentials+", "+GrantRefreshToken+" or "+GrantTokenExchange)
		}
	}
	if refused != nil {
		i.refused(w, "token refused", e, refused)
		return
	}
	i.audit(e)
	i.metrics.issued.WithLabelValues(e.grant).Inc()
	step("audited")
	answer(w, http.StatusOK, out)
}

// refused notes and answers a refusal.
func (i *Issuer) refused(w http.ResponseWriter, event string, e entry, r *refusal) {
	e.event, e.failure, e.reason = event, r.code, r.reason
	i.audit(e)
	if r.cause != nil {
		i.log.Error("a request could not be answered", "error", r.cause)
	}
	i.metrics.refused.WithLabelValues(r.code).Inc()
	answerRefusal(w, r)
}

// presented is what revocation and introspection are about: an access token or a refresh token.
type presented struct {
	claims *token.Claims // of an access token that is good
	family *family       // of a refresh token that is good
	key    []byte        // of family
	owner  string
}

// present finds the token that a client asks about. An administrator may ask about any. What is not
// good, is nothing of this issuer, or is a refresh token of somebody else, is found as neither.
func (i *Issuer) present(q *request, c *clientRecord) (presented, *refusal) {
	raw := q.form.Get("token")
	if raw == "" {
		return presented{}, refuse(codeInvalidRequest, "token is missing")
	}
	id, hash, ok := parseRefresh(raw)
	if !ok {
		claims, refused := i.verify(q.Context(), i.own, raw)
		if refused != nil {
			return presented{}, nil
		}
		return presented{claims: claims, owner: claims.ClientID}, nil
	}
	client := c.Name
	if c.Admin {
		client = ""
	}
	var out presented
	if err := i.db.View(func(tx *bbolt.Tx) error {
		key, owner := findFamily(tx, client, id)
		f, found, err := getFamily(tx, key)
		if found && f.Expires > i.now().Unix() && string(f.Hash) == string(hash) { // of a public digest, so time tells nothing
			out = presented{family: &f, key: key, owner: owner}
		}
		return err
	}); err != nil {
		return out, failed(err)
	}
	return out, nil
}

func (i *Issuer) serveRevoke(w http.ResponseWriter, r *http.Request) {
	e := entry{event: "token revoked"}
	refused := i.revoke(w, r, &e)
	if refused != nil {
		i.refused(w, "revocation refused", e, refused)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

func (i *Issuer) revoke(w http.ResponseWriter, r *http.Request, e *entry) *refusal {
	q, refused := i.read(w, r)
	e.remote = q.address
	if refused != nil {
		return refused
	}
	e.client = i.named(q)
	c, refused := i.authenticate(q)
	if refused != nil {
		return refused
	}
	p, refused := i.present(q, c)
	if refused != nil {
		return refused
	}
	switch {
	case p.claims == nil && p.family == nil:
		return nil // RFC 7009, section 2.2: what the client wants is so already
	case p.owner != c.Name && !c.Admin:
		return refuse(codeUnauthorized, "the token was issued to another client")
	case p.claims != nil:
		e.about(p.claims)
		if err := i.revokeToken(p.claims); err != nil {
			return failed(err)
		}
	default:
		var ended map[string]revokedToken
		if err := i.batch(func(tx *bbolt.Tx) error {
			// It may have been used since, or revoked.
			f, found, err := getFamily(tx, p.key)
			if err != nil || !found {
				return err
			}
			ended, err = endFamily(tx, p.owner, p.key, f, i.now())
			return err
		}); err != nil {
			return failed(err)
		}
		i.revokedAll(ended)
		e.subject, e.reason = p.owner, fmt.Sprintf("refresh token, and %d access tokens that came of it", len(ended))
		if i.revoked.full(p.owner) {
			if err := i.RevokeTokens(p.owner); err != nil {
				return failed(err)
			}
		}
	}
	i.audit(*e)
	return nil
}

// introspection is RFC 7662, section 2.2. All but active is left out of a token that does not hold.
type introspection struct {
	Active    bool          `json:"active"`
	TokenType string        `json:"token_type,omitempty"`
	Scope     string        `json:"scope,omitempty"`
	ClientID  string        `json:"client_id,omitempty"`
	Issuer    string        `json:"iss,omitempty"`
	Subject   string        `json:"sub,omitempty"`
	Audience  []string      `json:"aud,omitempty"`
	Expires   int64         `json:"exp,omitempty"`
	Issued    int64         `json:"iat,omitempty"`
	NotBefore int64         `json:"nbf,omitempty"`
	ID        string        `json:"jti,omitempty"`
	Function  *token.Grants `json:"function,omitempty"`
}

func (i *Issuer) serveIntrospect(w http.ResponseWriter, r *http.Request) {
	e := entry{}
	q, refused := i.read(w, r)
	e.remote = q.address
	if refused == nil {
		e.client = i.named(q)
		var out introspection
		if out, refused = i.introspect(q); refused == nil {
			answer(w, http.StatusOK, out)
			return
		}
	}
	i.refused(w, "introspection refused", e, refused)
}

func (i *Issuer) introspect(q *request) (introspection, *refusal) {
	c, refused := i.authenticate(q)
	if refused != nil {
		return introspection{}, refused
	}
	p, refused := i.present(q, c)
	switch {
	case refused != nil:
		return introspection{}, refused
	case p.owner != c.Name && !c.Admin: // RFC 7662, section 2.2: not this client's to know
		return introspection{}, nil
	case p.claims != nil:
		t := p.claims
		return introspection{
			Active: true, TokenType: "Bearer", Scope: t.Scope, ClientID: t.ClientID, Issuer: t.Issuer, Subject: t.Subject, Audience: t.Audience,
			Expires: t.ExpiresAt.Unix(), Issued: t.IssuedAt.Unix(), NotBefore: t.NotBefore.Unix(), ID: t.ID, Function: &t.Function,
		}, nil
	case p.family != nil:
		return introspection{
			Active: true, TokenType: "refresh_token", Scope: strings.Join(append(p.family.Scope, ScopeOffline), " "), ClientID: p.owner,
			Issuer: i.cfg.URL, Subject: p.owner, Expires: p.family.Expires,
		}, nil
	}
	return introspection{}, nil
}

// serveRevocations has to be asked anew each time, which with the entity tag costs next to nothing.
func (i *Issuer) serveRevocations(w http.ResponseWriter, r *http.Request) {
	body, etag := i.revoked.list(i.now())
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(body)
}

func (i *Issuer) serveKeys(w http.ResponseWriter, _ *http.Request) {
	i.mu.RLock()
	set := token.PublicSet(i.published()...)
	i.mu.RUnlock()
	i.serveCacheable(w, "application/jwk-set+json", set)
}

func (i *Issuer) serveCacheable(w http.ResponseWriter, contentType string, body any) {
	raw, err := json.Marshal(body)
	if err != nil {
		i.log.Error("a request could not be answered", "error", err)
		http.Error(w, "the answer cannot be written", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(jwksMaxAge/time.Second)))
	_, _ = w.Write(raw)
}

// discovery is the part of OpenID Connect Discovery 1.0 and RFC 8414 that there is something to say
// about, and what token.Discovery adds.
type discovery struct {
	token.Discovery
	TokenEndpoint         string            `json:"token_endpoint"`
	RevocationEndpoint    string            `json:"revocation_endpoint"`
	IntrospectionEndpoint string            `json:"introspection_endpoint"`
	ScopesSupported       []string          `json:"scopes_supported"`
	ResponseTypes         []string          `json:"response_types_supported"`
	SubjectTypes          []string          `json:"subject_types_supported"`
	GrantTypes            []string          `json:"grant_types_supported"`
	TokenAuthMethods      []string          `json:"token_endpoint_auth_methods_supported"`
	RevocationAuth        []string          `json:"revocation_endpoint_auth_methods_supported"`
	IntrospectionAuth     []string          `json:"introspection_endpoint_auth_methods_supported"`
	IDTokenAlgorithms     []token.Algorithm `json:"id_token_signing_alg_values_supported"`
	ClaimsSupported       []string          `json:"claims_supported"`
}

func (i *Issuer) serveDiscovery(w http.ResponseWriter, _ *http.Request) {
	i.mu.RLock()
	algorithms := []token.Algorithm{}
	for _, k := range i.published() {
		if !slices.Contains(algorithms, k.Algorithm()) {
			algorithms = append(algorithms, k.Algorithm())
		}
	}
	i.mu.RUnlock()
	u := i.cfg.URL
	secrets := []string{"client_secret_basic", "client_secret_post"}
	i.serveCacheable(w, "application/json", discovery{
		Discovery:             token.Discovery{Issuer: u, JWKSURI: u + jwksPath, RevocationListURI: u + revocationsPath},
		TokenEndpoint:         u + tokenPath,
		RevocationEndpoint:    u + revokePath,
		IntrospectionEndpoint: u + introspectPath,
		ScopesSupported:       []string{token.ScopeFunction, token.ScopeSystem, ScopeOffline},
		ResponseTypes:         []string{}, // there is no authorization endpoint
		SubjectTypes:          []string{"public"},
		GrantTypes:            []string{GrantClientCredentials, GrantRefreshToken, GrantTokenExchange},
		TokenAuthMethods:      append([]string{"none"}, secrets...), // none: token exchange
		RevocationAuth:        secrets,
		IntrospectionAuth:     secrets,
		IDTokenAlgorithms:     algorithms,
		ClaimsSupported:       []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "scope", "client_id", "function"},
	})
}
