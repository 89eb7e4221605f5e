// Package forward answers gateways and ingresses that ask, for each request they got, whether it may
// pass: nginx's auth_request, Traefik's ForwardAuth, Caddy's forward_auth and Envoy's ext_authz over HTTP.
//
// It decides from the original request's path and bearer token, and it forwards nothing. What makes a
// token good is package token's matter; which clients exist is the issuer's.
package forward

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/faas-predict/faas-predict/auth/token"
)

// Headers of an answer that lets a request pass. A gateway copies them to the request that it passes
// on, in place of what the client may have sent under these names. They are always there; without a
// token, as on Config.Public, they are empty. What is no printable ASCII is percent-encoded.
const (
	SubjectHeader = "X-Auth-Subject" // the claim "sub"
	ClientHeader  = "X-Auth-Client"  // the claim "client_id"
	ScopeHeader   = "X-Auth-Scope"   // the claim "scope": words separated by spaces
)

// Defaults of Config.
const (
	DefaultPath      = "/validate"
	DefaultNamespace = "openfaas-fn"
)

// Verifier is what is asked about tokens; *token.Verifier is one.
type Verifier interface {
	VerifyRequest(r *http.Request) (*token.Claims, error)
}

// Config of a Handler.
type Config struct {
	// Verifier must be set.
	Verifier Verifier
	// Proxy is which gateway asks. The default is to tell by the headers that each sends. Naming it
	// lets in no other: a client that can reach this handler past the gateway, or through a gateway
	// that was left without its configuration, cannot then speak as another one.
	Proxy Proxy
	// Path is where the handler is mounted; the default is DefaultPath.
	Path string
	// Namespace is that of functions that are called by their name alone; the default is
	// DefaultNamespace. It must be the provider's.
	Namespace string
	// Public are paths besides those of functions and /system that need no token: one that ends in /
	// stands for all below it too. The default is none, so that what is not known is not open.
	Public []string
	// Logger is told of each refusal; nil is slog.Default.
	Logger *slog.Logger
}

// Handler answers a gateway's questions: 200 for what may pass, 401 and 403 for what may not, with
// WWW-Authenticate (RFC 6750) where another token would help, 400 for what is not clear enough to
// decide, 503 while tokens cannot be checked. nginx gets 401 or 403 for 400, because it knows no other.
//
// It must be reached at Config.Path and at every path below it, as they were sent. A ServeMux redirects
// paths that are not in their shortest form, which only means that Envoy takes that for a no.
type Handler struct{ cfg Config }

// New returns a Handler.
func New(cfg Config) *Handler {
	if cfg.Path == "" {
		cfg.Path = DefaultPath
	}
	cfg.Path = strings.TrimSuffix(cfg.Path, "/")
	if cfg.Namespace == "" {
		cfg.Namespace = DefaultNamespace
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Handler{cfg}
}

var errOther = &token.Error{Status: http.StatusForbidden, Description: "this path is neither a function's nor one that is public"}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	asked, err := readOriginal(r, h.cfg.Path, h.cfg.Proxy)
	var claims *token.Claims
	if err == nil {
		claims, err = h.decide(r, asked)
	}
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		h.refuse(w, asked, err)
		return
	}
	Identify(w.Header(), claims)
	w.WriteHeader(http.StatusOK)
}

// Identify sets the headers that tell who calls.
func Identify(header http.Header, claims *token.Claims) {
	header.Set(SubjectHeader, printable(claims.Subject))
	header.Set(ClientHeader, printable(claims.ClientID))
	header.Set(ScopeHeader, printable(claims.Scope))
}

// decide returns the claims that a request passes with; they are empty where no token is needed.
func (h *Handler) decide(r *http.Request, asked original) (*token.Claims, error) {
	path, query, _ := strings.Cut(asked.target, "?")
	to, err := resolve(path, h.cfg.Namespace)
	if err != nil {
		return nil, err
	}
	if to.kind == other {
		if !h.public(path) {
			return nil, errOther
		}
		return &token.Claims{}, nil
	}
	call := (&http.Request{Header: r.Header, URL: &url.URL{RawQuery: query}}).WithContext(r.Context())
	claims, err := h.cfg.Verifier.VerifyRequest(call)
	if err != nil {
		return nil, err
	}
	if to.kind == system {
		err = token.AuthorizeSystem(claims)
	} else {
		err = token.AuthorizeFunction(claims, to.namespace, to.name)
	}
	return claims, err
}

func (h *Handler) public(path string) bool {
	if !literal(path) {
		return false
	}
	for _, p := range h.cfg.Public {
		if path == p || strings.HasSuffix(p, "/") && strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// refuse answers with RFC 9457's form.
func (h *Handler) refuse(w http.ResponseWriter, asked original, err error) {
	status, detail := http.StatusInternalServerError, "the request could not be checked"
	var refused *token.Error
	if errors.As(err, &refused) {
		status, detail = refused.Status, refused.Description
	}
	path, _, _ := strings.Cut(asked.target, "?")
	h.cfg.Logger.Info("refused", "status", status, "reason", err, "proxy", string(asked.proxy),
		"method", shortened(asked.method), "host", shortened(asked.host), "path", shortened(path))
	challenged := refused != nil && (refused.Code != "" || status == http.StatusUnauthorized)
	if challenged {
		w.Header().Set("WWW-Authenticate", token.Challenge(err))
	}
	if asked.proxy == Nginx && status == http.StatusBadRequest {
		// nginx knows 401 and 403, and makes an alarming 500 of all others.
		if status = http.StatusForbidden; challenged {
			status = http.StatusUnauthorized // the answer whose WWW-Authenticate it passes on
		}
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(status), status, detail})
}

func shortened(s string) string {
	const shown = 200
	if len(s) > shown {
		return s[:shown] + "…"
	}
	return s
}

// printable percent-encodes what cannot stand in a header, and the percent sign, so that it can be undone.
func printable(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
