package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faas-predict/faas-predict/auth/issuer"
)

// asProgram makes the test binary be faas-auth.
const asProgram = "FAAS_AUTH_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func program(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "data_dir="+dir, "listen_address=127.0.0.1", "port=0", "metrics_port=0", "log_format=json")
	return cmd
}

// run returns what a command printed.
func run(t *testing.T, dir string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := program(t, dir, args...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err = cmd.Run()
	return out.String(), log.String(), err
}

// serving starts faas-auth and returns where it listens; stop ends it and returns how it ended.
func serving(t *testing.T, dir string, args ...string) (address string, stop func() error) {
	t.Helper()
	cmd := program(t, dir, append([]string{"serve"}, args...)...)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	found := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(log); lines.Scan(); {
			var line struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
				found <- line.Address
			}
		}
		ended <- cmd.Wait()
	}()
	t.Cleanup(func() { cmd.Process.Kill() })
	select {
	case address = <-found:
	case err := <-ended:
		t.Fatalf("ended at once: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("does not serve")
	}
	return address, func() error {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			return err
		case <-time.After(20 * time.Second):
			cmd.Process.Kill()
			return <-ended
		}
	}
}

func tokenFor(t *testing.T, base, name, secret string) string {
	t.Helper()
	res, err := http.PostForm(base+"/oauth/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {name}, "client_secret": {secret}})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var out struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil || out.AccessToken == "" {
		t.Fatalf("%s: %v", res.Status, err)
	}
	return out.AccessToken
}

var secretLine = regexp.MustCompile(`^fpc_[A-Za-z0-9_-]{43}\n$`)

func TestSecretIsAloneOnStandardOutput(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "auth")
	if _, stderr, err := run(t, dir, "client", "list"); err == nil || !strings.Contains(stderr, "no issuer has served data_dir yet") {
		t.Errorf("a directory that is not there: %v %s", err, stderr)
	}
	before, stderr, err := run(t, dir, "client", "add", "shop", "--functions", "openfaas-fn:iris*,dev:*") // nobody serves
	if err != nil || !secretLine.MatchString(before) || strings.Contains(stderr, strings.TrimSpace(before)) {
		t.Fatalf("%v %q %q", err, before, stderr)
	}
	address, stop := serving(t, dir)
	during, stderr, err := run(t, dir, "client", "add", "ops", "--admin")
	if err != nil || !secretLine.MatchString(during) || strings.Contains(stderr, strings.TrimSpace(during)) {
		t.Fatalf("%v %q %q", err, during, stderr)
	}
	tokenFor(t, "http://"+address, "shop", strings.TrimSpace(before))
	tokenFor(t, "http://"+address, "ops", strings.TrimSpace(during))
	reset, _, err := run(t, dir, "client", "reset-secret", "shop")
	if err != nil || !secretLine.MatchString(reset) || reset == before {
		t.Fatalf("%v %q", err, reset)
	}
	tokenFor(t, "http://"+address, "shop", strings.TrimSpace(reset))
	out, _, err := run(t, dir, "client", "list", "-o", "json")
	var clients []issuer.Client
	if json.Unmarshal([]byte(out), &clients) != nil || err != nil || len(clients) != 2 || !slices.Equal(clients[1].Functions, []string{"openfaas-fn:iris*", "dev:*"}) {
		t.Errorf("%v %s", err, out)
	}
	for _, c := range []struct{ args, says string }{
		{"client disable shop", "client shop disabled"}, {"client enable shop", "client shop enabled"}, {"client revoke-tokens shop", "tokens of shop taken back"},
		{"client remove shop", "client shop removed"}, {"key rotate", "signs from"}, {"key list", "KID"},
	} {
		if out, stderr, err := run(t, dir, strings.Fields(c.args)...); err != nil || !strings.Contains(out, c.says) {
			t.Errorf("%s: %v %q %q", c.args, err, out, stderr)
		}
	}
	if _, stderr, err := run(t, dir, "client", "remove", "shop"); err == nil || !strings.Contains(stderr, "no such client") {
		t.Errorf("%v %s", err, stderr)
	}
	if _, stderr, err := run(t, dir, "serve"); err == nil || !strings.Contains(stderr, "in use by another faas-auth") {
		t.Errorf("served twice: %v %s", err, stderr)
	}
	if err := stop(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if out, _, err := run(t, dir, "client", "list"); err != nil || !strings.Contains(out, "ops") || strings.Contains(out, "shop") {
		t.Errorf("%v %s", err, out)
	}
}

func TestStateThatSomebodyElseHasOpenIsAClearError(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "auth")
	state, err := issuer.Open(issuer.Config{URL: "http://a", Dir: dir, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	if _, stderr, err := run(t, dir, "client", "list"); err == nil || !strings.Contains(stderr, "in use by a process that does not answer on "+filepath.Join(dir, "admin.sock")) {
		t.Errorf("%v %s", err, stderr)
	}
}

func TestServesHealthAndValidate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "auth")
	address, stop := serving(t, dir)
	secret, _, err := run(t, dir, "client", "add", "shop", "--functions", "openfaas-fn:iris*")
	if err != nil {
		t.Fatal(err)
	}
	token := tokenFor(t, "http://"+address, "shop", strings.TrimSpace(secret))
	for _, c := range []struct {
		path, original, token string
		status                int
	}{
		{"/healthz", "", "", 200},
		{"/validate", "/function/iris", token, 200},
		{"/validate", "/function/tulip", token, 403},
		{"/validate", "/function/iris", "", 401},
		{"/validate", "/system/functions", token, 403},
		{"/metrics", "", "", 404}, // on a port of its own
		{"/system/clients", "", "", 404},
	} {
		r, _ := http.NewRequest(http.MethodGet, "http://"+address+c.path, nil)
		if c.original != "" {
			r.Header.Set("X-Original-Uri", c.original)
			r.Header.Set("X-Original-Method", "POST")
			r.Header.Set("X-Original-Host", "faas.example")
		}
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != c.status {
			t.Errorf("%s for %q: %d %s, want %d", c.path, c.original, res.StatusCode, body, c.status)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestServesHTTPS(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, content := range map[string][]byte{"cert": certificate, "key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	address, stop := serving(t, filepath.Join(dir, "auth"), "--tls-cert", filepath.Join(dir, "cert"), "--tls-key", filepath.Join(dir, "key"))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Get("https://" + address + "/.well-known/openid-configuration")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var found struct{ Issuer string }
	if err := json.NewDecoder(res.Body).Decode(&found); err != nil || found.Issuer != "https://"+address {
		t.Errorf("%+v, %v, want https://%s", found, err, address)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Imports point one way: auth, then watchdog, then provider.
func TestNothingOfTheProviderOrTheWatchdogIsImported(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(out)) {
		if ours, ok := strings.CutPrefix(name, "github.com/faas-predict/faas-predict/"); ok && ours != "auth" && !strings.HasPrefix(ours, "auth/") {
			t.Errorf("%s is imported", name)
		}
	}
}
