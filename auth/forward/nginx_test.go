package forward

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faas-predict/faas-predict/auth/token"
)

// nginx starts a real one with the configuration that is shipped, and returns the socket it listens on.
func nginx(t *testing.T, provider, issuer string) string {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // not on every user's PATH
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("this test needs nginx; .ci/setup installs Debian's nginx-light: %v", err)
	}
	shipped, err := os.ReadFile("testdata/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	// Below /tmp, because a socket's path may have 107 bytes at most.
	dir, err := os.MkdirTemp("", "nginx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	site := string(shipped)
	for from, to := range map[string]string{
		"listen 8080;":   "listen unix:" + socket + ";",
		"127.0.0.1:8081": strings.TrimPrefix(provider, "http://"),
		"127.0.0.1:8082": strings.TrimPrefix(issuer, "http://"),
	} {
		if strings.Count(site, from) != 1 {
			t.Fatalf("testdata/nginx.conf must have %q once", from)
		}
		site = strings.Replace(site, from, to, 1)
	}
	main := fmt.Sprintf("daemon off; worker_processes 1; pid %s/pid; error_log stderr; events {}\nhttp { access_log off;\n", dir)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		main += fmt.Sprintf("%s_temp_path %s/%[1]s;\n", kind, dir)
	}
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, []byte(main+site+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.Command(program, "-p", dir, "-c", config, "-e", "stderr")
	cmd.Stdout, cmd.Stderr = &said, &said
	// Should this process be killed, nginx must not stay.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Logf("nginx said:\n%s", said.String())
		}
	})
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return socket
		} else if time.Now().After(limit) {
			t.Fatalf("nginx does not listen: %v", err)
		}
		select {
		case <-ended:
			t.Fatal("nginx ended")
		default:
		}
	}
}

func TestBehindNginx(t *testing.T) {
	m := newMint(t)
	passed := make(chan *http.Request, 1)
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		passed <- r
	}))
	defer provider.Close()
	handler := m.handler(func(c *Config) { c.Public = []string{"/healthz"}; c.Logger = slog.New(slog.DiscardHandler) })
	asked := httptest.NewServer(handler)
	defer asked.Close()
	socket := nginx(t, provider.URL, asked.URL)

	// Written by hand: net/http's client would tidy up what it is given.
	send := func(t *testing.T, request string) *http.Response {
		t.Helper()
		c, err := (&net.Dialer{}).DialContext(context.Background(), "unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	request := func(target string, headers ...string) string {
		return "POST " + target + " HTTP/1.1\r\nHost: gateway.example.com\r\nContent-Length: 3\r\n" +
			strings.Join(append(headers, ""), "\r\n") + "\r\nabc"
	}
	bearer := func(scope string, permissions ...string) string {
		return "Authorization: Bearer " + m.token(scope, permissions...)
	}
	iris := bearer("function", "openfaas-fn:iris")

	for _, test := range []struct {
		name, request string
		want          int
		challenge     string // contains
		path          string // that reaches the provider, letter for letter
	}{
		{"good token", request("/function/iris/a%2Fb//c?x=%41", iris), 200, "", "/function/iris/a%2Fb//c?x=%41"},
		{"no token", request("/function/iris"), 401, `Bearer realm="IAM function invoke"`, ""},
		{"bad token", request("/function/iris", iris+"x"), 401, `error="invalid_token"`, ""},
		{"wrong function", request("/function/wine", iris), 403, "", ""},
		{"wrong namespace", request("/function/iris.dev", iris), 403, "", ""},
		{"system with a function's token", request("/system/functions", iris), 403, "", ""},
		{"system", request("/system/functions", bearer("system")), 200, "", "/system/functions"},
		{"public", request("/healthz"), 200, "", "/healthz"},
		{"elsewhere", request("/", iris), 403, "", ""},
		{"token in the query", request("/function/iris?access_token=" + m.token("function", "*")), 401, `error="invalid_request"`, ""},
		{"original URI from the client", request("/function/wine", iris, "X-Original-URI: /function/iris"), 403, "", ""},
		{"Traefik's headers from the client", request("/function/wine", iris, "X-Forwarded-Uri: /function/iris",
			"X-Forwarded-Method: POST", "X-Forwarded-Host: h"), 403, "", ""},
		{"underscores for dashes", request("/function/wine", iris, "X_Original_URI: /function/iris"), 403, "", ""},
		{"way out of the function", request("/function/iris/../wine", iris), 403, "", ""},
		{"way out, encoded", request("/function/iris/%2e%2e/wine", iris), 403, "", ""},
		{"way into the function", request("/function/wine/../iris", iris), 403, "", ""},
		{"slashes", request("//function/iris", iris), 403, "", ""},
		{"absolute target", request("http://gateway.example.com/function/wine", iris), 403, "", ""},
		{"validate itself", request("/validate", iris), 404, "", ""},
		{"validate spelled in another way", request("/validate/", iris), 403, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			res := send(t, test.request)
			if res.StatusCode != test.want || !strings.Contains(res.Header.Get("WWW-Authenticate"), test.challenge) {
				t.Errorf("answered %d with %q", res.StatusCode, res.Header.Get("WWW-Authenticate"))
			}
			select {
			case r := <-passed:
				if r.RequestURI != test.path {
					t.Errorf("%s reached the provider, want %q", r.RequestURI, test.path)
				}
			default:
				if test.path != "" {
					t.Error("nothing reached the provider")
				}
			}
		})
	}

	t.Run("two tokens", func(t *testing.T) {
		res := send(t, request("/function/iris", iris, bearer("system")))
		if res.StatusCode/100 != 4 { // newer versions of nginx refuse it themselves
			t.Errorf("answered %d", res.StatusCode)
		}
	})

	t.Run("identity from the client", func(t *testing.T) {
		forged := []string{"X-Auth-Subject: admin", "x-auth-client: admin", "X-AUTH-SCOPE: system", "X-Auth-Scope: system"}
		for target, want := range map[string]string{"/function/iris": "team-a", "/healthz": ""} {
			if res := send(t, request(target, append(forged, iris)...)); res.StatusCode != http.StatusOK {
				t.Fatalf("answered %d", res.StatusCode)
			}
			r := <-passed
			if got := r.Header.Get(ClientHeader); got != want {
				t.Errorf("%s: the provider sees the client %q, want %q", target, got, want)
			}
			for _, name := range []string{SubjectHeader, ClientHeader, ScopeHeader} {
				for _, value := range r.Header[name] {
					if value == "admin" || value == "system" {
						t.Errorf("%s: the client's %s reaches the provider", target, name)
					}
				}
			}
		}
	})
}

var _ Verifier = (*token.Verifier)(nil)
