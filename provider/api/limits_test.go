package api

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/faas-predict/faas-predict/auth/certificate"
	"github.com/faas-predict/faas-predict/provider/upstream"
	"github.com/faas-predict/faas-predict/tests/pki"
	"github.com/faas-predict/faas-predict/watchdog/nonblock"
)

// Package http1 reads descriptors; a limited connection must not hide its own.
var _ syscall.Conn = (*limitedTCPConn)(nil)

// listening serves h over plain TCP or TLS; dial connects to it.
func listening(t *testing.T, h http.Handler, limits Limits, secure bool, wrap func(net.Listener) net.Listener) (dial func() net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	dial = func() net.Conn {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var config *tls.Config
	if secure {
		ca := pki.New(t)
		cert, key := ca.Issue(t, "provider", time.Now().Add(time.Hour)).Write(t, t.TempDir())
		files, err := certificate.Open(certificate.Files{Cert: cert, Key: key}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(files.Close)
		config = files.Config()
		plain := dial
		dial = func() net.Conn { return tls.Client(plain(), &tls.Config{RootCAs: ca.Pool, ServerName: "127.0.0.1"}) }
	}
	if wrap != nil {
		listener = wrap(listener)
	}
	server := NewHTTPServer(h, limits, config)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return dial
}

// bothWays runs a test over plain HTTP and over TLS.
func bothWays(t *testing.T, test func(t *testing.T, secure bool)) {
	t.Run("http", func(t *testing.T) { test(t, false) })
	t.Run("https", func(t *testing.T) { test(t, true) })
}

// wantClosed fails when the server has not closed the connection within some seconds, or sooner than after.
func wantClosed(t *testing.T, what string, c net.Conn, began time.Time, after time.Duration) (answer string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	raw, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: still open after %s", what, time.Since(began))
	}
	if took := time.Since(began); took < after {
		t.Errorf("%s: closed after %s already", what, took)
	}
	return string(raw)
}

// echoing answers once it has the whole body, as functions do.
func echoing() *fake {
	return &fake{forward: func(w http.ResponseWriter, r *http.Request, _ string) (int, error) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", upstream.ErrClientGone, err)
		}
		_, err = w.Write(body)
		return http.StatusOK, err
	}}
}

const shortCall = "POST /function/iris HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"

func converse(t *testing.T, c net.Conn, request string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestSlowClientsAreCutOff(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		const head, idle = 300 * time.Millisecond, 500 * time.Millisecond
		dial := listening(t, server(echoing(), fakeModels{}, false), Limits{Head: head, Idle: idle}, secure, nil)
		t.Run("says nothing", func(t *testing.T) {
			t.Parallel()
			c := dial()
			if s, ok := c.(*tls.Conn); ok {
				c = s.NetConn() // not even a handshake
			}
			wantClosed(t, "silence", c, time.Now(), head/2)
		})
		t.Run("head a byte at a time", func(t *testing.T) {
			t.Parallel()
			c := dial()
			began := time.Now()
			go func() {
				for i := 0; ; i++ {
					text := "X"
					if i == 0 {
						text = "GET /function/iris HTTP/1.1\r\nHost: x\r\nX-Slow: "
					}
					if _, err := io.WriteString(c, text); err != nil {
						return
					}
					time.Sleep(head / 20)
				}
			}()
			wantClosed(t, "a trickle of header", c, began, head/2)
		})
		t.Run("waits after an answer", func(t *testing.T) {
			t.Parallel()
			c := dial()
			if res := converse(t, c, shortCall); res.StatusCode != http.StatusOK {
				t.Fatal(res.Status)
			}
			wantClosed(t, "an idle connection", c, time.Now(), idle/2)
		})
	})
}

func TestSlowBodyIsCutOffWhereReadTimeoutSaysSo(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		const read = 400 * time.Millisecond
		dial := listening(t, server(echoing(), fakeModels{}, false), Limits{Read: read}, secure, nil)
		c := dial()
		began := time.Now()
		io.WriteString(c, "POST /function/iris HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
		go func() {
			for {
				if _, err := io.WriteString(c, "X"); err != nil {
					return
				}
				time.Sleep(read / 10)
			}
		}()
		wantClosed(t, "a trickle of body", c, began, read/2)
	})
}

