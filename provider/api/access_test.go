package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/auth/token"
	"github.com/faas-predict/faas-predict/provider/backend"
)

const issuerName = "http://issuer.example"

// signer makes tokens that tokensOf(signer) accepts.
func signer(t *testing.T) (*token.Key, *token.Verifier) {
	t.Helper()
	key, err := token.NewKey(token.EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := token.NewLocalKeys(issuerName, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, token.NewVerifier(token.Config{Keys: keys})
}

func signed(t *testing.T, key *token.Key, scope string, functions ...string) string {
	t.Helper()
	raw, err := key.Sign(&token.Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: issuerName, Audience: jwt.ClaimStrings{issuerName}, Subject: "shop", ExpiresAt: jwt.NewNumericDate(time.Now().Add(time.Minute)),
		},
		ClientID: "shop", Scope: scope, Function: token.Grants{Permissions: functions},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestSystemRoutesTakeAPasswordOrAnAdministratorsToken(t *testing.T) {
	key, tokens := signer(t)
	s := New(Options{
		Backend: &fake{}, Functions: &fake{}, Gateway: gatewayOf(&fake{}, prometheus.NewRegistry()), Models: fakeModels{}, Version: "v1", Metrics: prometheus.NewRegistry(),
		Access: Access{Basic: NewCredentials("admin", "secret"), Tokens: tokens},
	})
	admin := signed(t, key, token.ScopeSystem)
	for _, c := range []struct {
		name   string
		set    func(*http.Request)
		status int
	}{
		{"password", func(r *http.Request) { r.SetBasicAuth("admin", "secret") }, 200},
		{"administrator", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+admin) }, 200},
		{"both scopes", func(r *http.Request) {
			r.Header.Set("Authorization", "bearer "+signed(t, key, "function system", "*"))
		}, 200},
		{"a function's token", func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+signed(t, key, token.ScopeFunction, "*"))
		}, 403},
		{"no scope", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+signed(t, key, "", "*")) }, 403},
		{"part of a scope", func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+signed(t, key, "systems subsystem", "*"))
		}, 403},
		{"nothing", func(*http.Request) {}, 401},
		{"nonsense", func(r *http.Request) { r.Header.Set("Authorization", "Bearer nonsense") }, 401},
		{"the password as a token", func(r *http.Request) { r.Header.Set("Authorization", "Bearer secret") }, 401},
		{"token and password", func(r *http.Request) {
			r.SetBasicAuth("admin", "secret")
			r.Header.Add("Authorization", "Bearer "+admin)
		}, 400},
		{"password twice", func(r *http.Request) {
			r.SetBasicAuth("admin", "wrong")
			r.Header.Add("Authorization", "Basic YWRtaW46c2VjcmV0")
		}, 400},
		{"in the query", func(r *http.Request) { r.URL.RawQuery = "access_token=" + admin }, 401},
	} {
		r := httptest.NewRequest("GET", "/system/functions", nil)
		c.set(r)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%s: %d, want %d: %s", c.name, w.Code, c.status, w.Body)
		}
		if challenged := w.Header().Get("WWW-Authenticate") != ""; challenged != (c.status != 200) {
			t.Errorf("%s: WWW-Authenticate %q", c.name, w.Header()["Www-Authenticate"])
		}
		if offered := strings.Join(w.Header()["Www-Authenticate"], ", "); c.status == 401 && (!strings.Contains(offered, "Basic ") || !strings.Contains(offered, "Bearer ")) {
			t.Errorf("%s: offered is %q, want a password and a token", c.name, offered)
		}
		if strings.Contains(w.Body.String(), admin) {
			t.Errorf("%s: the answer holds the token", c.name)
		}
	}
}

