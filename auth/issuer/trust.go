package issuer

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/ryanuber/go-glob"
	"gopkg.in/yaml.v3"

	"github.com/faas-predict/faas-predict/auth/certificate"
	"github.com/faas-predict/faas-predict/auth/token"
)

// Trust says what tokens of an outside OpenID Connect issuer are good for: a cluster's service account
// tokens, a company's Keycloak, a CI system's jobs.
type Trust struct {
	// Issuer is the claim "iss", and where discovery begins.
	Issuer string `yaml:"issuer"`
	// Audience is what the claim "aud" must contain; this issuer's URL if empty. A token that was
	// meant for somebody else must not open anything here.
	Audience string `yaml:"audience"`
	// JWKSURI is where the keys are; what discovery says if empty. Discovery is then not asked.
	JWKSURI string `yaml:"jwks_uri"`
	// CAFile has the certificates (PEM) that the issuer's server is checked with; the system's if empty. It
	// is read at each connection.
	CAFile string `yaml:"ca_file"`
	// TokenFile has a bearer token for reading discovery and keys, as Kubernetes wants one. It is read
	// each time.
	TokenFile string `yaml:"token_file"`
	// Claim is what rules look at: a string or a list of strings; "sub" if empty. A name with dots that
	// no claim has is a path into objects, as realm_access.roles.
	Claim string `yaml:"claim"`
	// Rules give rights. All that match add up; a token that none matches gets nothing.
	Rules []Rule `yaml:"rules"`
}

// Rule gives rights to tokens with a certain claim.
type Rule struct {
	// Match is the claim, or one of a list; * stands for any run of characters.
	Match string `yaml:"match"`
	// Functions are patterns, as a Client has them.
	Functions []string `yaml:"functions"`
	// Admin gives scope system, and every function if none is named.
	Admin bool `yaml:"admin"`
}

// ParseTrust reads a list of Trust from YAML or JSON.
func ParseTrust(raw []byte) ([]Trust, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	var all []Trust
	if err := decoder.Decode(&all); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("trusted issuers: %w", err)
	}
	return all, nil
}

func (t *Trust) complete(self string) error {
	if t.Claim == "" {
		t.Claim = "sub"
	}
	if t.Audience == "" {
		t.Audience = self
	}
	if t.JWKSURI != "" {
		u, err := url.Parse(t.JWKSURI)
		if err != nil || u.Host == "" || (u.Scheme != "https" && (u.Scheme != "http" || strings.HasPrefix(t.Issuer, "https:"))) {
			return fmt.Errorf("trusted issuer %s: jwks_uri must be an http or https URL, and https when the issuer's is", t.Issuer)
		}
	}
	if len(t.Rules) == 0 {
		return fmt.Errorf("trusted issuer %s: it must have at least one rule", t.Issuer)
	}
	size := 0
	for _, r := range t.Rules {
		if r.Match == "" {
			return fmt.Errorf("trusted issuer %s: each rule must say what to match", t.Issuer)
		}
		if len(r.Functions) == 0 && !r.Admin {
			return fmt.Errorf("trusted issuer %s: the rule for %q must name functions or be for administrators", t.Issuer, r.Match)
		}
		for _, pattern := range r.Functions {
			if err := ValidatePattern(pattern); err != nil {
				return fmt.Errorf("trusted issuer %s: the rule for %q: %w", t.Issuer, r.Match, err)
			}
			size += len(pattern)
		}
	}
	if size > maxPatternBytes {
		return fmt.Errorf("trusted issuer %s: function patterns of all its rules must not be longer than %d bytes together, or tokens become too long", t.Issuer, maxPatternBytes)
	}
	return nil
}

// outside is a trusted issuer at work.
type outside struct {
	Trust
	authority *token.Authority
	verifier  *token.Verifier
}

func newOutside(t Trust, cfg Config) (*outside, error) {
	transport, err := t.transport()
	if err != nil {
		return nil, fmt.Errorf("trusted issuer %s: %w", t.Issuer, err)
	}
	authority, err := token.NewAuthority(token.AuthorityConfig{URL: t.Issuer, Issuer: t.Issuer, Transport: transport, Logger: cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("trusted issuer: %w", err)
	}
	return &outside{t, authority, token.NewVerifier(token.Config{Keys: authority, Revocations: authority, Audience: t.Audience, Now: cfg.Now})}, nil
}

func (o *outside) close() { o.authority.Close() }

// may is what the rules give to a token that is verified.
func (o *outside) may(raw string) (may, error) {
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1]) // verified, so it has three parts
	if err != nil {
		return may{}, err
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		return may{}, err
	}
	var m may
	for _, r := range o.Rules {
		for _, value := range claimed(claims, o.Claim) {
			if !glob.Glob(r.Match, value) {
				continue
			}
			functions := r.Functions
			if r.Admin {
				m = m.add(token.ScopeSystem)
				if len(functions) == 0 {
					functions = []string{"*"}
				}
			}
			m = m.add(token.ScopeFunction, functions...)
		}
	}
	return m, nil
}

// claimed returns the strings of a claim.
func claimed(claims map[string]any, name string) []string {
	value, found := claims[name]
	for !found {
		outer, inner, dotted := strings.Cut(name, ".")
		object, ok := claims[outer].(map[string]any)
		if !dotted || !ok {
			return nil
		}
		claims, name = object, inner
		value, found = claims[name]
	}
	switch v := value.(type) {
	case string:
		return []string{v}
	case []any:
		var all []string
		for _, one := range v {
			if s, ok := one.(string); ok {
				all = append(all, s)
			}
		}
		return all
	}
	return nil
}

// transport is how the issuer's server is reached; nil when there is nothing special about it.
func (t *Trust) transport() (http.RoundTripper, error) {
	var out http.RoundTripper
	if t.CAFile != "" {
		transport, err := certificate.Transport(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		out = transport
	}
	if t.TokenFile != "" {
		out = bearing{t.TokenFile, out}
	}
	if t.JWKSURI != "" {
		out = described{*t, out}
	}
	return out, nil
}

func orDefault(t http.RoundTripper) http.RoundTripper {
	if t == nil {
		return http.DefaultTransport
	}
	return t
}

// bearing adds the token of a file to each request.
type bearing struct {
	file string
	next http.RoundTripper
}

func (b bearing) RoundTrip(r *http.Request) (*http.Response, error) {
	text, err := os.ReadFile(b.file)
	if err != nil {
		return nil, fmt.Errorf("token_file: %w", err)
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(text)))
	return orDefault(b.next).RoundTrip(r)
}

// CloseIdleConnections lets http.Client's method of that name through.
func (b bearing) CloseIdleConnections() { closeIdle(b.next) }

// described answers for an issuer whose discovery document is not asked for.
type described struct {
	t    Trust
	next http.RoundTripper
}

func (d described) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.String() != strings.TrimSuffix(d.t.Issuer, "/")+token.DiscoveryPath {
		return orDefault(d.next).RoundTrip(r)
	}
	body, err := json.Marshal(token.Discovery{Issuer: d.t.Issuer, JWKSURI: d.t.JWKSURI})
	if err != nil {
		return nil, err
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}, nil
}

// CloseIdleConnections lets http.Client's method of that name through.
func (d described) CloseIdleConnections() { closeIdle(d.next) }

func closeIdle(t http.RoundTripper) {
	if c, ok := t.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
