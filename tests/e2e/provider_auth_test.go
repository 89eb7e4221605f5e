package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"
)

// tokenFor is what a stack.yml says of a function that only those with a token may call.
var tokenFor = map[string]string{"faas-predict.auth": "token"}

func (p *provider) deployWith(name string, annotations map[string]string, env map[string]string) {
	p.t.Helper()
	p.deploy(types.FunctionDeployment{Service: name, Image: name, Annotations: &annotations, EnvVars: env})
}

// register registers a client by the command line and returns its secret, which is all of standard output.
func (p *provider) register(name string, flags ...string) string {
	p.t.Helper()
	out, err := p.command(append([]string{"client", "add", name}, flags...)...).Output()
	if err != nil {
		p.t.Fatalf("client add %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}

func (p *provider) command(args ...string) *exec.Cmd {
	cmd := exec.Command(p.program, args...)
	cmd.Env = append(os.Environ(), "data_dir="+p.data(), "OPENFAAS_URL="+p.url(""), "HOME="+p.dir, "OPENFAAS_CONFIG="+filepath.Join(p.dir, "faas-cli"))
	return cmd
}

// accessToken is what `faas-predict token` prints.
func (p *provider) accessToken(client, secret string, flags ...string) string {
	p.t.Helper()
	cmd := p.command(append([]string{"token", "-u", client, "-s"}, flags...)...)
	cmd.Stdin = strings.NewReader(secret)
	out, err := cmd.Output()
	if err != nil {
		p.t.Fatalf("token of %s: %v %s", client, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (p *provider) callBearing(name, token string) (int, string) {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodPost, p.url("/function/"+name), strings.NewReader("x"))
	if err != nil {
		p.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(body)
}

func (p *provider) wantStatus(want int, name, token string) {
	p.t.Helper()
	if got, body := p.callBearing(name, token); got != want {
		p.t.Errorf("call %s: %d %.300s, want %d", name, got, body, want)
	}
}

func TestProviderLetsTheSDKCallAProtectedFunction(t *testing.T) {
	p := startProvider(t)
	for _, name := range []string{"echo", "other"} {
		p.model(name, echoes)
		p.deployWith(name, tokenFor, nil)
	}
	secret := p.register("shop", "--functions", "openfaas-fn:echo")
	source := sdk.NewClientCredentialsTokenSource("shop", secret, p.url("/oauth/token"), "function", "client_credentials", "")
	u, _ := url.Parse(p.url(""))
	client := sdk.NewClientWithOpts(u, http.DefaultClient, sdk.WithFunctionTokenSource(source), sdk.WithFunctionTokenCache(sdk.NewMemoryTokenCache()))
	invoke := func(name string, auth bool) (int, string, error) {
		req, err := http.NewRequest(http.MethodPost, "", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.InvokeFunction(name, "", false, auth, req)
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return res.StatusCode, string(body), err
	}
	const calls = 100
	for range calls {
		if status, body, err := invoke("echo", true); err != nil || status != http.StatusOK || body != "got x" {
			t.Fatalf("%d %q %v", status, body, err)
		}
	}
	if status, _, err := invoke("echo", false); err != nil || status != http.StatusUnauthorized {
		t.Errorf("without a token: %d %v", status, err)
	}
	if _, _, err := invoke("other", true); err == nil || !strings.Contains(err.Error(), "invalid_target") {
		t.Errorf("another function: %v", err)
	}
	// The cache of the SDK and ours: a token for the client, one for the function, and no more.
	if got := p.metric("faas_auth_tokens_issued_total"); got != 2 {
		t.Errorf("%v tokens were issued for %d calls", got, calls)
	}
}

// metric is the sum of a metric over its labels.
func (p *provider) metric(name string) (sum float64) {
	p.t.Helper()
	res, err := http.Get(p.url("/metrics"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	found := false
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok && (rest[0] == '{' || rest[0] == ' ') {
			var value float64
			if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' '):], &value); err != nil {
				p.t.Fatal(err)
			}
			sum, found = sum+value, true
		}
	}
	if !found {
		p.t.Errorf("there is no metric %s", name)
	}
	return sum
}

func TestProviderIsAdministeredByTokenWhereFaasCLILooksForIt(t *testing.T) {
	p := startProvider(t)
	p.model("echo", echoes)
	p.deployWith("echo", tokenFor, nil)
	ops, shop := p.register("ops", "--admin", "--access-ttl", "8h"), p.register("shop", "--functions", "*")
	login := func(client, secret string) string {
		cmd := p.command("login", "-u", client, "-s")
		cmd.Stdin = strings.NewReader(secret)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("login: %v %s", err, out)
		}
		if strings.Contains(string(out), secret) {
			t.Error("the secret is printed")
		}
		return string(out)
	}
	login("ops", ops)
	// Away from the local provider's password.
	versions := func() (string, error) {
		cmd := p.command("versions", "--data-dir", t.TempDir())
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := versions(); err != nil || !strings.Contains(out, "echo") {
		t.Errorf("%v %s", err, out)
	}
	login("shop", shop)
	if out, err := versions(); err == nil || !strings.Contains(out, "403") {
		t.Errorf("a client that is no administrator: %v %s", err, out)
	}
	cmd := p.command("login", "-u", "ops", "-s")
	cmd.Stdin = strings.NewReader(shop)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "invalid_client") {
		t.Errorf("another's secret: %v %s", err, out)
	}
	said := p.output.String()
	for _, secret := range []string{ops, shop, p.accessToken("shop", shop)} {
		if strings.Contains(said, secret) {
			t.Error("a secret is in the log")
		}
	}
	if !strings.Contains(said, "audit=true") {
		t.Error("there is no audit line")
	}
}

func TestProviderTakesBackTokens(t *testing.T) {
	const bound = 3 * time.Second
	p := startProvider(t)
	p.model("echo", echoes)
	p.deployWith("echo", tokenFor, nil)
	// Checked by its own watchdog, as a function elsewhere would be.
	p.model("inner", echoes)
	p.deployWith("inner", nil, map[string]string{
		"jwt_auth": "true", "authority": p.url(""), "revocation_bound": bound.String(),
	})
	shop, keep := p.register("shop", "--functions", "openfaas-fn:*"), p.register("keep", "--functions", "openfaas-fn:*")
	revoked, kept := p.accessToken("shop", shop), p.accessToken("keep", keep)
	narrow := p.accessToken("keep", keep, "--function", "echo")
	for _, name := range []string{"echo", "inner"} {
		p.eventually(name+" accepts the token", func() bool { status, _ := p.callBearing(name, revoked); return status == http.StatusOK })
		p.wantStatus(http.StatusOK, name, kept)
		p.wantStatus(http.StatusUnauthorized, name, "")
	}
	p.wantStatus(http.StatusOK, "echo", narrow)
	p.wantStatus(http.StatusForbidden, "inner", narrow)
	if out, err := p.command("client", "remove", "shop").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	began := time.Now()
	p.wantStatus(http.StatusUnauthorized, "echo", revoked)
	for {
		if status, _ := p.callBearing("inner", revoked); status == http.StatusUnauthorized {
			break
		}
		if time.Since(began) > bound {
			t.Fatalf("the watchdog accepts a revoked token after %s", time.Since(began))
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("the watchdog knew after %s of %s", time.Since(began).Round(time.Millisecond), bound)
	// One token, by itself (RFC 7009).
	form := url.Values{"token": {kept}, "client_id": {"keep"}, "client_secret": {keep}}
	res, err := http.PostForm(p.url("/oauth/revoke"), form)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res, err)
	}
	res.Body.Close()
	p.wantStatus(http.StatusUnauthorized, "echo", kept)
	p.wantStatus(http.StatusOK, "echo", narrow)
	p.kill()
	p.start()
	p.eventually("echo is back", func() bool { status, _ := p.callBearing("echo", narrow); return status == http.StatusOK })
	p.wantStatus(http.StatusUnauthorized, "echo", kept)
	p.wantStatus(http.StatusUnauthorized, "echo", revoked)
	p.wantStatus(http.StatusOK, "echo", p.accessToken("keep", keep))
}

func TestProviderLeavesNoWayAroundTheToken(t *testing.T) {
	p := startProvider(t)
	p.model("echo", echoes)
	p.deployWith("echo", tokenFor, nil)
	secret := p.register("shop", "--functions", "openfaas-fn:echo")
	good := "Authorization: Bearer " + p.accessToken("shop", secret)
	for _, c := range []struct {
		name   string
		head   string // request line and headers after Host
		status int
	}{
		{"good", "POST /function/echo HTTP/1.1\r\n" + good, 200},
		{"with a path", "POST /function/echo/a/b HTTP/1.1\r\n" + good, 200},
		{"by its namespace", "POST /function/echo.openfaas-fn HTTP/1.1\r\n" + good, 200},
		{"none", "POST /function/echo HTTP/1.1", 401},
		{"none, with a path", "POST /function/echo/_/health HTTP/1.1", 401},
		{"encoded name", "POST /function/%65cho HTTP/1.1", 404},
		{"encoded prefix", "POST /%66unction/echo HTTP/1.1", 404},
		{"two slashes", "POST //function/echo HTTP/1.1", 307}, // to where it wants a token,
		{"dots", "POST /function/x/../echo HTTP/1.1", 404},
		{"absolute", "POST http://h/function/echo HTTP/1.1", 401},
		{"HTTP/1.0", "POST /function/echo HTTP/1.0", 401},
		{"two headers", "POST /function/echo HTTP/1.1\r\n" + good + "\r\nAuthorization: Bearer x", 400},
		{"the other way round", "POST /function/echo HTTP/1.1\r\nAuthorization: Bearer x\r\n" + good, 400},
		{"in the query", "POST /function/echo?access_token=" + good[len("Authorization: Bearer "):] + " HTTP/1.1", 400},
		{"named a connection's header", "POST /function/echo HTTP/1.1\r\nConnection: close, Authorization\r\n" + good, 200},
		{"identity", "POST /function/echo HTTP/1.1\r\nX-Auth-Subject: shop\r\nX-Auth-Client: shop\r\nX-Auth-Scope: function", 401},
		{"link", "GET /_/link HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: faas-predict-link/1", 404},
		{"clients", "GET /system/clients HTTP/1.1\r\n" + good, 403},
		{"keys", "POST /system/keys HTTP/1.1", 401},
	} {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
		if err != nil {
			t.Fatal(err)
		}
		line, headers, _ := strings.Cut(c.head, "\r\n")
		if headers != "" {
			headers += "\r\n"
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "%s\r\nHost: h\r\n%sContent-Length: 1\r\n\r\nx", line, headers)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != c.status {
			t.Errorf("%s: %d %.200s, want %d", c.name, res.StatusCode, body, c.status)
		}
		if c.status == 401 && res.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no WWW-Authenticate", c.name)
		}
		conn.Close()
	}
	// A typing mistake must not open a function.
	wrong := map[string]string{"faas-predict.auth": "tokens"}
	if status, err := p.Deploy(t.Context(), types.FunctionDeployment{Service: "echo2", Image: "echo", Annotations: &wrong}); err == nil || status != http.StatusBadRequest {
		t.Errorf("%d %v", status, err)
	}
}

func TestProviderAsksAnIssuerElsewhere(t *testing.T) {
	home := startProvider(t)
	away := startProvider(t, "authority="+home.url(""), "jwt_auth=true", "revocation_bound=2s")
	away.model("echo", echoes)
	away.deployWith("echo", nil, nil)
	away.model("open", echoes)
	away.deployWith("open", map[string]string{"faas-predict.auth": "none"}, nil)
	token := home.accessToken("shop", home.register("shop", "--functions", "openfaas-fn:echo"))
	away.eventually("the issuer's keys are known", func() bool { status, _ := away.callBearing("echo", token); return status == http.StatusOK })
	away.wantStatus(http.StatusUnauthorized, "echo", "")
	away.wantStatus(http.StatusOK, "open", "")
	home.kill()
	away.wantStatus(http.StatusOK, "echo", token)
	home.start()
	away.wantStatus(http.StatusOK, "echo", token)
	if out, err := away.command("token", "-u", "shop", "-s").CombinedOutput(); err == nil || !strings.Contains(string(out), "issues no tokens") {
		t.Errorf("%v %s", err, out)
	}
}

func TestProviderAnswersGatewaysThatAskForIt(t *testing.T) {
	p := startProvider(t)
	p.model("echo", echoes)
	p.deployWith("echo", tokenFor, nil)
	token := p.accessToken("shop", p.register("shop", "--functions", "openfaas-fn:echo"))
	for path, want := range map[string]int{"/function/echo": 200, "/function/other": 403, "/system/functions": 403} {
		req, _ := http.NewRequest(http.MethodGet, p.url("/validate"), nil)
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("X-Original-URI", path)
		req.Header.Set("X-Original-Method", "POST")
		req.Header.Set("X-Original-Host", "h")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want || want == 200 && res.Header.Get("X-Auth-Client") != "shop" {
			t.Errorf("%s: %d %v", path, res.StatusCode, res.Header)
		}
	}
	var discovery map[string]any
	res, err := http.Get(p.url("/.well-known/openid-configuration"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&discovery); err != nil || discovery["issuer"] != p.url("") {
		t.Errorf("%v %v", discovery, err)
	}
}