func TestACallPassesAsItsFunctionsAnnotationSays(t *testing.T) {
	key, tokens := signer(t)
	iris := "Bearer " + signed(t, key, token.ScopeFunction, "openfaas-fn:iris")
	for _, c := range []struct {
		annotation    string
		all           bool // every function wants a token
		authorization string
		status        int
		subject       string // what the function learns
	}{
		{"", false, "", 200, ""},
		{"", false, iris, 200, ""},
		{"", true, "", 401, ""},
		{"", true, iris, 200, "shop"},
		{backend.AccessToken, false, "", 401, ""},
		{backend.AccessToken, false, iris, 200, "shop"},
		{backend.AccessToken, false, "Bearer " + signed(t, key, token.ScopeFunction, "openfaas-fn:digits", "other:*"), 403, ""},
		{backend.AccessToken, false, "Bearer " + signed(t, key, token.ScopeSystem), 403, ""},
		{backend.AccessToken, false, "Basic YWRtaW46c2VjcmV0", 401, ""},
		{backend.AccessOpen, true, "", 200, ""},
	} {
		var got http.Header
		called := false
		f := &fake{annotation: c.annotation, forward: func(w http.ResponseWriter, r *http.Request, _ string) (int, error) {
			called, got = true, r.Header.Clone()
			return 200, nil
		}}
		s := New(Options{
			Backend: f, Functions: f, Gateway: gatewayOf(f, prometheus.NewRegistry()), Models: fakeModels{}, Version: "v1", Metrics: prometheus.NewRegistry(),
			Access: Access{Tokens: tokens, Functions: c.all},
		})
		r := httptest.NewRequest("POST", "/function/iris", strings.NewReader("x"))
		if c.authorization != "" {
			r.Header.Set("Authorization", c.authorization)
		}
		// What only the provider may say.
		r.Header["X-Auth-Subject"] = []string{"forged"}
		r.Header["x-auth-client"] = []string{"forged"}
		r.Header["X_auth-Scope"] = []string{"forged"}
		r.Header["X-Auth-Other"] = []string{"kept"}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.status || called != (c.status == 200) {
			t.Errorf("%+v: %d, called %v", c, w.Code, called)
			continue
		}
		if !called {
			continue
		}
		for name, values := range got {
			if values[0] == "forged" {
				t.Errorf("%+v: %s got through", c, name)
			}
		}
		if passed := got.Get("Authorization") != ""; passed != (c.subject == "" && c.authorization != "") {
			t.Errorf("%+v: Authorization passed on: %v", c, passed)
		}
		if got.Get("X-Auth-Subject") != c.subject || got.Get("X-Auth-Other") != "kept" {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestAClientCannotTakeAwayWhatTheProviderAdds(t *testing.T) {
	key, tokens := signer(t)
	var got http.Header
	f := &fake{annotation: backend.AccessToken, forward: func(w http.ResponseWriter, r *http.Request, _ string) (int, error) {
		got = r.Header.Clone()
		return 200, nil
	}}
	s := New(Options{Backend: f, Functions: f, Gateway: gatewayOf(f, prometheus.NewRegistry()), Models: fakeModels{}, Version: "v1", Metrics: prometheus.NewRegistry(), Access: Access{Tokens: tokens}})
	r := httptest.NewRequest("POST", "/function/iris", strings.NewReader("x"))
	r.Header.Set("Authorization", "Bearer "+signed(t, key, token.ScopeFunction, "*"))
	r.Header["Connection"] = []string{"close, X-Auth-Subject", " x-forwarded-for ,X-Call-Id,X-Named, Authorization"}
	r.Header.Set("X-Named", "for this connection")
	s.ServeHTTP(httptest.NewRecorder(), r)
	if got.Get("X-Auth-Subject") != "shop" || got.Get("X-Forwarded-For") == "" || got.Get("X-Call-Id") == "" {
		t.Errorf("taken away: %v", got)
	}
	if got.Get("X-Named") != "" || got.Get("Connection") != "" {
		t.Errorf("passed on: %v", got)
	}
}

func TestAFunctionThatWantsATokenIsClosedWhereNobodyCanCheckOne(t *testing.T) {
	f := &fake{annotation: backend.AccessToken}
	s := server(f, fakeModels{}, false)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("POST", "/function/iris", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
}
