package issuer

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/openfaas/go-sdk"
	"go.uber.org/goleak"

	"github.com/faas-predict/faas-predict/auth/token"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashDir) != "" {
		operate()
	}
	goleak.VerifyTestMain(m)
}

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// journal is a log that tests read.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// lines returns the audit lines of an event.
func (j *journal) lines(t testing.TB, event string) (found []map[string]any) {
	t.Helper()
	for line := range strings.Lines(j.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		if fields["audit"] == true && fields["event"] == event {
			found = append(found, fields)
		}
	}
	return found
}

var discard = slog.New(slog.DiscardHandler)

// fixed is a token.KeySource that learns nothing.
type fixed struct{ set *token.KeySet }

func (f fixed) Keys() (*token.KeySet, error) { return f.set, nil }

func (f fixed) Refresh(context.Context, *token.KeySet) (*token.KeySet, error) { return f.set, nil }

// bench is an issuer that is served.
type bench struct {
	*Issuer
	cfg    Config
	server *httptest.Server
	clock  *clock
	log    *journal
}

func newBench(t testing.TB, settings ...func(*Config)) *bench {
	t.Helper()
	b := &bench{server: httptest.NewUnstartedServer(nil), clock: &clock{now: time.Now()}, log: &journal{}}
	b.cfg = Config{
		URL: "http://" + b.server.Listener.Addr().String(), Dir: filepath.Join(t.TempDir(), "auth"), Now: b.clock.Now,
		Log: slog.New(slog.NewJSONHandler(b.log, nil)),
	}
	for _, set := range settings {
		set(&b.cfg)
	}
	b.open(t)
	b.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.Handler().ServeHTTP(w, r) })
	b.server.Start()
	t.Cleanup(func() {
		b.server.Close()
		http.DefaultClient.CloseIdleConnections()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) open(t testing.TB) {
	t.Helper()
	var err error
	if b.Issuer, err = Open(b.cfg); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) reopen(t testing.TB) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b.open(t)
}