func TestLateAnswerIsCutOffWhereWriteTimeoutSaysSo(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		const write = 300 * time.Millisecond
		f := &fake{forward: func(w http.ResponseWriter, r *http.Request, target string) (int, error) {
			if target == "/late" {
				time.Sleep(2 * write)
			}
			io.WriteString(w, "answer")
			return http.StatusOK, nil
		}}
		dial := listening(t, server(f, fakeModels{}, false), Limits{Write: write}, secure, nil)
		if res := converse(t, dial(), shortCall); res.StatusCode != http.StatusOK {
			t.Errorf("an answer in time: %s", res.Status)
		}
		c := dial()
		began := time.Now()
		io.WriteString(c, strings.Replace(shortCall, "iris", "iris/late", 1))
		if got := wantClosed(t, "a late answer", c, began, write/2); got != "" {
			t.Errorf("a late answer was written: %q", got)
		}
	})
}

func TestLongHeadGets431(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		c := listening(t, server(echoing(), fakeModels{}, false), Limits{}, secure, nil)()
		go func() {
			io.WriteString(c, "GET /function/iris HTTP/1.1\r\nHost: x\r\n")
			for n := 0; n < 2*maxHeaderBytes; {
				line := fmt.Sprintf("X-%d: %s\r\n", n, strings.Repeat("x", 1000))
				if _, err := io.WriteString(c, line); err != nil {
					return // the answer came before the end
				}
				n += len(line)
			}
		}()
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || !strings.Contains(line, " 431 ") {
			t.Errorf("%q %v", line, err)
		}
	})
}

func TestConnectionsBeyondTheLimitWait(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		const most = 3
		metrics := prometheus.NewRegistry()
		dial := listening(t, server(echoing(), fakeModels{}, false), Limits{}, secure, func(l net.Listener) net.Listener {
			return LimitConnections(l, most, metrics)
		})
		open := make([]net.Conn, most)
		for i := range open {
			open[i] = dial()
			converse(t, open[i], shortCall)
		}
		const figures = `# HELP provider_open_connections Connections of clients that are open.
# TYPE provider_open_connections gauge
provider_open_connections 3
# HELP provider_open_connections_limit Connections of clients that may be open at a time (setting max_connections).
# TYPE provider_open_connections_limit gauge
provider_open_connections_limit 3
`
		if err := testutil.GatherAndCompare(metrics, strings.NewReader(figures)); err != nil {
			t.Error(err)
		}
		late := dial()
		answered := make(chan *http.Response, 1)
		go func() { answered <- converse(t, late, shortCall) }()
		select {
		case <-answered:
			t.Fatal("one more than allowed was served")
		case <-time.After(300 * time.Millisecond):
		}
		converse(t, open[1], shortCall) // those that are open go on
		open[0].Close()
		select {
		case res := <-answered:
			if res.StatusCode != http.StatusOK {
				t.Error(res.Status)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the connection that waited is not served when there is room")
		}
	})
}

func TestServerThatWaitsForRoomCanBeClosed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limited := LimitConnections(l, 1, prometheus.NewRegistry())
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	first, err := limited.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, raw := nonblock.Of(first).(*nonblock.File); !raw {
		t.Error("a limited connection cannot be read by its descriptor")
	}
	failed := make(chan error, 1)
	go func() { _, err := limited.Accept(); failed <- err }()
	limited.Close()
	select {
	case err := <-failed:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Accept waits on")
	}
	first.Close()
	first.Close() // gives back its room once
}

func TestARequestThatEndsEarlyIsNotAnsweredAsIfItWereEmpty(t *testing.T) {
	f := echoing()
	metrics := prometheus.NewRegistry()
	s := New(Options{Backend: f, Functions: f, Models: fakeModels{}, Gateway: gatewayOf(f, metrics), Metrics: metrics})
	dial := listening(t, s, Limits{}, false, nil)
	for name, framed := range map[string]string{
		"short body": "Content-Length: 10\r\n\r\n3",
		"large body": "Content-Length: 200000\r\n\r\n3",
		"a chunk":    "Transfer-Encoding: chunked\r\n\r\n5\r\n3",
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial()
			fmt.Fprint(conn, "POST /function/iris HTTP/1.1\r\nHost: f\r\n"+framed)
			_ = conn.(*net.TCPConn).CloseWrite()
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			all, _ := io.ReadAll(conn)
			if strings.HasPrefix(string(all), "HTTP/1.1 2") {
				t.Errorf("it is answered\n%s", all)
			}
		})
	}
}

