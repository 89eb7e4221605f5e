package async

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// privateTargets are addresses that no callback may reach, by what they are.
var privateTargets = map[string][]string{
	"loopback":    {"127.0.0.1", "127.255.255.254", "::1"},
	"private":     {"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12::1"},
	"link-local":  {"169.254.169.254", "fe80::1", "fe80::1%eth0", "fe80::5efe:808:808"},
	"multicast":   {"224.0.0.1", "239.1.2.3", "ff02::1", "ff01::1", "ff0e::1"},
	"unspecified": {"0.0.0.0", "::"},
	"a cloud's":   {"168.63.129.16", "64:ff9b::a83f:8110"},
	"mapped":      {"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0"},
	"wrapped":     {"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1", "::ffff:0:7f00:1", "::7f00:1", "2001::1"},
	"reserved":    {"0.1.2.3", "100.64.0.1", "192.0.0.170", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "240.0.0.1", "255.255.255.255", "2001:db8::1", "fec0::1", "100::1"},
}

func TestPrivateAddressesAreRefused(t *testing.T) {
	c := newCallbacks(time.Second, false)
	for class, addresses := range privateTargets {
		for _, address := range addresses {
			ip := netip.MustParseAddr(address)
			if refused(ip) == "" {
				t.Errorf("%s %s is not refused", class, address)
			}
			if err := c.control("tcp", netip.AddrPortFrom(ip, 80).String(), nil); err == nil {
				t.Errorf("%s %s can be dialled", class, address)
			}
			url := "http://" + net.JoinHostPort(strings.ReplaceAll(address, "%", "%25"), "80") + "/x"
			if err := c.check(url); !errors.Is(err, ErrCallback) {
				t.Errorf("%s %s is accepted: %v", class, url, err)
			}
		}
	}
	for _, address := range []string{"1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"} {
		if why := refused(netip.MustParseAddr(address)); why != "" {
			t.Errorf("%s is refused: %s", address, why)
		}
	}
}

func TestCallbackURLsThatCannotBeRightAreRefused(t *testing.T) {
	for _, allow := range []bool{false, true} {
		c := newCallbacks(time.Second, allow)
		for _, url := range []string{
			"x", "/results", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com", "http://", "http:example.com", "https://:443/",
			"http://secret:password@[::1", "http://example.com/" + strings.Repeat("x", maxCallbackURL),
		} {
			if err := c.check(url); !errors.Is(err, ErrCallback) {
				t.Errorf("%.60s is accepted: %v", url, err)
			} else if strings.Contains(err.Error(), "password") {
				t.Errorf("the error has the password: %v", err)
			}
		}
		for url, fits := range map[string]bool{"https://example.com/results?x=1": true, "http://localhost:80/": allow, "http://a.localhost./": allow, "http://user:pw@example.com": true} {
			if err := c.check(url); (err == nil) != fits {
				t.Errorf("%s, private allowed: %v: %v", url, allow, err)
			}
		}
	}
}

// A name may resolve to something harmless when it is checked and to this machine when it is dialled: what counts
// is the address that is dialled. localtest resolves to loopback here by the resolver's own answer.
func TestNamesAreJudgedByTheAddressThatIsDialled(t *testing.T) {
	var hits atomic.Int64
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer inside.Close()
	port := inside.Listener.Addr().(*net.TCPAddr).Port
	c := newCallbacks(5*time.Second, false)
	defer c.close()
	// As if DNS had answered with this machine's address for a name that passed the check.
	transport := c.client.Transport.(*http.Transport)
	dialer := &net.Dialer{Control: c.control, Resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return rebinding(t), nil }}}
	transport.DialContext = dialer.DialContext
	url := "http://results.example.com:" + netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)).String()[8:]
	if err := c.check(url); err != nil {
		t.Fatal(err)
	}
	got := c.post(t.Context(), &report{Callback: url})
	if !got.final || !strings.Contains(got.reason, "loopback") || hits.Load() != 0 {
		t.Errorf("%+v, %d calls came through", got, hits.Load())
	}
}