// add registers a client and returns its secret.
func (b *bench) add(t testing.TB, name string, functions ...string) string {
	t.Helper()
	secret, err := b.AddClient(Client{Name: name, Functions: functions})
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func (b *bench) addAdmin(t testing.TB, name string) string {
	t.Helper()
	secret, err := b.AddClient(Client{Name: name, Admin: true})
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// reply is an answer of an endpoint.
type reply struct {
	Status int
	Header http.Header
	Body   string
	tokenAnswer
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

func (b *bench) send(t testing.TB, r *http.Request) reply {
	t.Helper()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := reply{Status: res.StatusCode, Header: res.Header, Body: string(body)}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(body, &out); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
	}
	return out
}

// post sends a form: names and values by turns.
func (b *bench) post(t testing.TB, path string, form ...string) reply {
	t.Helper()
	v := url.Values{}
	for pair := range slices.Chunk(form, 2) {
		v.Add(pair[0], pair[1])
	}
	r, _ := http.NewRequest(http.MethodPost, b.server.URL+path, strings.NewReader(v.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return b.send(t, r)
}

// token gets a token for a client, which must succeed.
func (b *bench) token(t testing.TB, name, secret string, form ...string) reply {
	t.Helper()
	out := b.post(t, tokenPath, append([]string{"grant_type", GrantClientCredentials, "client_id", name, "client_secret", secret}, form...)...)
	if out.Status != http.StatusOK {
		t.Fatalf("no token for %s: %s", name, out.Body)
	}
	return out
}

func (b *bench) exchanged(t testing.TB, subject string, form ...string) reply {
	t.Helper()
	return b.post(t, tokenPath, append([]string{"grant_type", GrantTokenExchange, "subject_token_type", typeIDToken, "subject_token", subject}, form...)...)
}

// claims are what a token says, once a verifier of the published keys and revocations has accepted it.
func (b *bench) claims(t testing.TB, raw string) *token.Claims {
	t.Helper()
	c, err := b.verifier().Verify(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (b *bench) verifier() *token.Verifier {
	return token.NewVerifier(token.Config{Keys: b.Keys(), Revocations: b.Revocations(), Now: b.clock.Now})
}

func (r reply) wants(t testing.TB, status int, code string) {
	t.Helper()
	if r.Status != status || r.Error != code || r.Description == "" {
		t.Errorf("got %d %s, want %d %s", r.Status, r.Body, status, code)
	}
	if r.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("error with Cache-Control %q", r.Header.Get("Cache-Control"))
	}
}

func TestClientGetsWhatItIsRegisteredFor(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "openfaas-fn:iris*", "staging:*")
	got := b.token(t, "shop", secret)
	if got.TokenType != "Bearer" || got.ExpiresIn != 1800 || got.Scope != "function" || got.RefreshToken != "" || got.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%+v", got)
	}
	c := b.claims(t, got.AccessToken)
	if c.Issuer != b.cfg.URL || !slices.Equal(c.Audience, []string{b.cfg.URL}) || c.Subject != "shop" || c.ClientID != "shop" || len(c.ID) != 22 ||
		c.Scope != "function" || !slices.Equal(c.Function.Permissions, []string{"openfaas-fn:iris*", "staging:*"}) || c.Function.Audience != nil ||
		c.ExpiresAt.Sub(c.IssuedAt.Time) != 30*time.Minute || !c.NotBefore.Equal(c.IssuedAt.Time) {
		t.Errorf("%+v", c)
	}
	if again := b.claims(t, b.token(t, "shop", secret).AccessToken); again.ID == c.ID {
		t.Error("two tokens have one id")
	}
}

func TestAuthenticationIsBasicOrInTheBody(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "*")
	request := func(body string) *http.Request {
		r, _ := http.NewRequest(http.MethodPost, b.server.URL+tokenPath, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8")
		return r
	}
	const grant = "grant_type=client_credentials"
	r := request(grant)
	r.SetBasicAuth("shop", secret)
	if got := b.send(t, r); got.Status != http.StatusOK {
		t.Errorf("basic: %s", got.Body)
	}
	r = request(grant + "&client_id=shop")
	r.SetBasicAuth("shop", url.QueryEscape(secret))
	if got := b.send(t, r); got.Status != http.StatusOK {
		t.Errorf("basic, and the id in the body: %s", got.Body)
	}
	r = request(grant + "&client_id=shop&client_secret=" + secret)
	r.SetBasicAuth("shop", secret)
	b.send(t, r).wants(t, http.StatusBadRequest, codeInvalidRequest)
	r = request(grant + "&client_id=other")
	r.SetBasicAuth("shop", secret)
	b.send(t, r).wants(t, http.StatusBadRequest, codeInvalidRequest)
	r = request(grant)
	r.SetBasicAuth("shop", "wrong")
	got := b.send(t, r)
	got.wants(t, http.StatusUnauthorized, codeInvalidClient)
	if !strings.HasPrefix(got.Header.Get("WWW-Authenticate"), "Basic ") {
		t.Errorf("challenge %q", got.Header.Get("WWW-Authenticate"))
	}
	r = request(grant)
	r.Header["Authorization"] = []string{"Basic x", "Basic y"}
	b.send(t, r).wants(t, http.StatusBadRequest, codeInvalidRequest)
	r = request(grant)
	r.Header.Set("Authorization", "Bearer x")
	b.send(t, r).wants(t, http.StatusUnauthorized, codeInvalidClient)
	b.send(t, request(grant)).wants(t, http.StatusUnauthorized, codeInvalidClient)
}

func TestGoSDKGetsTokensAndExchangesThem(t *testing.T) {
	b := newBench(t)
	secret := b.add(t, "shop", "openfaas-fn:iris*")
	source := sdk.NewClientCredentialsTokenSource("shop", secret, b.server.URL+tokenPath, "function", "client_credentials", "")
	raw, err := source.Token()
	if err != nil {
		t.Fatal(err)
	}
	b.claims(t, raw)
	got, err := sdk.ExchangeIDToken(b.server.URL+tokenPath, raw, sdk.WithScope([]string{"function"}), sdk.WithAudience([]string{"openfaas-fn:iris", "openfaas-fn:iris-2"}))
	if err != nil {
		t.Fatal(err)
	}
	c := b.claims(t, got.IDToken)
	want := []string{"openfaas-fn:iris", "openfaas-fn:iris-2"}
	if !slices.Equal(c.Function.Audience, want) || !slices.Equal(c.Function.Permissions, want) || c.Subject != "shop" || c.ClientID != "shop" || !slices.Equal(got.Scope, []string{"function"}) {
		t.Errorf("%+v, %+v", c, got)
	}
	if !token.Match(c.Function.Permissions[0], "openfaas-fn", "iris") || c.Function.Allow("openfaas-fn", "iris-3") {
		t.Errorf("%+v", c.Function)
	}
	_, err = sdk.ExchangeIDToken(b.server.URL+tokenPath, raw, sdk.WithScope([]string{"function"}), sdk.WithAudience([]string{"openfaas-fn:tulip"}))
	if refused := (*sdk.OAuthError)(nil); err == nil || !strings.Contains(err.Error(), "may not be called") {
		t.Errorf("%T %v, want an %T", err, err, refused)
	}
}

func TestADirectoryOfOthersIsLeftAsItIs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "provider")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "state.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{URL: "http://127.0.0.1", Dir: dir, Idle: true})
	if err == nil || !strings.Contains(err.Error(), "state.db") {
		t.Error(err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Error(info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Error(entries)
	}
}
