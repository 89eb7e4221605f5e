package client

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestASavedTokenIsFoundAgainAndNothingElseIsLost(t *testing.T) {
	faasCLI(t, "auths:\n- gateway: https://far.example/\n  auth: basic\n  token: bWU6YjpjCg==\n  options: [{name: a, value: b}]\n"+
		"- gateway: https://other.example\n  auth: basic\n  token: YTpi\nlater: kept\n")
	c, err := New("https://other.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	file, err := c.Save("secret-token")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if got, err := FindCredentials("https://other.example", "", false); err != nil || got != Bearer("secret-token") {
		t.Errorf("%v, %v", got, err)
	}
	raw, _ := os.ReadFile(file)
	var written struct {
		Auths []struct {
			Gateway, Auth, Token string
			Options              []map[string]string
		}
		Later string
	}
	if err := yaml.Unmarshal(raw, &written); err != nil {
		t.Fatal(err)
	}
	if len(written.Auths) != 2 || written.Later != "kept" || written.Auths[1].Gateway != "https://far.example/" || written.Auths[1].Options[0]["value"] != "b" {
		t.Errorf("%+v", written)
	}
	// faas-cli compares the whole text, without a slash at the end.
	if a := written.Auths[0]; a.Gateway != "https://other.example" || a.Auth != "oauth2" {
		t.Errorf("%+v", a)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "config-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestATokenIsSavedWhereThereWasNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	t.Setenv("OPENFAAS_CONFIG", dir)
	c, err := New("http://127.0.0.1:8080", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Save("x"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestARefusedTokenSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		status     int
		body, want string
	}{
		"wrong secret": {401, `{"error":"invalid_client","error_description":"name or secret is wrong"}`, "invalid_client: name or secret is wrong"},
		"no issuer":    {404, "404 page not found", "issues no tokens"},
		"proxy":        {502, "<html>", "502"},
		"nonsense":     {200, "<html>", "not what it should be"},
		"empty":        {200, "{}", "not what it should be"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, secret, _ := r.BasicAuth()
			if user != "shop" || secret != "a%3Ab" || r.PostFormValue("audience") != "openfaas-fn:iris" {
				t.Errorf("%s %s %v", user, secret, r.PostForm)
			}
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		}))
		client, err := New(server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Token(t.Context(), "shop", "a:b", "function", []string{"openfaas-fn:iris"})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "a:b") {
			t.Errorf("%s: %v", name, err)
		}
		server.Close()
	}
}
