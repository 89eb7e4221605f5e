package api

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"

	"github.com/faas-predict/faas-predict/auth/forward"
	"github.com/faas-predict/faas-predict/auth/token"
	"github.com/faas-predict/faas-predict/provider/backend"
)

// Access decides who may call what. Its zero value lets everyone do everything.
type Access struct {
	// Basic is the administrator's user and password; nil: /system asks for nothing.
	Basic *Credentials
	// Tokens checks bearer tokens; nil: there are none, and a function that wants one cannot be called.
	Tokens *token.Verifier
	// Bundles reports whether a credential is that of a version's bundle; nil: none is.
	Bundles func(credential, model, version string) bool
	// Functions makes every function want a token whose annotation does not say otherwise.
	Functions bool
}

// administrator lets requests at and below prefix pass only with the administrator's password or a token
// of scope system, whether or not there is such a route: a route that is added later cannot be forgotten
// here.
func (a *Access) administrator(prefix string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path := r.URL.Path; a.Basic == nil || path != prefix && !strings.HasPrefix(path, prefix+"/") || a.fetches(r) {
			next.ServeHTTP(w, r)
			return
		}
		if err := a.admit(r); err != nil {
			status := http.StatusUnauthorized
			if refused := (*token.Error)(nil); errors.As(err, &refused) {
				status = refused.Status
			}
			if a.Tokens != nil {
				w.Header().Add("WWW-Authenticate", token.Challenge(err))
			}
			if status == http.StatusUnauthorized {
				w.Header().Add("WWW-Authenticate", `Basic realm="Restricted"`)
			}
			http.Error(w, err.Error(), status)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// fetches reports whether the request reads a version's bundle with the credential of just that.
func (a *Access) fetches(r *http.Request) bool {
	if a.Bundles == nil || r.Method != http.MethodGet {
		return false
	}
	// As it was sent: a name has nothing to be escaped, and what is may mean another route to the mux.
	parts := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), modelsPrefix), "/")
	if !strings.HasPrefix(r.URL.EscapedPath(), modelsPrefix) || len(parts) != 4 || parts[1] != "versions" || parts[3] != "bundle" {
		return false
	}
	given := r.Header["Authorization"]
	if len(given) != 1 {
		return false
	}
	scheme, credential, _ := strings.Cut(given[0], " ")
	return strings.EqualFold(scheme, "Bearer") && a.Bundles(credential, parts[0], parts[2])
}

var errCredentials = errors.New("invalid credentials")

func (a *Access) admit(r *http.Request) error {
	authorization := r.Header["Authorization"]
	scheme := ""
	if len(authorization) == 1 {
		scheme, _, _ = strings.Cut(authorization[0], " ")
	}
	if a.Tokens != nil && (strings.EqualFold(scheme, "Bearer") || len(authorization) > 1) {
		claims, err := a.Tokens.VerifyRequest(r)
		if err != nil {
			return err
		}
		return token.AuthorizeSystem(claims)
	}
	if user, password, given := r.BasicAuth(); !given || len(authorization) != 1 || !a.Basic.match(user, password) {
		return errCredentials
	}
	return nil
}

var errNoIssuer = &token.Error{Status: http.StatusServiceUnavailable, Description: "this function wants a token, and this provider has no issuer to check it with"}

// caller returns what the token of a function's caller says, nil if the function wants none.
func (a *Access) caller(r *http.Request, ref backend.Ref, annotation string) (*token.Claims, error) {
	if annotation == backend.AccessOpen || annotation == "" && !a.Functions {
		return nil, nil
	}
	if a.Tokens == nil {
		return nil, errNoIssuer
	}
	claims, err := a.Tokens.VerifyRequest(r)
	if err != nil {
		return nil, err
	}
	return claims, token.AuthorizeFunction(claims, ref.Namespace, ref.Name)
}

// identify tells a function who calls it, by headers that nobody but the provider can set: what a client
// sends under these names is removed, with an underscore for a hyphen as well, which many servers of
// functions take for the same. The token itself goes no further once it was checked here: a function has no
// use for it but to call others in its bearer's name.
func identify(header http.Header, caller *token.Claims) {
	for name := range header {
		if len(name) >= len(identityPrefix) && (name[0] == 'X' || name[0] == 'x') && isIdentity(name) {
			delete(header, name)
		}
	}
	if caller != nil {
		delete(header, "Authorization")
		forward.Identify(header, caller)
	}
}

const identityPrefix = "X-Auth-"

func isIdentity(name string) bool {
	for _, known := range []string{forward.SubjectHeader, forward.ClientHeader, forward.ScopeHeader} {
		if len(name) == len(known) && strings.EqualFold(strings.ReplaceAll(name, "_", "-"), known) {
			return true
		}
	}
	return false
}

// refuse answers a call that may not pass.
func refuse(w http.ResponseWriter, callID string, err error) int {
	status, detail := http.StatusInternalServerError, "the call could not be checked"
	if refused := (*token.Error)(nil); errors.As(err, &refused) {
		status, detail = refused.Status, refused.Description
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
		slog.Warn("a call could not be checked", "call_id", callID, "error", err)
	} else {
		w.Header().Set("WWW-Authenticate", token.Challenge(err))
	}
	problem(w, status, callID, detail)
	return status
}
