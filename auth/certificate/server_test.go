package certificate

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/faas-predict/faas-predict/auth/reload"
	"github.com/faas-predict/faas-predict/tests/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logged is a log that can be read while it is written.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) waitFor(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(5 * reload.Every); ; time.Sleep(20 * time.Millisecond) {
		l.mu.Lock()
		got := l.buf.String()
		l.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no %q in the log:\n%s", text, got)
		}
	}
}

func (l *logged) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
}

// serve answers with how many requests its connection had, and the protocol.
func serve(t *testing.T, files Files) (url string, l *logged) {
	t.Helper()
	l = &logged{}
	s, err := Open(files, slog.New(slog.NewTextHandler(l, nil)))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		TLSConfig: s.Config(), ReadHeaderTimeout: time.Minute, ErrorLog: ErrorLog(slog.New(slog.DiscardHandler)),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Remote", r.RemoteAddr)
			fmt.Fprint(w, r.Proto)
		}),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		server.Close()
		<-ended
		s.Close()
		s.Close()
	})
	return "https://" + listener.Addr().String(), l
}

func clientOf(t *testing.T, config *tls.Config) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

type answer struct{ serial, proto, remote string }

func get(t *testing.T, c *http.Client, url string) answer {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.TLS.PeerCertificates[0].SerialNumber.String(), string(body), res.Header.Get("Remote")}
}

func TestNewCertificateIsShownAndOpenConnectionsGoOn(t *testing.T) {
	ca, dir := pki.New(t), t.TempDir()
	first := ca.Issue(t, "first", time.Now().Add(time.Hour))
	second := ca.Issue(t, "second", time.Now().Add(2*time.Hour))
	cert, key := first.Write(t, dir)
	url, log := serve(t, Files{Cert: cert, Key: key})
	trust := func() *http.Client { return clientOf(t, &tls.Config{RootCAs: ca.Pool}) }

	open := trust()
	before := get(t, open, url)
	if before.serial != first.Serial || before.proto != "HTTP/2.0" {
		t.Fatalf("%+v, want certificate %s over HTTP/2", before, first.Serial)
	}

	// Half of a pair, and what is no certificate: what held goes on.
	pki.WriteFile(t, dir, "cert", second.Cert)
	log.waitFor(t, "private key does not match public key")
	if got := get(t, trust(), url); got.serial != first.Serial {
		t.Errorf("a certificate without its key is shown")
	}
	pki.WriteFile(t, dir, "cert", []byte("-----BEGIN CERTIFICATE-----\n"))
	log.waitFor(t, "failed to find any PEM data")
	if got := get(t, trust(), url); got.serial != first.Serial {
		t.Errorf("a broken certificate took effect")
	}

	log.reset()
	second.Write(t, dir)
	log.waitFor(t, "taken up")
	if got := get(t, trust(), url); got.serial != second.Serial {
		t.Errorf("the new certificate is not shown")
	}
	if after := get(t, open, url); after != before {
		t.Errorf("the open connection did not go on: %+v, then %+v", before, after)
	}
}

