package client

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/provider/api"
	"github.com/faas-predict/faas-predict/provider/registry"
)

// call is a request that came in at a provider.
type call struct {
	method, path, user, password string
	length                       int64
	body                         []byte
}

// standIn answers for a provider and remembers what it was asked. answer gets the body already read.
type standIn struct {
	*Client
	mu    sync.Mutex
	calls []call
}

func newStandIn(t *testing.T, answer http.HandlerFunc) *standIn {
	t.Helper()
	s := &standIn{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := call{method: r.Method, path: r.URL.EscapedPath(), length: r.ContentLength}
		c.user, c.password, _ = r.BasicAuth()
		if c.user == "admin" {
			c.body, _ = io.ReadAll(r.Body)
		}
		s.mu.Lock()
		s.calls = append(s.calls, c)
		s.mu.Unlock()
		if c.user != "admin" {
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(c.body))
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	var err error
	if s.Client, err = New(server.URL+"/", &sdk.BasicAuth{Username: "admin", Password: "secret"}); err != nil {
		t.Fatal(err)
	}
	return s
}

// asked lists "METHOD /path" of what came in.
func (s *standIn) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, c := range s.calls {
		out = append(out, c.method+" "+c.path)
	}
	return out
}

// stores answers pushes as a provider does: 201, with the model's name and one version.
func stores(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusCreated)
	v := api.ModelVersion{Version: registry.Version{Model: filepath.Base(r.URL.Path)}, State: "registered"}
	v.ID = "1_a"
	json.NewEncoder(w).Encode(v)
}

// older makes a provider of one that takes zips only; push_test.go is about the others.
func older(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/system/blobs/") {
			http.NotFound(w, r)
			return
		}
		answer(w, r)
	}
}

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "iris")
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const predict = "def predict(request):\n    return request\n"

func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("error %v does not say %q", err, word)
		}
	}
}

func TestGatewayMustBeAnHTTPURL(t *testing.T) {
	for _, gateway := range []string{"", "127.0.0.1:8080", "ftp://host", "http://", "http://a b"} {
		if _, err := New(gateway, nil); err == nil {
			t.Errorf("%q was taken", gateway)
		}
	}
}

