package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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
	// A client of TLS 1.3 learns of the refusal by what it reads next. One that has sent something by then may
	// find its connection reset instead, so this one sends nothing.
	conn, err := tls.Dial("tcp", strings.TrimPrefix(p.url(""), "https://"), &tls.Config{RootCAs: ca.Pool})
	if err == nil {
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without a certificate: %v", err)
	}
	if out, err := p.run("versions", "--cacert", caFile); err == nil {
		t.Errorf("a command without a certificate succeeded: %s", out)
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

// fate counts what became of calls.
type fate struct {
	mu       sync.Mutex
	answered int
	refused  int      // no connection: the call never left its caller
	lost     []string // everything else
}

// callUntilRefused calls over and over, until no connection can be made any more.
func (f *fate) callUntilRefused(client *http.Client, url, who string) {
	for i := 0; ; i++ {
		connected := false
		want := fmt.Sprintf("%s %d", who, i)
		req, _ := http.NewRequest(http.MethodPost, url, strings.NewReader(want))
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected = true }}))
		got, err := do(client, req)
		f.mu.Lock()
		switch {
		case err == nil && got == want:
			f.answered++
		case err != nil && (!connected || errors.Is(err, syscall.ECONNREFUSED)): // HTTP/2 may have been sent on from a connection that ends
			f.refused++
		default:
			f.lost = append(f.lost, fmt.Sprintf("%s: %q %v", want, got, err))
		}
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func do(client *http.Client, req *http.Request) (string, error) {
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, bytes.TrimSpace(answer))
	}
	return string(answer), err
}

// stream sends a line at a time and awaits its answer, until enough says so; then it ends the stream.
func (f *fate) stream(client *http.Client, url, who string, enough <-chan struct{}) {
	reader, writer := io.Pipe()
	req, _ := http.NewRequest(http.MethodPost, url, reader)
	req.Header.Set("Content-Type", "application/x-ndjson")
	lines := 0
	send := func() { go fmt.Fprintf(writer, "\"%s %d\"\n", who, lines) }
	lost := func(format string, args ...any) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.lost = append(f.lost, fmt.Sprintf("stream %s after %d lines: ", who, lines)+fmt.Sprintf(format, args...))
	}
	send()
	res, err := client.Do(req)
	if err != nil {
		lost("%v", err)
		return
	}
	defer res.Body.Close()
	for answers := bufio.NewScanner(res.Body); ; {
		if want := fmt.Sprintf(`"%s %d"`, who, lines); !answers.Scan() || answers.Text() != want {
			lost("%q %v, want %s", answers.Text(), answers.Err(), want)
			return
		}
		lines++
		select {
		case <-enough:
			writer.Close()
			if answers.Scan() || answers.Err() != nil {
				lost("at its end: %q %v", answers.Text(), answers.Err())
				return
			}
			f.mu.Lock()
			f.answered += lines
			f.mu.Unlock()
			return
		case <-time.After(10 * time.Millisecond):
		}
		send()
	}
}

