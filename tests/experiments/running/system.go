package running

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/golang-jwt/jwt/v5"
	sdk "github.com/openfaas/go-sdk"
)

// The functions: one that wants tokens, another one that does, and one that is open to all.
const (
	guarded = "guarded"
	other   = "other"
	free    = "free"
)

// countingModel answers with the process that it is and how many calls that one has had, so that what
// reaches the model is counted in the model.
const countingModel = `import os
calls = 0
def predict(request):
    global calls
    calls += 1
    return f"{os.getpid()} {calls}"
`

// System is faas-predict serve with three functions and a registered client.
type System struct {
	dir     string
	program string
	cmd     *exec.Cmd
	ended   chan struct{}
	said    bytes.Buffer
	port    int
	calls   *transport
	plain   *http.Client // net/http's, for all that is no load
	secret  string
	gateway *url.URL

	subject string // the client's own token, from which each cache's are exchanged
}

// Start builds nothing: bin must have faas-predict and fwatchdog. Close it.
func Start(ctx context.Context, bin string) (*System, error) {
	s := &System{ended: make(chan struct{}), plain: &http.Client{Transport: &http.Transport{}}}
	if err := s.start(ctx, bin); err != nil {
		said := s.said.String()
		s.Close()
		return nil, fmt.Errorf("%w\n%s", err, said)
	}
	return s, nil
}

func (s *System) start(ctx context.Context, bin string) (err error) {
	if s.dir, err = os.MkdirTemp("", "experiments-"); err != nil {
		return err
	}
	// The provider as root gives each function a user of its own, which must reach its data directory.
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return err
	}
	if s.program, err = filepath.Abs(filepath.Join(bin, "faas-predict")); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.port = listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	s.gateway = &url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))}
	s.cmd = exec.Command(s.program, "serve", "--port", strconv.Itoa(s.port), "--listen-address", "127.0.0.1", "--data-dir", s.data())
	s.cmd.Stdout, s.cmd.Stderr = &s.said, &s.said
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return err
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait()
	}()
	if err := s.healthy(ctx); err != nil {
		return err
	}
	if err := s.deploy(ctx); err != nil {
		return err
	}
	if s.secret, err = s.run(ctx, "", "client", "add", "experiments", "--functions", "openfaas-fn:*", "--access-ttl", "24h"); err != nil {
		return err
	}
	if s.subject, err = s.token("experiments", s.secret); err != nil {
		return err
	}
	s.calls = newTransport(s.gateway.Host, callers)
	return nil
}

func (s *System) data() string { return filepath.Join(s.dir, "data") }

func (s *System) healthy(ctx context.Context) error {
	for range 400 {
		if resp, err := s.plain.Get(s.gateway.String() + "/healthz"); err == nil {
			resp.Body.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended:
			return fmt.Errorf("faas-predict ended")
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("faas-predict does not answer")
}

func (s *System) deploy(ctx context.Context) error {
	bundle := filepath.Join(s.dir, "counting")
	if err := os.Mkdir(bundle, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "main.py"), []byte(countingModel), 0o644); err != nil {
		return err
	}
	stack := "version: 1.0\nprovider: {name: openfaas, gateway: " + s.gateway.String() + "}\nfunctions:\n"
	for _, name := range []string{guarded, other, free} {
		auth := "token"
		if name == free {
			auth = "none"
		}
		stack += fmt.Sprintf("  %s: {lang: python3-predict, handler: %s, image: counting, annotations: {faas-predict.auth: %s}}\n", name, bundle, auth)
	}
	file := filepath.Join(s.dir, "stack.yml")
	if err := os.WriteFile(file, []byte(stack), 0o600); err != nil {
		return err
	}
	_, err := s.run(ctx, "", "deploy", "-f", file)
	return err
}

// run runs faas-predict as a client of the system, and returns its standard output.
func (s *System) run(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Env = append(os.Environ(), "data_dir="+s.data(), "OPENFAAS_URL="+s.gateway.String(), "HOME="+s.dir, "OPENFAAS_CONFIG="+filepath.Join(s.dir, "cli"))
	cmd.Stdin = strings.NewReader(stdin)
	var failed bytes.Buffer
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("faas-predict %s: %w: %s", args[0], err, &failed)
	}
	return strings.TrimSpace(string(out)), nil
}

