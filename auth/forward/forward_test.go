package forward

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"github.com/faas-predict/faas-predict/auth/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const issuer = "https://gateway.example.com"

// mint is an issuer of tokens for tests.
type mint struct {
	t        testing.TB
	key      *token.Key
	verifier *token.Verifier
}

func newMint(t testing.TB) *mint {
	t.Helper()
	key, err := token.NewKey(token.EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := token.NewLocalKeys(issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	return &mint{t, key, token.NewVerifier(token.Config{Keys: keys})}
}

// token is for the functions that permissions name, with a scope.
func (m *mint) token(scope string, permissions ...string) string {
	m.t.Helper()
	raw, err := m.key.Sign(&token.Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: issuer, Audience: jwt.ClaimStrings{issuer}, Subject: "J\u00f6rg 100%\r\nX-Auth-Scope: system",
			ExpiresAt: jwt.NewNumericDate(time.Now().Add(time.Hour)),
		},
		Scope: scope, ClientID: "team-a", Function: token.Grants{Permissions: permissions},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return raw
}

func (m *mint) handler(change ...func(*Config)) *Handler {
	cfg := Config{Verifier: m.verifier, Logger: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	return New(cfg)
}

// question is how each gateway asks about the same request.
func question(proxy Proxy, method, host, target string) *http.Request {
	switch proxy {
	case Envoy:
		r := httptest.NewRequest(method, "/validate"+target, nil)
		r.Host = host
		return r
	case Traefik:
		r := httptest.NewRequest(http.MethodGet, "/validate", nil)
		r.Header.Set("X-Forwarded-Method", method)
		r.Header.Set("X-Forwarded-Proto", "https")
		r.Header.Set("X-Forwarded-Host", host)
		r.Header.Set("X-Forwarded-Uri", target)
		r.Header.Set("X-Forwarded-For", "192.0.2.1")
		return r
	default:
		r := httptest.NewRequest(http.MethodGet, "/validate", nil)
		r.Header.Set("X-Original-Method", method)
		r.Header.Set("X-Original-Host", host)
		r.Header.Set("X-Original-URI", target)
		return r
	}
}

func ask(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestDecisions(t *testing.T) {
	m := newMint(t)
	h := m.handler(func(c *Config) { c.Public = []string{"/healthz", "/docs/"} })
	iris := m.token("function", "openfaas-fn:iris")
	all := m.token("function", "openfaas-fn:*")
	admin := m.token("system")
	const plain = `Bearer realm="IAM function invoke"`
	for _, test := range []struct {
		name, bearer, target string
		want                 int
		challenge            string // begins with
	}{
		{"its function", iris, "/function/iris", 200, ""},
		{"its function by the full name", iris, "/function/iris.openfaas-fn/predict?x=1", 200, ""},
		{"its function, asynchronously", iris, "/async-function/iris", 200, ""},
		{"path of the function's own", iris, "/function/iris/a//b%2Fc/%C3%A9/100%25/..;x/..." + "x", 400, ""},
		{"odd path of the function's own", iris, "/function/iris/a//b%2Fc/%C3%A9/100%25/;x/...?../..", 200, ""},
		{"another function", iris, "/function/wine", 403, plain + `, error="insufficient_scope"`},
		{"another namespace", all, "/function/iris.staging", 403, plain + `, error="insufficient_scope"`},
		{"function that begins alike", iris, "/function/iris-2", 403, plain + `, error="insufficient_scope"`},
		{"no token", "", "/function/iris", 401, plain},
		{"bad token", iris + "x", "/function/iris", 401, plain + `, error="invalid_token"`},
		{"token in the query", "", "/function/iris?access_token=" + iris, 400, plain + `, error="invalid_request"`},
		{"token in both", iris, "/function/iris?access_token=" + iris, 400, plain + `, error="invalid_request"`},
		{"system without its scope", all, "/system/functions", 403, plain + `, error="insufficient_scope"`},
		{"system without a token", "", "/system/functions", 401, plain},
		{"system", admin, "/system/functions?namespace=a", 200, ""},
		{"system itself", admin, "/system", 200, ""},
		{"function with an administrator's token alone", admin, "/function/iris", 403, plain + `, error="insufficient_scope"`},
		{"public", "", "/healthz", 200, ""},
		{"below a public folder", "", "/docs/a/b", 200, ""},
		{"beside a public path", "", "/healthz/x", 403, ""},
		{"out of a public folder", "", "/docs/../function/iris", 400, ""},
		{"out of a public folder, encoded", "", "/docs/%2e%2e/function/iris", 400, ""},
		{"public spelled in another way", "", "/docs//a", 403, ""},
		{"elsewhere", admin, "/", 403, ""},
		{"elsewhere below", admin, "/ui/", 403, ""},
		{"name alone", all, "/function/", 400, ""},
		{"prefix alone", all, "/function", 400, ""},
	} {
		for _, proxy := range []Proxy{Nginx, Traefik, Envoy} {
			t.Run(test.name+"/"+string(proxy), func(t *testing.T) {
				r := question(proxy, http.MethodPost, "gateway.example.com", test.target)
				if test.bearer != "" {
					r.Header.Set("Authorization", "Bearer "+test.bearer)
				}
				w := ask(h, r)
				want := test.want
				if proxy == Nginx && want == 400 {
					if want = 403; test.challenge != "" {
						want = 401
					}
				}
				if w.Code != want {
					t.Fatalf("answered %d, want %d: %s", w.Code, want, w.Body)
				}
				challenge := w.Header().Get("WWW-Authenticate")
				if !strings.HasPrefix(challenge, test.challenge) || (test.challenge == "") != (challenge == "") {
					t.Errorf("WWW-Authenticate: %s\nwant %s", challenge, test.challenge)
				}
				if w.Code == http.StatusOK {
					return
				}
				var problem struct {
					Type, Title, Detail string
					Status              int
				}
				if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil || problem.Status != want || problem.Detail == "" ||
					w.Header().Get("Content-Type") != "application/problem+json" {
					t.Errorf("no problem of RFC 9457: %s %s", w.Header().Get("Content-Type"), w.Body)
				}
				for name := range w.Header() {
					if strings.HasPrefix(name, "X-Auth-") {
						t.Errorf("a refusal carries %s", name)
					}
				}
			})
		}
	}
}

func TestIdentity(t *testing.T) {
	m := newMint(t)
	r := question(Nginx, http.MethodPost, "h", "/function/iris")
	r.Header.Set("Authorization", "Bearer "+m.token("function other", "*"))
	h := ask(m.handler(), r).Header()
	for name, want := range map[string]string{
		SubjectHeader: "J%C3%B6rg 100%25%0D%0AX-Auth-Scope: system",
		ClientHeader:  "team-a",
		ScopeHeader:   "function other",
	} {
		if got := h[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	// Empty rather than missing, so that a gateway has something to put in place of the client's.
	h = ask(m.handler(func(c *Config) { c.Public = []string{"/"} }), question(Nginx, http.MethodGet, "h", "/")).Header()
	for _, name := range []string{SubjectHeader, ClientHeader, ScopeHeader} {
		if got := h[name]; len(got) != 1 || got[0] != "" {
			t.Errorf("%s on a public path: %q, want it empty", name, got)
		}
	}
}

// A client sends headers of its own, or sends one that the gateway adds to.
func TestSmuggledHeaders(t *testing.T) {
	m := newMint(t)
	h := m.handler()
	iris := "Bearer " + m.token("function", "openfaas-fn:iris")
	for _, test := range []struct {
		name   string
		proxy  Proxy
		change func(*http.Request)
		h      *Handler
	}{
		{"Traefik's through nginx", Nginx, func(r *http.Request) { r.Header.Set("X-Forwarded-Uri", "/function/iris") }, h},
		{"Traefik's method through nginx", Nginx, func(r *http.Request) { r.Header.Set("X-Forwarded-Method", "GET") }, h},
		{"nginx's through Traefik", Traefik, func(r *http.Request) { r.Header.Set("X-Original-URI", "/function/iris") }, h},
		{"nginx's through Traefik, empty", Traefik, func(r *http.Request) { r.Header["X-Original-Uri"] = nil }, h},
		{"nginx's host through Traefik", Traefik, func(r *http.Request) { r.Header.Set("X-Original-Host", "h") }, h},
		{"nginx's through Envoy", Envoy, func(r *http.Request) { r.Header.Set("X-Original-URI", "/function/iris") }, h},
		{"Traefik's through Envoy", Envoy, func(r *http.Request) { r.Header.Set("X-Forwarded-Uri", "/function/iris") }, h},
		{"nginx's URI twice", Nginx, func(r *http.Request) { r.Header.Add("X-Original-URI", "/function/iris") }, h},
		{"nginx's method twice", Nginx, func(r *http.Request) { r.Header.Add("X-Original-Method", "POST") }, h},
		{"nginx's host twice", Nginx, func(r *http.Request) { r.Header.Add("X-Original-Host", "h") }, h},
		{"Traefik's URI twice", Traefik, func(r *http.Request) { r.Header.Add("X-Forwarded-Uri", "/function/iris") }, h},
		{"nginx without the URI", Nginx, func(r *http.Request) { r.Header.Del("X-Original-URI") }, h},
		{"nginx with an empty URI", Nginx, func(r *http.Request) { r.Header.Set("X-Original-URI", "") }, h},
		{"nginx without the method", Nginx, func(r *http.Request) { r.Header.Del("X-Original-Method") }, h},
		{"Traefik without the host", Traefik, func(r *http.Request) { r.Header.Del("X-Forwarded-Host") }, h},
		{"nobody's", Nginx, func(r *http.Request) { r.Header = http.Header{"Authorization": r.Header["Authorization"]} }, h},
		{"nginx where Traefik asks", Nginx, func(*http.Request) {}, m.handler(func(c *Config) { c.Proxy = Traefik })},
		{"Envoy where nginx asks", Envoy, func(*http.Request) {}, m.handler(func(c *Config) { c.Proxy = Nginx })},
		{"another path", Traefik, func(r *http.Request) { r.URL.Path = "/validated" }, h},
		{"another path's prefix", Envoy, func(r *http.Request) { r.URL.Path = "/x/validate/function/iris" }, h},
		{"two tokens", Traefik, func(r *http.Request) { r.Header.Add("Authorization", iris) }, h},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := question(test.proxy, http.MethodPost, "h", "/function/iris")
			r.Header.Set("Authorization", iris)
			test.change(r)
			if w := ask(test.h, r); w.Code != http.StatusBadRequest && (test.proxy != Nginx || w.Code != http.StatusForbidden) {
				t.Errorf("answered %d: %s", w.Code, w.Body)
			}
		})
	}
}

type unavailable struct{}

func (unavailable) VerifyRequest(*http.Request) (*token.Claims, error) {
	return nil, &token.Error{Status: http.StatusServiceUnavailable, Description: "later"}
}

type broken struct{}

func (broken) VerifyRequest(*http.Request) (*token.Claims, error) {
	return nil, errors.New("secret detail")
}

func TestVerifierThatCannotSay(t *testing.T) {
	for _, test := range []struct {
		verifier Verifier
		want     int
	}{{unavailable{}, 503}, {broken{}, 500}} {
		h := New(Config{Verifier: test.verifier, Logger: slog.New(slog.DiscardHandler)})
		r := question(Traefik, http.MethodPost, "h", "/function/iris")
		r.Header.Set("Authorization", "Bearer a")
		w := ask(h, r)
		if w.Code != test.want || strings.Contains(w.Body.String(), "secret") || w.Header().Get("WWW-Authenticate") != "" {
			t.Errorf("%T: %d %v %s", test.verifier, w.Code, w.Header(), w.Body)
		}
	}
}

func TestResolve(t *testing.T) {
	iris := destination{function, "openfaas-fn", "iris"}
	for _, test := range []struct {
		path string
		want destination
	}{
		{"/function/iris", iris},
		{"/function/iris/", iris},
		{"/function/iris.openfaas-fn", iris},
		{"/function/iris.dev/x", destination{function, "dev", "iris"}},
		{"/async-function/iris.dev/x", destination{function, "dev", "iris"}},
		{"/function/iris/%2F", iris},
		{"/function/iris//x", iris},
		{"/function/iris/.../..x/x../.x", iris},
		{"/system/functions", destination{kind: system}},
		{"/system", destination{kind: system}},
		{"/system/", destination{kind: system}},
		{"/systems", destination{}},
		{"/functions/iris", destination{}},
		{"/", destination{}},
		{"/metrics", destination{}},
	} {
		if got, err := resolve(test.path, "openfaas-fn"); err != nil || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", test.path, got, err, test.want)
		}
	}
	for _, p := range []string{
		"", "function/iris", "http://h/function/iris", "*",
		"/function/iris/../wine", "/function/iris/..", "/function/iris/.", "/function/./iris", "/function/../system/functions",
		"/function/iris/%2e%2e/wine", "/function/iris/%2E./wine", "/function/iris/..%2fwine", "/function/iris/x%2f..%2f..%2fwine",
		"/function/iris/%252e%252e/wine", "/function/iris/%25252e%25252e/wine", "/function/iris/%%32%65%%32%65/wine",
		"/function/iris/..;/wine", "/function/iris/..;a=b/wine", "/function/iris/%5c..%5cwine", "/function/iris\\..\\wine",
		"/%66unction/iris", "/function%2firis", "/function%2Firis/x", "//function/iris", "/function//iris", "///system",
		"/Function/iris", "/SYSTEM/functions", "/system%2ffunctions", "/%73ystem/functions", "/.//function/iris",
		"/function/iris%2fx", "/function/%69ris", "/function/iris%00", "/function/iris%00/x", "/function/iris%2e%64ev",
		"/function/IRIS", "/function/iris.dev.x", "/function/iris.", "/function/.dev", "/function/-iris", "/function/iris-",
		"/function/iris;a=b", "/function/iris:x", "/function/iris*", "/function/*", "/function/i_ris",
		"/function/" + strings.Repeat("a", 64), "/function/\u00efris", "/function/iris x", "/function/iris\tx", "/function/iris#x",
		"/function/iris/%", "/function/iris/%2", "/function/iris/%zz", "/function/iris/\x7f", "/function", "/function/", "/async-function",
		"/function/iris/%" + strings.Repeat("25", 100) + "2e",
	} {
		if got, err := resolve(p, "openfaas-fn"); err == nil {
			t.Errorf("%s was taken for %+v", p, got)
		}
	}
}

// FuzzResolve checks that whatever is decided upon is what other readers of the path come to as well.
func FuzzResolve(f *testing.F) {
	for _, seed := range []string{
		"/function/iris/x", "/function/iris.dev", "/system/functions", "/a/%2e%2e/system", "//system", "/%66unction/iris",
		"/function/iris/%2f..", "/async-function/iris", "/healthz", "/x/%25252e", "/function/iris%2Fx/..;a",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, escaped string) {
		to, err := resolve(escaped, "openfaas-fn")
		if err != nil {
			return
		}
		readings := []string{escaped, path.Clean(escaped)}
		for p, n := escaped, 0; n < 3; n++ {
			decoded, err := url.PathUnescape(p)
			if err != nil {
				break
			}
			p = decoded
			slashed := strings.ReplaceAll(p, `\`, "/")
			readings = append(readings, p, path.Clean(p), path.Clean(slashed), path.Clean(strings.ToLower(slashed)))
			if path.Clean(escaped) == escaped { // as a provider behind a gateway that resolves and encodes anew
				readings = append(readings, (&url.URL{Path: path.Clean(p)}).EscapedPath())
			}
		}
		for _, p := range readings {
			first, rest, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
			called, _, _ := strings.Cut(rest, "/")
			if (first == "function" || first == "async-function") && to.kind != function && (called != "" || to.kind == other) ||
				first == "system" && to.kind != system {
				t.Fatalf("%q is read as %q by some, and decided upon as %+v", escaped, p, to)
			}
			if to.kind == function && called != to.name && called != to.name+"."+to.namespace {
				t.Fatalf("%q is read as %q by some, and decided upon as %+v", escaped, p, to)
			}
		}
	})
}
