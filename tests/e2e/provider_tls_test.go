package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/tests/pki"
)

// secure makes a provider that is yet to be started speak HTTPS, with files that are links into a directory
// behind a link, as in a secret that Kubernetes mounts. show swaps that directory for one with another pair.
func (p *provider) secure(ca *pki.Authority, first pki.Pair) (show func(pki.Pair)) {
	dir := filepath.Join(p.dir, "tls")
	n := 0
	link := func(to, name string) {
		if err := os.Symlink(to, filepath.Join(dir, "..next")); err != nil {
			p.t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..next"), filepath.Join(dir, name)); err != nil {
			p.t.Fatal(err)
		}
	}
	show = func(pair pki.Pair) {
		n++
		version := fmt.Sprintf("..%d", n)
		if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
			p.t.Fatal(err)
		}
		pair.Write(p.t, filepath.Join(dir, version))
		link(version, "..data")
	}
	show(first)
	link("..data/cert", "cert")
	link("..data/key", "key")
	p.scheme = "https"
	p.http = p.client(&tls.Config{RootCAs: ca.Pool})
	p.env = append(p.env, "tls_cert="+filepath.Join(dir, "cert"), "tls_key="+filepath.Join(dir, "key"))
	return show
}

func (p *provider) client(config *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	p.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func until() time.Time { return time.Now().Add(time.Hour) }

func TestProviderSpeaksHTTPS(t *testing.T) {
	p, ca := newProvider(t), pki.New(t)
	caFile := pki.WriteFile(t, p.dir, "ca", ca.PEM)
	if err := os.Chmod(caFile, 0o644); err != nil { // functions read it
		t.Fatal(err)
	}
	p.secure(ca, ca.Issue(t, "provider", until()))
	p.start()
	model := bundle(t, map[string]string{"main.py": talkativeModel})
	if out, err := p.run("push", model, "--name", "echo"); err == nil || !strings.Contains(out, "unknown authority") {
		t.Errorf("a push without the authority: %v %s", err, out)
	}
	if out, err := p.run("push", model, "--name", "echo", "--cacert", caFile); err != nil {
		t.Fatalf("a push with the authority: %v %s", err, out)
	}
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"}) // by go-sdk
	p.wantCall("echo", "hello", "hello")

	res, err := p.http.Post(p.url("/function/echo"), "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.ProtoMajor != 2 || res.Header.Get("X-Call-Id") == "" {
		t.Errorf("%s with %v, want HTTP/2 with a call id", res.Proto, res.Header)
	}
	one := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool}}
	defer one.CloseIdleConnections()
	if res, err = (&http.Client{Transport: one}).Post(p.url("/function/echo"), "text/plain", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.ProtoMajor != 1 || res.StatusCode != http.StatusOK {
		t.Errorf("%s %s, want HTTP/1.1 200", res.Proto, res.Status)
	}
	if plain, err := http.Get("http" + strings.TrimPrefix(p.url("/healthz"), "https")); err == nil {
		plain.Body.Close()
		if plain.StatusCode != http.StatusBadRequest {
			t.Errorf("plain HTTP on a port for HTTPS: %s", plain.Status)
		}
	}

	// A stream in both directions: each answer comes before the next line is sent.
	reader, writer := io.Pipe()
	req, _ := http.NewRequest(http.MethodPost, p.url("/function/echo"), reader)
	req.Header.Set("Content-Type", "application/x-ndjson")
	go func() { io.WriteString(writer, "\"line 0\"\n") }()
	if res, err = p.http.Do(req); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(res.Body)
	for n := range 5 {
		if want := fmt.Sprintf(`"line %d"`, n); !lines.Scan() || lines.Text() != want {
			t.Fatalf("%q %v, want %s", lines.Text(), lines.Err(), want)
		}
		if n < 4 {
			fmt.Fprintf(writer, "\"line %d\"\n", n+1)
		}
	}
	writer.Close()
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("after the last line: %q %v", lines.Text(), lines.Err())
	}
	res.Body.Close()

	// A function that checks tokens by itself finds the issuer's keys behind the same certificate.
	p.deploy(types.FunctionDeployment{Service: "own", Image: "echo", EnvVars: map[string]string{
		"jwt_auth": "true", "authority": p.url(""), "authority_ca": caFile,
	}})
	out, err := p.command("client", "add", "shop", "--functions", "*", "--cacert", caFile).Output()
	if err != nil {
		t.Fatal(err)
	}
	token := p.accessToken("shop", strings.TrimSpace(string(out)), "--cacert", caFile)
	for bearer, want := range map[string]int{"": http.StatusUnauthorized, token: http.StatusOK} {
		req, _ := http.NewRequest(http.MethodPost, p.url("/function/own"), strings.NewReader("x"))
		if bearer != "" {
			req.Header.Set("Authorization", "Bearer "+bearer)
		}
		res, err := p.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("with token %t: %s %s, want %d", bearer != "", res.Status, body, want)
		}
	}
}