// Close ends everything. It is safe to call more than once.
func (s *System) Close() {
	if s.calls != nil {
		s.calls.CloseIdleConnections()
	}
	s.plain.CloseIdleConnections()
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.ended:
		case <-time.After(60 * time.Second):
			_ = s.cmd.Process.Kill()
			<-s.ended
		}
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

func (s *System) tokenURL() string { return s.gateway.String() + "/oauth/token" }

func (s *System) token(client, secret string) (string, error) {
	return sdk.NewClientCredentialsTokenSource(client, secret, s.tokenURL(), "function", "client_credentials", "").Token()
}

// exchange gets a token for one function as InvokeFunction does.
func (s *System) exchange(subject, function string) (*sdk.Token, error) {
	return sdk.ExchangeIDToken(s.tokenURL(), subject, sdk.WithScope([]string{"function"}), sdk.WithAudience([]string{"openfaas-fn:" + function}))
}

// issued is how many tokens the issuer says that it gave for others.
func (s *System) issued() (int, error) {
	resp, err := s.plain.Get(s.gateway.String() + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "faas_auth_tokens_issued_total{") && strings.Contains(line, "token-exchange") {
			value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
			return int(value), err
		}
	}
	return 0, nil
}

// Bad is a kind of token that must not pass, and the status that says so.
type Bad struct {
	Kind   string
	Token  string
	Status int
}

// BadTokens makes one of each kind.
func (s *System) BadTokens(ctx context.Context) ([]Bad, error) {
	secret, err := s.run(ctx, "", "client", "add", "hasty", "--functions", "openfaas-fn:*", "--access-ttl", "1s")
	if err != nil {
		return nil, err
	}
	expired, err := s.token("hasty", secret)
	if err != nil {
		return nil, err
	}
	wrong, err := s.exchange(s.subject, other)
	if err != nil {
		return nil, err
	}
	revoked, err := s.token("experiments", s.secret)
	if err != nil {
		return nil, err
	}
	form := url.Values{"client_id": {"experiments"}, "client_secret": {s.secret}, "token": {revoked}}
	resp, err := s.plain.PostForm(s.gateway.String()+"/oauth/revoke", form)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("revoke: %s", resp.Status)
	}
	good, err := s.exchange(s.subject, guarded)
	if err != nil {
		return nil, err
	}
	forged, err := forge(good.IDToken)
	if err != nil {
		return nil, err
	}
	bad := []Bad{
		{"expired", expired, http.StatusUnauthorized}, {"revoked", revoked, http.StatusUnauthorized},
		{"forged", forged, http.StatusUnauthorized}, {"for another function", wrong.IDToken, http.StatusForbidden},
	}
	// The leeway for clocks is a second.
	deadline := time.Now().Add(10 * time.Second)
	for _, b := range bad {
		for {
			status, err := s.status(ctx, b.Token)
			if err != nil {
				return nil, err
			}
			if status == b.Status {
				break
			}
			if time.Now().After(deadline) {
				return nil, fmt.Errorf("a token that is %s is answered %d", b.Kind, status)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return bad, nil
}

func (s *System) status(ctx context.Context, token string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.gateway.String()+"/function/"+guarded, strings.NewReader("x"))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := s.plain.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}

// forge signs a token's claims with a key that is not the issuer's, under the name of the one that is.
func forge(good string) (string, error) {
	claims := jwt.MapClaims{}
	parsed, _, err := jwt.NewParser().ParseUnverified(good, claims)
	if err != nil {
		return "", err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	forged := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	forged.Header = parsed.Header
	return forged.SignedString(key)
}