func TestPushSendsTheBundleAndNothingElse(t *testing.T) {
	s := newStandIn(t, older(stores))
	dir := folder(t, map[string]string{"main.py": predict, "coefficients/w": "1 2 3", "__pycache__/main.pyc": "x", ".git/HEAD": "x"})
	var sent, total int64
	v, err := s.Push(t.Context(), dir, "", func(n, of int64) { sent, total = n, of })
	if err != nil || !v.Created || !v.Zipped || v.ID != "1_a" || v.State != "registered" {
		t.Fatalf("%+v, %v", v, err)
	}
	c := s.calls[1] // after the question what is missing
	if c.method != http.MethodPut || c.path != "/system/models/iris" || c.user != "admin" || c.password != "secret" {
		t.Errorf("asked %s %s as %s:%s", c.method, c.path, c.user, c.password)
	}
	if size := int64(len(c.body)); c.length != size || sent != size || total != size {
		t.Errorf("%d bytes, declared %d, reported %d of %d", size, c.length, sent, total)
	}
	archive, err := zip.NewReader(bytes.NewReader(c.body), int64(len(c.body)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range archive.File {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"coefficients/w", "main.py"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestPushTakesTheGivenName(t *testing.T) {
	s := newStandIn(t, older(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"version":"1_a"}`) }))
	v, err := s.Push(t.Context(), folder(t, map[string]string{"main.py": predict}), "a/b", nil)
	if err != nil || v.Created {
		t.Errorf("the same content again: created %v, %v", v.Created, err)
	}
	if diff := cmp.Diff([]string{"POST /system/blobs/missing", "PUT /system/models/a%2Fb"}, s.asked()); diff != "" {
		t.Error(diff)
	}
}

func TestPushRefusesABadBundleBeforeSendingIt(t *testing.T) {
	s := newStandIn(t, older(stores))
	dir := folder(t, map[string]string{"readme.txt": "no code"})
	_, err := s.Push(t.Context(), dir, "", nil)
	wantError(t, err, dir, "main.py")
	_, err = s.Push(t.Context(), filepath.Join(dir, "nowhere.zip"), "", nil)
	wantError(t, err, "nowhere.zip")
	if asked := s.asked(); len(asked) != 0 {
		t.Errorf("asked %v", asked)
	}
}

func TestPushWithWrongCredentialsSendsNoBundle(t *testing.T) {
	s := newStandIn(t, older(stores))
	s.auth = &sdk.BasicAuth{Username: "guest", Password: "guest"}
	var sent int64
	dir := folder(t, map[string]string{"main.py": predict, "coefficients/w": strings.Repeat("1 2 3", 1<<20)})
	_, err := s.Push(t.Context(), dir, "", func(n, _ int64) { sent = n })
	wantError(t, err, s.Gateway()+" wants other credentials", "faas-cli login", "--password-stdin")
	if sent != 0 {
		t.Errorf("%d bytes were sent", sent)
	}
}

func TestProvidersErrorIsShownWithItsText(t *testing.T) {
	s := newStandIn(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "label 1_a stands for other content: main.py changed", http.StatusConflict)
	})
	_, err := s.Push(t.Context(), folder(t, map[string]string{"main.py": predict}), "", nil)
	wantError(t, err, s.Gateway()+" answered 409 Conflict: label 1_a stands for other content: main.py changed")
	_, err = s.Model(t.Context(), "iris")
	wantError(t, err, "409", "main.py changed")
	_, err = s.Models(t.Context())
	wantError(t, err, "409", "main.py changed")
}

func TestAnswerOfSomethingElseIsNamed(t *testing.T) {
	s := newStandIn(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>welcome</html>") })
	_, err := s.Models(t.Context())
	wantError(t, err, "read the answer of "+s.Gateway())
}

func TestModelsAreRead(t *testing.T) {
	s := newStandIn(t, func(w http.ResponseWriter, r *http.Request) {
		m := `{"name":"iris","latest":"2_a","versions":[{"state":"active"},{"state":"registered"}]}`
		if r.URL.Path == "/system/models" {
			m = "[" + m + "]"
		}
		fmt.Fprint(w, m)
	})
	one, err := s.Model(t.Context(), "iris")
	if err != nil || one.Latest != "2_a" || len(one.Versions) != 2 || one.Versions[0].State != "active" {
		t.Errorf("%+v, %v", one, err)
	}
	all, err := s.Models(t.Context())
	if err != nil || len(all) != 1 || !cmp.Equal(all[0].Name, "iris") {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestCallerDecidesHowLongToWait(t *testing.T) {
	release := make(chan struct{})
	s := newStandIn(t, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) }) // before the server's own cleanup, which waits for its handlers
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for name, ask := range map[string]func() error{
		"models": func() error { _, err := s.Models(ctx); return err },
		"push": func() error {
			_, err := s.Push(ctx, folder(t, map[string]string{"main.py": predict}), "", nil)
			return err
		},
		"deploy": func() error { return s.Deploy(ctx, types.FunctionDeployment{Service: "iris"}, io.Discard) },
	} {
		answered := make(chan error, 1)
		go func() { answered <- ask() }()
		select {
		case err := <-answered:
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s waits on", name)
		}
	}
}

func TestProviderThatIsNotThereIsNamed(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	c, err := New(server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Models(t.Context())
	wantError(t, err, "ask "+server.URL, "refused")
}

// faasCLI writes what faas-cli login saves.
func faasCLI(t *testing.T, text string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("OPENFAAS_CONFIG", dir)
	if text == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func adminFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"basic-auth-user": "admin", "basic-auth-password": "local"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCredentialsAreThoseOfTheGateway(t *testing.T) {
	admin := adminFiles(t)
	faasCLI(t, "auths:\n- gateway: https://far.example/\n  auth: basic\n  token: "+base64.StdEncoding.EncodeToString([]byte("me:a:b"))+"\n"+
		"- gateway: https://other.example\n  auth: oauth2\n  token: x\n")
	for gateway, want := range map[string]sdk.ClientAuth{
		"https://far.example":   &sdk.BasicAuth{Username: "me", Password: "a:b"},
		"https://other.example": Bearer("x"),
		"https://third.example": nil, // the local password is nobody else's to see
		"http://127.0.0.1:8080": &sdk.BasicAuth{Username: "admin", Password: "local"},
		"http://localhost":      &sdk.BasicAuth{Username: "admin", Password: "local"},
		"http://[::1]:8080":     &sdk.BasicAuth{Username: "admin", Password: "local"},
	} {
		got, err := FindCredentials(gateway, admin, false)
		if err != nil || !cmp.Equal(want, got) {
			t.Errorf("%s: %+v, %v", gateway, got, err)
		}
	}
	faasCLI(t, "")
	if got, err := FindCredentials("http://127.0.0.1:8080", t.TempDir(), false); got != nil || err != nil {
		t.Errorf("without any: %+v, %v", got, err)
	}
}

func TestDamagedCredentialsAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"auths: [": "config.yml",
		"auths:\n- {gateway: 'http://127.0.0.1:8080', auth: basic, token: '%%'}":   "log in again",
		"auths:\n- {gateway: 'http://127.0.0.1:8080', auth: basic, token: 'YWI='}": "log in again",
	} {
		faasCLI(t, text)
		_, err := FindCredentials("http://127.0.0.1:8080", adminFiles(t), false)
		wantError(t, err, "faas-cli's credentials", want)
	}
}