func TestClientsNeedACertificateWhereOneIsAskedFor(t *testing.T) {
	p, ca, members := newProvider(t), pki.New(t), pki.New(t)
	p.secure(ca, ca.Issue(t, "provider", until()))
	p.env = append(p.env, "tls_client_ca="+pki.WriteFile(t, p.dir, "members", members.PEM))
	dir := t.TempDir()
	cert, key := members.Issue(t, "ops", until()).Write(t, dir)
	caFile := pki.WriteFile(t, dir, "ca", ca.PEM)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	p.http = p.client(&tls.Config{RootCAs: ca.Pool, Certificates: []tls.Certificate{pair}})
	p.start()
	if out, err := p.run("versions", "--cacert", caFile); err == nil || !strings.Contains(out, "certificate required") {
		t.Errorf("without a certificate: %v %s", err, out)
	}
	if out, err := p.run("versions", "--cacert", caFile, "--cert", cert, "--key", key); err != nil {
		t.Errorf("with a certificate: %v %s", err, out)
	}
}

// load calls a function from several clients, each call over a connection of its own or all over the same,
// until stop is called, which returns how many calls were answered as they should and why others were not.
func (p *provider) load(ca *pki.Authority, function string, fresh bool) (stop func() (answered int, failures []string)) {
	var ending atomic.Bool
	var mu sync.Mutex
	var answered int
	var failures []string
	var callers sync.WaitGroup
	for n := range 4 {
		callers.Go(func() {
			client := p.client(&tls.Config{RootCAs: ca.Pool})
			for i := 0; !ending.Load(); i++ {
				want := fmt.Sprintf("%d of caller %d", i, n)
				got, err := postText(client, p.url("/function/"+function), want)
				mu.Lock()
				if err == nil && got == want {
					answered++
				} else {
					failures = append(failures, fmt.Sprintf("%q %v", got, err))
				}
				mu.Unlock()
				if fresh {
					client.CloseIdleConnections()
				}
			}
		})
	}
	return func() (int, []string) {
		ending.Store(true)
		callers.Wait()
		return answered, failures
	}
}

func postText(client *http.Client, url, body string) (string, error) {
	res, err := client.Post(url, "text/plain", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", res.Status, bytes.TrimSpace(answer))
	}
	return string(answer), err
}

func TestCertificateIsReplacedUnderLoadWithoutAFailedCall(t *testing.T) {
	p, ca := newProvider(t), pki.New(t)
	show := p.secure(ca, ca.Issue(t, "first", until()))
	p.start()
	t.Setenv("SSL_CERT_FILE", pki.WriteFile(t, t.TempDir(), "ca", ca.PEM))
	p.model("echo", talkativeModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
	steady, coming := p.load(ca, "echo", false), p.load(ca, "echo", true)
	shown := func() string {
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.port), &tls.Config{RootCAs: ca.Pool})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	for range 3 {
		next := ca.Issue(t, "next", until())
		show(next)
		p.eventually("the new certificate is shown", func() bool { return shown() == next.Serial })
	}
	for name, stop := range map[string]func() (int, []string){"open connections": steady, "new connections": coming} {
		answered, failures := stop()
		t.Logf("%s: %d calls", name, answered)
		if answered < 100 || len(failures) > 0 {
			t.Errorf("%s: %d answered, %d failed: %.500q", name, answered, len(failures), failures)
		}
	}
}
