package async

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// callbacks posts results. Its connections go only where Go's resolver and the rules below agree: the address is
// judged when it is dialled, so that a name which resolves to something else by then does not help.
type callbacks struct {
	client       *http.Client
	allowPrivate bool
}

func newCallbacks(timeout time.Duration, allowPrivate bool) *callbacks {
	c := &callbacks{allowPrivate: allowPrivate}
	dialer := &net.Dialer{Timeout: 10 * time.Second, Control: c.control}
	c.client = &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{ // no Proxy: one would dial in our stead, unjudged
			DialContext:         dialer.DialContext,
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConns:        64,
			MaxIdleConnsPerHost: 8,
			IdleConnTimeout:     30 * time.Second,
			// Nothing of the answer but its head is of interest.
			MaxResponseHeaderBytes: 64 << 10,
		},
		// A redirect is an answer that is not 2xx.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

func (c *callbacks) close() { c.client.CloseIdleConnections() }

const maxCallbackURL = 2048

// check refuses a callback that would be refused later for what can be seen of it now. Its errors are
// ErrCallback and never repeat the URL, which may have a password in it.
func (c *callbacks) check(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case len(raw) > maxCallbackURL:
		return fmt.Errorf("%w is longer than %d bytes", ErrCallback, maxCallbackURL)
	case err != nil || u.Opaque != "" || u.Hostname() == "":
		return fmt.Errorf("%w is not an absolute URL such as https://example.com/results", ErrCallback)
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%w has another scheme than http and https", ErrCallback)
	}
	if c.allowPrivate {
		return nil
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return fmt.Errorf("%w: %w", ErrCallback, &refusedAddress{host, "this machine"})
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if why := refused(ip); why != "" {
			return fmt.Errorf("%w: %w", ErrCallback, &refusedAddress{host, why})
		}
	}
	return nil
}

func (c *callbacks) control(network, address string, _ syscall.RawConn) error {
	if c.allowPrivate {
		return nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil || !strings.HasPrefix(network, "tcp") {
		return &refusedAddress{address, "not an address of TCP"}
	}
	if why := refused(at.Addr()); why != "" {
		return &refusedAddress{at.Addr().String(), why}
	}
	return nil
}

type refusedAddress struct{ address, why string }

func (r *refusedAddress) Error() string {
	return fmt.Sprintf("callbacks to %s are refused (%s) unless async_callback_allow_private is true", r.address, r.why)
}

// reserved are the networks that IANA's special-purpose registries keep from the Internet and that package
// netip has no word for, and the one public address that a cloud gives a service for its own machines.
var reserved = func() (out []netip.Prefix) {
	for _, p := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "240.0.0.0/4", // 255.255.255.255 as well
		"168.63.129.16/32", // Azure
		"::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10",
	} {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}()

// wrapped are networks of IPv6 whose addresses stand for one of IPv4, from that byte on.
var wrapped = []struct {
	prefix netip.Prefix
	at     int
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // IPv4-translated
}

// refused says why a callback must not go to that address, "" when it may.
func refused(ip netip.Addr) string {
	ip = ip.Unmap().WithZone("")
	switch {
	case !ip.IsValid():
		return "no address"
	case ip.IsUnspecified():
		return "unspecified"
	case ip.IsLoopback():
		return "loopback"
	case ip.IsPrivate():
		return "private"
	case ip.IsLinkLocalUnicast():
		return "link-local"
	case ip.IsMulticast():
		return "multicast"
	}
	for _, p := range reserved {
		if p.Contains(ip) {
			return "reserved: " + p.String()
		}
	}
	for _, w := range wrapped {
		if w.prefix.Contains(ip) {
			b := ip.As16()
			v4, _ := netip.AddrFromSlice(b[w.at : w.at+4])
			return refused(v4)
		}
	}
	return ""
}

// answer is what became of a report.
type answer struct {
	status int    // 0: there was none
	reason string // what was wrong, without the URL
	final  bool   // asking again does not help
	header http.Header
}

func (a *answer) delivered() bool { return a.reason == "" }

// connectionHeaders concern one connection only (RFC 9110, section 7.6.1), or frame a body that is framed anew.
var connectionHeaders = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length",
}

// post posts a result, once. The headers are OpenFaaS's, behind those that the function answered with.
func (c *callbacks) post(ctx context.Context, r *report) answer {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Callback, bytes.NewReader(r.Body))
	if err != nil {
		return answer{reason: "the callback's URL cannot be used", final: true}
	}
	req.Header = r.Header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	for _, name := range connectionHeaders {
		req.Header.Del(name)
	}
	req.Header.Set("User-Agent", "faas-predict")
	req.Header.Set("X-Call-Id", r.ID)
	req.Header.Set("X-Function-Name", r.Name)
	req.Header.Set("X-Function-Status", strconv.Itoa(r.Status))
	req.Header.Set("X-Duration-Seconds", strconv.FormatFloat(r.Seconds, 'f', 6, 64))
	res, err := c.client.Do(req)
	if err != nil {
		if refused := (*refusedAddress)(nil); errors.As(err, &refused) {
			return answer{reason: refused.Error(), final: true}
		}
		if wrapping := (*url.Error)(nil); errors.As(err, &wrapping) {
			err = wrapping.Err // without the URL
		}
		return answer{reason: "the callback cannot be reached: " + err.Error()}
	}
	const drained = 64 << 10 // so that the connection can be used again
	_, _ = io.CopyN(io.Discard, res.Body, drained)
	_ = res.Body.Close()
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		return answer{status: res.StatusCode}
	}
	worth := retryable(res.StatusCode) || slices.Contains([]int{http.StatusRequestTimeout, http.StatusTooEarly}, res.StatusCode)
	return answer{
		status: res.StatusCode, final: !worth, header: res.Header,
		reason: fmt.Sprintf("the callback answered %d %s", res.StatusCode, http.StatusText(res.StatusCode)),
	}
}
