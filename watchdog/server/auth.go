package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/faas-predict/faas-predict/auth/certificate"
	"github.com/faas-predict/faas-predict/auth/token"
)

// Where of-watchdog looks for the issuer. Within a cluster it is the gateway.
const (
	clusterAuthority = "http://gateway.openfaas:8080"
	localAuthority   = "http://127.0.0.1:8000"
)

// namespaceFile says in a pod of Kubernetes which namespace it is in.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// guard lets only calls pass whose bearer token is for this function.
type guard struct {
	authority       *token.Authority
	verifier        *token.Verifier
	namespace, name string
	refused         func(err error, r *http.Request, id string) // told of each refusal; nil: nobody
}

// newGuard starts to fetch the issuer's keys. It does not wait for them: until they are there, calls
// are refused and the function is not ready.
func newGuard(s Settings, logger *slog.Logger) (*guard, error) {
	g := &guard{namespace: s.Namespace, name: s.Name}
	if g.name == "" {
		return nil, errors.New("jwt_auth=true needs OPENFAAS_NAME: tokens are for a function by its name")
	}
	if g.namespace == "" {
		raw, err := os.ReadFile(namespaceFile)
		if err != nil {
			return nil, fmt.Errorf("jwt_auth=true needs OPENFAAS_NAMESPACE, or to run in a pod: %w", err)
		}
		g.namespace = strings.TrimSpace(string(raw))
	}
	url := s.Authority
	switch {
	case url != "":
	case s.JWTAuthLocal:
		url = localAuthority
	default:
		url = clusterAuthority
	}
	transport, err := certificate.Transport(s.AuthorityCA)
	if err != nil {
		return nil, fmt.Errorf("authority_ca: %w", err)
	}
	if g.authority, err = token.NewAuthority(token.AuthorityConfig{URL: url, RevocationBound: s.RevocationBound, Transport: transport, Logger: logger}); err != nil {
		return nil, err
	}
	g.verifier = token.NewVerifier(token.Config{Keys: g.authority, Revocations: g.authority})
	if s.JWTAuthDebug {
		g.refused = func(err error, r *http.Request, id string) {
			logger.Info("refused", "reason", err, "method", r.Method, "path", r.URL.Path, "call_id", id)
		}
	}
	logger.Info("calls need a bearer token", "authority", url, "function", g.namespace+":"+g.name)
	return g, nil
}

func (g *guard) close() {
	if g != nil {
		g.authority.Close()
	}
}

// admit is nil for a call that may pass, as every call may where there is no guard. Else it is a
// *token.Error.
func (g *guard) admit(r *http.Request, id string) error {
	if g == nil {
		return nil
	}
	err := g.check(r)
	if err != nil && g.refused != nil {
		g.refused(err, r, id)
	}
	return err
}

func (g *guard) check(r *http.Request) error {
	claims, err := g.verifier.VerifyRequest(r)
	if err != nil {
		return err
	}
	return token.AuthorizeFunction(claims, g.namespace, g.name)
}

// ready is nil once tokens can be checked.
func (g *guard) ready() error {
	if g == nil {
		return nil
	}
	if _, err := g.authority.Keys(); err != nil {
		return fmt.Errorf("tokens cannot be checked: %w", err)
	}
	return nil
}

// challenge tells a caller whose token did not do what would.
func challenge(h http.Header, err error) {
	var refused *token.Error
	if errors.As(err, &refused) && refused.Status != http.StatusServiceUnavailable {
		h.Set("WWW-Authenticate", token.Challenge(refused))
	}
}

// defaultRevocationBound is how long a token that was revoked may still be accepted.
const defaultRevocationBound = 10 * time.Second