// rebinding is a connection to a name server that says 127.0.0.1, whatever it is asked.
func rebinding(t *testing.T) net.Conn {
	client, server := net.Pipe() // a stream: messages have their length in front
	t.Cleanup(func() { client.Close(); server.Close() })
	go func() {
		for {
			var size [2]byte
			if _, err := io.ReadFull(server, size[:]); err != nil {
				return
			}
			query := make([]byte, int(size[0])<<8|int(size[1]))
			if _, err := io.ReadFull(server, query); err != nil {
				return
			}
			end := 12
			for query[end] != 0 {
				end += int(query[end]) + 1
			}
			end += 5
			answer := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:end]...)
			if query[end-3] == 1 { // A
				answer[7] = 1
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1)
			}
			if _, err := server.Write(append([]byte{byte(len(answer) >> 8), byte(len(answer))}, answer...)); err != nil {
				return
			}
		}
	}()
	return client
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	var hits atomic.Int64
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer inside.Close()
	outside := httptest.NewServer(http.RedirectHandler(inside.URL, http.StatusTemporaryRedirect))
	defer outside.Close()
	c := newCallbacks(5*time.Second, true)
	defer c.close()
	got := c.post(t.Context(), &report{Callback: outside.URL})
	if got.delivered() || !got.final || got.status != http.StatusTemporaryRedirect || hits.Load() != 0 {
		t.Errorf("%+v, followed %d times", got, hits.Load())
	}
}

func TestNoProxyDialsInOurStead(t *testing.T) {
	var hits atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	c := newCallbacks(time.Second, true)
	defer c.close()
	if c.client.Transport.(*http.Transport).Proxy != nil {
		t.Error("the transport asks for a proxy")
	}
	if got := c.post(t.Context(), &report{Callback: "http://name.invalid/"}); got.delivered() || hits.Load() != 0 {
		t.Errorf("%+v through %d proxies", got, hits.Load())
	}
}

func TestPasswordsInCallbackURLsStayOutOfReasonsAndLogs(t *testing.T) {
	var logged strings.Builder
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
	defer slog.SetDefault(before)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	for _, allow := range []bool{true, false} {
		c := newCallbacks(time.Second, allow)
		got := c.post(t.Context(), &report{Callback: "http://user:hidden@" + closed + "/hidden?token=hidden"})
		c.close()
		if got.delivered() || strings.Contains(got.reason+logged.String(), "hidden") {
			t.Errorf("%+v\n%s", got, logged.String())
		}
	}
}

func TestReportsHaveTheAnswerAndOpenFaaSHeaders(t *testing.T) {
	var got *http.Request
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
	}))
	defer server.Close()
	c := newCallbacks(5*time.Second, true)
	defer c.close()
	answer := c.post(t.Context(), &report{
		ID: "id-1", Name: "iris.other", Callback: server.URL + "/r?x=1", Seconds: 1.5,
		Result: Result{Status: 418, Body: []byte("tea"), Header: http.Header{
			"Content-Type": {"text/x-tea"}, "X-Model-Version": {"1_2"}, "Connection": {"close"}, "Content-Length": {"99"}, "X-Call-Id": {"forged"},
		}},
	})
	if !answer.delivered() || string(body) != "tea" || got.Method != http.MethodPost || got.URL.String() != "/r?x=1" {
		t.Fatalf("%+v %v %s", answer, got, body)
	}
	for name, want := range map[string]string{
		"Content-Type": "text/x-tea", "X-Call-Id": "id-1", "X-Function-Name": "iris.other", "X-Function-Status": "418", "X-Duration-Seconds": "1.500000",
		"X-Model-Version": "1_2", "Connection": "",
	} {
		if got.Header.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, got.Header.Get(name), want)
		}
	}
}