func TestLeavingUnderLoadLosesNoCallAndNoStream(t *testing.T) {
	for scheme := range map[string]bool{"http": true, "https": true} {
		t.Run(scheme, func(t *testing.T) {
			p := newProvider(t, "drain_delay=1s")
			protocols := map[string]func() *http.Client{"HTTP/1.1": func() *http.Client {
				transport := &http.Transport{}
				t.Cleanup(transport.CloseIdleConnections)
				return &http.Client{Transport: transport}
			}}
			if scheme == "https" {
				ca := pki.New(t)
				p.secure(ca, ca.Issue(t, "provider", until()))
				t.Setenv("SSL_CERT_FILE", pki.WriteFile(t, t.TempDir(), "ca", ca.PEM))
				protocols["HTTP/2"] = func() *http.Client { return p.client(&tls.Config{RootCAs: ca.Pool}) }
				protocols["HTTP/1.1"] = func() *http.Client {
					transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool}}
					t.Cleanup(transport.CloseIdleConnections)
					return &http.Client{Transport: transport}
				}
			}
			p.start()
			p.model("echo", talkativeModel)
			p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
			var f fate
			var callers, streams sync.WaitGroup
			enough := make(chan struct{})
			url := p.url("/function/echo")
			for protocol, client := range protocols {
				for n := range 4 {
					callers.Go(func() { f.callUntilRefused(client(), url, fmt.Sprintf("%s caller %d", protocol, n)) })
				}
				streams.Go(func() { f.stream(client(), url, protocol, enough) })
			}
			p.eventually("500 calls are answered", func() bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				return f.answered >= 500
			})
			p.cmd.Process.Signal(syscall.SIGTERM)
			probe := protocols["HTTP/1.1"]()
			p.eventually("healthz says that it leaves", func() bool {
				res, err := probe.Get(p.url("/healthz"))
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				return res.StatusCode == http.StatusServiceUnavailable
			})
			callers.Wait() // until they are refused
			close(enough)  // and the streams end long after
			streams.Wait()
			p.awaitEnd()
			t.Logf("%d calls and lines answered, %d callers refused at the end", f.answered, f.refused)
			if len(f.lost) > 0 {
				t.Errorf("%d answered, %d lost: %.2000q", f.answered, len(f.lost), f.lost)
			}
			if code := p.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestAccessLogHasALineForEachCallAndNoSecret(t *testing.T) {
	p := startProvider(t, "access_log=json", "max_body_bytes=2000")
	p.model("echo", talkativeModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
	send := func(query string, size int, chunked bool) int {
		var body io.Reader = strings.NewReader(strings.Repeat("x", size))
		if chunked {
			body = io.MultiReader(body) // of which net/http does not know the length
		}
		req, _ := http.NewRequest(http.MethodPost, p.url("/function/echo/rows"+query), body)
		req.Header.Set("Authorization", "Bearer secret-token")
		res, err := p.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	for _, c := range []struct {
		size    int
		chunked bool
		want    int
	}{{5, false, 200}, {2001, false, 413}, {2000, true, 200}, {2001, true, 413}, {1 << 20, true, 413}} {
		if got := send("?key=secret-in-the-query", c.size, c.chunked); got != c.want {
			t.Errorf("%d bytes, chunked %t: %d, want %d", c.size, c.chunked, got, c.want)
		}
	}
	p.stop()
	log := p.output.String()
	var lines []string
	for line := range strings.Lines(log) {
		if strings.Contains(line, `"msg":"access"`) && strings.Contains(line, `"path":"/function/echo/rows"`) {
			lines = append(lines, line)
		}
	}
	if len(lines) != 5 || strings.Contains(log, "secret-token") || strings.Contains(log, "secret-in-the-query") || strings.Contains(log, p.password) {
		t.Fatalf("%d lines of 5: %q", len(lines), lines)
	}
	for _, part := range []string{`"method":"POST"`, `"status":200`, `"received":5`, `"sent":5`, `"client":"127.0.0.1"`, `"function":"echo"`, `"version":"`, `"call_id":"`, `"user_agent":"Go-http-client/1.1"`} {
		if !strings.Contains(lines[0], part) {
			t.Errorf("no %s in %s", part, lines[0])
		}
	}
}

func TestSecondSignalEndsTheProviderAtOnce(t *testing.T) {
	p := startProvider(t, "drain_delay=1m")
	p.model("echo", talkativeModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
	p.cmd.Process.Signal(syscall.SIGINT)
	p.eventually("it leaves", func() bool {
		res, err := p.http.Get(p.url("/healthz"))
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusServiceUnavailable
	})
	p.wantCall("echo", "still here", "still here")
	p.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-p.ended:
	case <-time.After(5 * time.Second):
		t.Fatal("it goes on")
	}
	p.eventually("its functions are gone", func() bool { return len(p.children()) == 0 })
	p.start()
	p.eventually("its function is back", func() bool {
		status, answer := p.call("echo", "back")
		return status == http.StatusOK && answer == "back"
	})
	p.kill() // which takes no minute
}
