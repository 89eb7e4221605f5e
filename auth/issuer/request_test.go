package issuer

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestFormsAreReadOneWayOnly(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	good := url.Values{"grant_type": {GrantClientCredentials}, "client_id": {"shop"}, "client_secret": {secret}}.Encode()
	for name, c := range map[string]struct {
		method, path, kind, body string
		status                   int
		code                     string
	}{
		"good":                     {body: good, status: 200},
		"empty parameters":         {body: good + "&scope=&audience=&resource=&unknown=&also=x", status: 200},
		"empty, then given":        {body: good + "&audience=&audience=a:b", status: 200},
		"duplicate grant":          {body: good + "&grant_type=client_credentials", status: 400, code: codeInvalidRequest},
		"duplicate secret":         {body: good + "&client_secret=x", status: 400, code: codeInvalidRequest},
		"duplicate scope":          {body: good + "&scope=function&scope=function", status: 400, code: codeInvalidRequest},
		"duplicate and empty":      {body: good + "&scope=function&scope=", status: 400, code: codeInvalidRequest},
		"duplicate unknown":        {body: good + "&x=1&x=2", status: 400, code: codeInvalidRequest},
		"in the query":             {path: "?" + good, body: good, status: 400, code: codeInvalidRequest},
		"an empty query":           {path: "?", body: good, status: 400, code: codeInvalidRequest},
		"semicolons":               {body: good + ";scope=system", status: 400, code: codeInvalidRequest},
		"broken escape":            {body: good + "&scope=%zz", status: 400, code: codeInvalidRequest},
		"JSON":                     {kind: "application/json", body: `{"grant_type":"client_credentials"}`, status: 400, code: codeInvalidRequest},
		"multipart":                {kind: "multipart/form-data; boundary=x", body: good, status: 400, code: codeInvalidRequest},
		"no grant":                 {body: "client_id=shop", status: 400, code: codeInvalidRequest},
		"unknown grant":            {body: "grant_type=password", status: 400, code: codeUnsupportedGrant},
		"grant with quotes in it":  {body: "grant_type=%22%0a%5c" + strings.Repeat("x", 1000), status: 400, code: codeUnsupportedGrant},
		"too long":                 {body: good + "&x=" + strings.Repeat("x", maxBody), status: 413, code: codeInvalidRequest},
		"id without a secret":      {body: "grant_type=client_credentials&client_id=shop", status: 401, code: codeInvalidClient},
		"secret without an id":     {body: "grant_type=client_credentials&client_secret=" + secret, status: 401, code: codeInvalidClient},
		"longest body that is one": {body: good + "&x=" + strings.Repeat("x", maxBody-len(good)-3), status: 200},
	} {
		kind := c.kind
		if kind == "" {
			kind = "application/x-www-form-urlencoded"
		}
		r, err := http.NewRequest(http.MethodPost, b.server.URL+tokenPath+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", kind)
		got := b.send(t, r)
		if got.Status != c.status || got.Error != c.code {
			t.Errorf("%s: %d %s, want %d %s", name, got.Status, got.Body, c.status, c.code)
		}
		if strings.Contains(got.Description, `"`) || len(got.Description) > 400 || strings.Contains(got.Description, secret) {
			t.Errorf("%s: description %q", name, got.Description)
		}
	}
}

func TestMethodsAndPaths(t *testing.T) {
	b := newBench(t)
	for _, route := range Routes {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
			if method == route.Method {
				continue
			}
			r, _ := http.NewRequest(method, b.server.URL+route.Path, nil)
			got := b.send(t, r)
			if got.Status != http.StatusMethodNotAllowed || !strings.Contains(got.Header.Get("Allow"), route.Method) {
				t.Errorf("%s %s: %d, Allow %q", method, route.Path, got.Status, got.Header.Get("Allow"))
			}
		}
	}
	if got := b.post(t, "/oauth/authorize"); got.Status != http.StatusNotFound {
		t.Errorf("%d", got.Status)
	}
}

func TestIssuerBelowAPathAnswersThere(t *testing.T) {
	b := newBench(t, func(c *Config) { c.URL += "/auth" })
	secret := b.add(t, "shop", "*")
	for _, path := range []string{"/auth" + tokenPath, tokenPath} {
		if got := b.post(t, path, "grant_type", GrantClientCredentials, "client_id", "shop", "client_secret", secret); got.Status != http.StatusOK {
			t.Errorf("%s: %d %s", path, got.Status, got.Body)
		}
	}
}

func FuzzForm(f *testing.F) {
	for _, seed := range []string{"", "a=b", "grant_type=x&grant_type=y", "audience=a&audience=b", "a=%zz", "a;b", "scope=&scope=", "%61=b&a=c", "=&==", "a=\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		form, refused := parseForm(body)
		if refused != nil {
			if refused.code != codeInvalidRequest || strings.ContainsAny(refused.description(), "\"\\\n") {
				t.Fatalf("%+v", refused)
			}
			return
		}
		for name, values := range form {
			if len(values) == 0 || slices.Contains(values, "") || (len(values) > 1 && !repeatable[name]) {
				t.Fatalf("%q: %q", name, values)
			}
		}
		again, refused := parseForm(form.Encode())
		if refused != nil || again.Encode() != form.Encode() {
			t.Fatalf("%q is read in two ways: %v and %v", body, form, again)
		}
	})
}

// Whatever is sent, the answer is one of the protocol's, and never a token.
func FuzzTokenEndpoint(f *testing.F) {
	i, err := Open(Config{URL: "http://auth.example", Dir: f.TempDir(), Log: discard})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { i.Close() })
	handler := i.Handler()
	for _, seed := range []string{
		"grant_type=client_credentials", "grant_type=refresh_token&refresh_token=fpr_x", "grant_type=" + url.QueryEscape(GrantTokenExchange) + "&subject_token_type=" + url.QueryEscape(typeJWT) + "&subject_token=a.b.c",
		"grant_type=" + url.QueryEscape(GrantTokenExchange) + "&subject_token_type=" + url.QueryEscape(typeJWT) + "&subject_token=eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwOi8vYXV0aC5leGFtcGxlIn0.",
	} {
		f.Add(seed, "")
	}
	f.Add("grant_type=client_credentials&scope=system", "Basic %%%")
	f.Fuzz(func(t *testing.T, body, authorization string) {
		if strings.Contains(body, "client_secret") || strings.HasPrefix(strings.ToLower(authorization), "basic") {
			return // a hash for each would make this slow; secrets have tests of their own
		}
		r := httptest.NewRequest(http.MethodPost, tokenPath, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		answered, _ := io.ReadAll(w.Body)
		switch w.Code {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusRequestEntityTooLarge:
		default:
			t.Fatalf("%d %s", w.Code, answered)
		}
		if strings.Contains(string(answered), "access_token\"") {
			t.Fatalf("%s", answered)
		}
	})
}
