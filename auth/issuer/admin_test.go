package issuer

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func (b *bench) administer(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	b.AdminHandler().ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestClientsAreRegisteredOverHTTP(t *testing.T) {
	b := newBench(t)
	status, body := b.administer(t, "POST", "/system/clients", `{"name":"shop","functions":["openfaas-fn:iris*"],"access_ttl_seconds":600}`)
	var created ClientSecret
	if err := json.Unmarshal([]byte(body), &created); err != nil || status != http.StatusCreated || created.Name != "shop" || created.Created.IsZero() {
		t.Fatalf("%d %s", status, body)
	}
	if got := b.token(t, "shop", created.Secret); got.ExpiresIn != 600 {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "/system/clients", `{"name":"shop","functions":["*"]}`, 409, "already"},
		{"POST", "/system/clients", `{"name":"Shop","functions":["*"]}`, 400, "client name"},
		{"POST", "/system/clients", `{"name":"a","functions":["x"]}`, 400, "function pattern"},
		{"POST", "/system/clients", `{"name":"a","function":["*"]}`, 400, "unknown field"},
		{"POST", "/system/clients", `{"name":"a","functions":["*"]} more`, 400, "more after"},
		{"POST", "/system/clients", `{"name":"a","functions":["*"],"disabled":true}`, 400, "unknown field"},
		{"POST", "/system/clients", `{`, 400, "cannot be read"},
		{"POST", "/system/clients", `{"name":"` + strings.Repeat("a", maxBody) + `"}`, 413, "too long"},
		{"GET", "/system/clients", "", 200, `[{"name":"shop","functions":["openfaas-fn:iris*"],"access_ttl_seconds":600,"created_at":"`},
		{"POST", "/system/clients/nobody/secret", "", 404, "no such client"},
		{"DELETE", "/system/clients/nobody", "", 404, "no such client"},
		{"POST", "/system/clients/shop/disable", "", 204, ""},
		{"POST", "/system/clients/shop/enable", "", 204, ""},
		{"POST", "/system/revocations", `{"client_id":"shop"}`, 204, ""},
		{"POST", "/system/revocations", `{"client_id":""}`, 400, "client id"},
		{"GET", "/system/keys", "", 200, `"state":"signing"`},
		{"POST", "/system/keys", "", 201, `"state":"next"`},
		{"POST", "/system/keys", "", 200, `"state":"next"`},
		{"DELETE", "/system/keys/nothing", "", 404, "no such signing key"},
		{"PATCH", "/system/clients", "", 405, ""},
	} {
		status, body := b.administer(t, c.method, c.path, c.body)
		if status != c.status || !strings.Contains(body, c.says) || strings.Contains(body, created.Secret) {
			t.Errorf("%s %s %.60s: %d %s, want %d %s", c.method, c.path, c.body, status, body, c.status, c.says)
		}
	}
	status, body = b.administer(t, "POST", "/system/clients/shop/secret", "")
	var reset ClientSecret
	if err := json.Unmarshal([]byte(body), &reset); err != nil || status != http.StatusOK || reset.Secret == created.Secret || reset.Name != "shop" {
		t.Errorf("%d %s", status, body)
	}
	if status, _ := b.administer(t, "DELETE", "/system/clients/shop", ""); status != http.StatusNoContent || len(b.Clients()) != 0 {
		t.Errorf("%d, %v", status, b.Clients())
	}
	if status, _ := b.administer(t, "DELETE", "/system/keys/"+b.keys[0].ID(), ""); status != http.StatusNoContent || len(b.keys) != 1 {
		t.Errorf("%d, %d keys", status, len(b.keys))
	}
	// Clients cannot get at it where they are served.
	for _, route := range AdminRoutes {
		r, _ := http.NewRequest(route.Method, b.server.URL+strings.NewReplacer("{name}", "x", "{kid}", "x").Replace(route.Path), nil)
		if got := b.send(t, r); got.Status != http.StatusNotFound {
			t.Errorf("%s %s: %d", route.Method, route.Path, got.Status)
		}
	}
}

func TestStateIsForItsUserOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "auth")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, func(c *Config) { c.Dir = dir })
	for path, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, filepath.Join(dir, File): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if _, err := Open(b.cfg); err == nil || !strings.Contains(err.Error(), "in use by another") {
		t.Errorf("opened twice: %v", err)
	}
}

func TestSettingsAreRefusedByRule(t *testing.T) {
	for want, c := range map[string]Config{
		"a slash at the end":        {URL: "http://a/"},
		"without user":              {URL: "http://u@a"},
		"must be http or https":     {URL: "ftp://a"},
		"query":                     {URL: "http://a?x"},
		"needs a directory":         {URL: "http://a"},
		"access token lifetime":     {URL: "http://a", Dir: "x", AccessTTL: 25 * time.Hour},
		"refresh token lifetime":    {URL: "http://a", Dir: "x", RefreshTTL: time.Minute},
		"key rotation":              {URL: "http://a", Dir: "x", KeyRotation: -1},
		"signing algorithm \"HS2\"": {URL: "http://a", Dir: t.TempDir(), Algorithm: "HS2"},
	} {
		if i, err := Open(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", c, err, want)
			if i != nil {
				i.Close()
			}
		}
	}
}