func TestLargeBodyGets413(t *testing.T) {
	f := echoing()
	metrics := prometheus.NewRegistry()
	s := New(Options{Backend: f, Functions: f, Models: fakeModels{}, Gateway: gatewayOf(f, metrics), MaxBodyBytes: 1000, Metrics: metrics})
	bothWays(t, func(t *testing.T, secure bool) {
		dial := listening(t, s, Limits{}, secure, nil)
		for _, c := range []struct {
			what   string
			size   int
			chunks bool
			want   int
		}{
			{"just fits", 1000, false, http.StatusOK},
			{"says that it is too large", 1001, false, http.StatusRequestEntityTooLarge},
			{"much too large for a short call", 100_000, false, http.StatusRequestEntityTooLarge},
			{"just fits in chunks", 1000, true, http.StatusOK},
			{"is too large in chunks", 1001, true, http.StatusRequestEntityTooLarge},
			{"goes on and on", 1 << 20, true, http.StatusRequestEntityTooLarge},
		} {
			body := strings.Repeat("x", c.size)
			framed := fmt.Sprintf("Content-Length: %d\r\n\r\n%s", c.size, body)
			if c.chunks {
				framed = fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", c.size, body)
			}
			conn := dial()
			go func() {
				_, _ = io.WriteString(conn, "POST /function/iris HTTP/1.1\r\nHost: x\r\nX-Call-Id: c-7\r\n"+framed)
			}()
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Errorf("%s: %v", c.what, err)
				continue
			}
			answer, _ := io.ReadAll(res.Body)
			if res.StatusCode != c.want {
				t.Errorf("%s: %s %.200s", c.what, res.Status, answer)
			}
			if c.want != http.StatusOK && (res.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(string(answer), `"call_id":"c-7"`) ||
				!strings.Contains(string(answer), "longer than 1000 bytes")) {
				t.Errorf("%s: %v %.200s", c.what, res.Header, answer)
			}
		}
	})
	const want = `gateway_function_invocation_total{code="413",function_name="iris.openfaas-fn"} 8`
	if metrics := ask(s, "GET", "/metrics", "", false).Body.String(); !strings.Contains(metrics, want) {
		t.Errorf("the metrics lack %s", want)
	}
}

func TestLeavingIsToldToWhoDistributesCalls(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		s := server(echoing(), fakeModels{}, false)
		dial := listening(t, s, Limits{}, secure, nil)
		open := dial()
		for range 2 {
			if res := converse(t, open, shortCall); res.Close {
				t.Error("a connection ends while the provider stays")
			}
		}
		s.Leave()
		res := converse(t, open, shortCall)
		if body, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusOK || string(body) != "hi" || !res.Close {
			t.Errorf("a call while leaving: %s %q %v, close %t; want it answered, and the connection closed", res.Status, body, err, res.Close)
		}
		if res := converse(t, dial(), "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("healthz: %s", res.Status)
		}
	})
}

// net/http alone drops a request that it has read after Shutdown began.
func TestTheFirstRequestOfANewConnectionIsAnsweredDuringShutdown(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		for _, wait := range []time.Duration{0, 100 * time.Millisecond} {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var config *tls.Config
			if secure {
				cert, key := pki.New(t).Issue(t, "provider", time.Now().Add(time.Hour)).Write(t, t.TempDir())
				files, err := certificate.Open(certificate.Files{Cert: cert, Key: key}, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer files.Close()
				config = files.Config()
			}
			s := NewHTTPServer(server(echoing(), fakeModels{}, false), Limits{}, config)
			ended := make(chan error, 1)
			go func() { ended <- s.Serve(listener) }()
			c, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if secure {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
				if err := c.(*tls.Conn).Handshake(); err != nil {
					t.Fatal(err)
				}
			} else {
				time.Sleep(20 * time.Millisecond) // it is accepted
			}
			down := make(chan error, 1)
			go func() { down <- s.Shutdown(t.Context()) }()
			time.Sleep(wait)
			res := converse(t, c, shortCall)
			if body, err := io.ReadAll(res.Body); res.StatusCode != http.StatusOK || err != nil || string(body) != "hi" {
				t.Errorf("%s %q %v", res.Status, body, err)
			}
			if err := <-down; err != nil {
				t.Error(err)
			}
			if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		}
	})
}