// A secret of Kubernetes: links into a directory behind a link, which is swapped.
func TestSwappedSecretIsTakenUp(t *testing.T) {
	ca, dir := pki.New(t), t.TempDir()
	pairs := map[string]pki.Pair{}
	for _, version := range []string{"..1", "..2"} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		pairs[version] = ca.Issue(t, version, time.Now().Add(time.Hour))
		pairs[version].Write(t, filepath.Join(dir, version))
	}
	link := func(to, name string) {
		if err := os.Symlink(to, filepath.Join(dir, "..next")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..next"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..1", "..data")
	link("..data/cert", "tls.crt")
	link("..data/key", "tls.key")
	url, log := serve(t, Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")})
	if got := get(t, clientOf(t, &tls.Config{RootCAs: ca.Pool}), url); got.serial != pairs["..1"].Serial {
		t.Errorf("%+v", got)
	}
	link("..2", "..data")
	if err := os.RemoveAll(filepath.Join(dir, "..1")); err != nil {
		t.Fatal(err)
	}
	log.waitFor(t, "taken up")
	if got := get(t, clientOf(t, &tls.Config{RootCAs: ca.Pool}), url); got.serial != pairs["..2"].Serial {
		t.Errorf("%+v", got)
	}
}

func TestOldVersionsOfTLSAreRefused(t *testing.T) {
	ca := pki.New(t)
	cert, key := ca.Issue(t, "server", time.Now().Add(time.Hour)).Write(t, t.TempDir())
	url, _ := serve(t, Files{Cert: cert, Key: key})
	for version, accepted := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{RootCAs: ca.Pool, MinVersion: version, MaxVersion: version})
		if (err == nil) != accepted {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

func TestOnlyClientsOfTheAuthorityConnect(t *testing.T) {
	ca, ours, others := pki.New(t), pki.New(t), pki.New(t)
	dir := t.TempDir()
	cert, key := ca.Issue(t, "server", time.Now().Add(time.Hour)).Write(t, dir)
	clientCA := pki.WriteFile(t, dir, "clients", ours.PEM)
	url, log := serve(t, Files{Cert: cert, Key: key, ClientCA: clientCA})
	serverCA := pki.WriteFile(t, dir, "ca", ca.PEM)
	with := func(by *pki.Authority) *http.Client {
		certFile, keyFile := "", ""
		if by != nil {
			certFile, keyFile = by.Issue(t, "client", time.Now().Add(time.Hour)).Write(t, t.TempDir())
		}
		config, err := ClientConfig(serverCA, certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		config.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		return clientOf(t, config)
	}
	member := with(ours)
	get(t, member, url)
	for name, c := range map[string]*http.Client{"without a certificate": with(nil), "with one of another authority": with(others)} {
		if res, err := c.Get(url); err == nil {
			res.Body.Close()
			t.Errorf("a client %s is served", name)
		}
	}

	// Whoever's authority goes is out at the next connection, and does not come back in by a session of before.
	member.CloseIdleConnections()
	get(t, member, url)
	member.CloseIdleConnections()
	pki.WriteFile(t, dir, "clients", others.PEM)
	log.waitFor(t, "taken up")
	if res, err := member.Get(url); err == nil {
		res.Body.Close()
		t.Error("a client of an authority that counts no more is served")
	}
	get(t, with(others), url)
}

func TestFilesAreCheckedAtTheStart(t *testing.T) {
	ca, dir := pki.New(t), t.TempDir()
	cert, key := ca.Issue(t, "server", time.Now().Add(time.Hour)).Write(t, dir)
	empty := pki.WriteFile(t, dir, "empty", nil)
	for _, c := range []struct {
		files Files
		says  string
	}{
		{Files{Cert: filepath.Join(dir, "none"), Key: key}, "no such file"},
		{Files{Cert: cert, Key: empty}, "failed to find any PEM data"},
		{Files{Cert: cert, Key: key, ClientCA: empty}, "it has no certificate in PEM form"},
	} {
		if _, err := Open(c.files, nil); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want %q", c.files, err, c.says)
		}
	}
	for says, files := range map[string]Files{"go together": {Cert: cert}, "takes TLS": {ClientCA: cert}} {
		if err := files.Check("c", "k", "a"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", files, err, says)
		}
	}
	if err := (Files{}).Check("c", "k", "a"); err != nil {
		t.Error(err)
	}
}

func TestFailedHandshakesAreForThoseWhoDebug(t *testing.T) {
	var out bytes.Buffer
	to := ErrorLog(slog.New(slog.NewTextHandler(&out, nil)))
	to.Print("http: TLS handshake error from 127.0.0.1:4: EOF")
	to.Print("http: panic serving 127.0.0.1:4: oh\ngoroutine 1")
	if got := out.String(); strings.Contains(got, "handshake") || !strings.Contains(got, `level=ERROR msg="http: panic serving`) {
		t.Error(got)
	}
}
