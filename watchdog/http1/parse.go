package http1

import (
	"bytes"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
)

// verdict is what the bytes at hand are.
type verdict int

const (
	short    verdict = iota // a whole short call
	partHead                // it may become one: its head is not whole
	partBody                // its body is not
	long                    // the head of one that is a short call but for its size
	other                   // net/http's
)

// settled says that more bytes would not change the verdict.
func (v verdict) settled() bool { return v == short || v == long || v == other }

const (
	maxHead   = 16 << 10
	maxFields = 64
)

// class says what a byte may be part of.
var class = func() (t [256]uint8) {
	for c := range t {
		switch b := byte(c); {
		case b >= 'A' && b <= 'Z':
			t[c] = inMethod | inName | inTarget | inHost | inValue
		case b >= 'a' && b <= 'z', b >= '0' && b <= '9':
			t[c] = inName | inTarget | inHost | inValue
		case b > ' ' && b <= '~':
			t[c] = inValue
			if strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0 {
				t[c] |= inName
			}
			// Neither a percent sign, which stands for another byte, nor what RFC 3986 leaves out.
			if strings.IndexByte("-._~!$&'()*+,;=:@/?", b) >= 0 {
				t[c] |= inTarget
			}
			if strings.IndexByte("-._:[]", b) >= 0 {
				t[c] |= inHost
			}
		case b == ' ', b == '\t':
			t[c] = inValue
		}
	}
	return t
}()

const (
	inMethod = 1 << iota
	inName
	inTarget
	inHost
	inValue
)

func all(s string, kind uint8) bool {
	for i := range len(s) {
		if class[s[i]]&kind == 0 {
			return false
		}
	}
	return true
}

// head is a parsed head of a short call.
type head struct {
	raw    []byte // the head that the rest was made from
	size   int    // its bytes
	length int    // of the body
	method string
	target string
	host   string
	url    *url.URL
	names  [maxFields]string
	values [maxFields]string
	count  int // of them

	fields http.Header
	given  [maxFields]string // the values of fields, which a handler may change
}

// parse looks whether buf begins with a short call, or a long one. size is then the bytes of all of it.
//
// What it takes is less than RFC 9112 allows: see the package comment.
func (h *head) parse(buf []byte) (size int, _ verdict) {
	// Clients send the same head again and again.
	if n := len(h.raw); n > 0 && len(buf) >= n && bytes.Equal(buf[:n], h.raw) {
		return h.whole(buf)
	}
	end := bytes.Index(buf, []byte("\r\n\r\n"))
	if end < 0 {
		if len(buf) >= maxHead || (len(buf) > 0 && class[buf[0]]&inMethod == 0) {
			return 0, other
		}
		return 0, partHead
	}
	if end += 4; end > maxHead {
		return 0, other
	}
	h.raw = h.raw[:0]
	if !h.read(string(buf[:end])) {
		return 0, other
	}
	h.raw = append(h.raw, buf[:end]...)
	return h.whole(buf)
}

func (h *head) whole(buf []byte) (size int, _ verdict) {
	h.size = len(h.raw)
	switch size = h.size + h.length; {
	case size > maxRequest:
		return size, long
	case len(buf) < size:
		return 0, partBody
	}
	return size, short
}

// read takes a head apart, which ends with an empty line, and reports whether it is a short call's.
func (h *head) read(text string) bool {
	line, rest, _ := strings.Cut(text, "\r\n")
	method, line, found := strings.Cut(line, " ")
	if !found || len(method) == 0 || len(method) > 16 || !all(method, inMethod) || method == http.MethodHead || method == http.MethodConnect {
		return false
	}
	target, isHTTP11 := strings.CutSuffix(line, " HTTP/1.1")
	if !isHTTP11 || !h.readTarget(target) {
		return false
	}
	h.method, h.host, h.length, h.count = method, "", 0, 0
	lengths, hosts := 0, 0
	for rest != "\r\n" {
		if line, rest, found = strings.Cut(rest, "\r\n"); !found || h.count == maxFields {
			return false
		}
		name, value, found := strings.Cut(line, ":")
		if !found || name == "" || !all(name, inName) {
			return false
		}
		value = strings.Trim(value, " \t")
		if !all(value, inValue) {
			return false
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		switch name {
		case "Host":
			if h.host, hosts = value, hosts+1; value == "" || !all(value, inHost) {
				return false
			}
			continue // net/http has it in Request.Host alone
		case "Content-Length":
			var ok bool
			if h.length, ok = readLength(value); !ok {
				return false
			}
			lengths++
		case "Connection":
			if !strings.EqualFold(value, "keep-alive") {
				return false
			}
		case "Transfer-Encoding", "Expect", "Upgrade", "Trailer", "Te", "Pragma", "Http2-Settings":
			return false
		}
		h.names[h.count], h.values[h.count] = name, value
		h.count++
	}
	return hosts == 1 && lengths <= 1
}

// readTarget takes a path with or without a query, in characters that stand for themselves.
func (h *head) readTarget(target string) bool {
	if h.url != nil && target == h.target {
		return true
	}
	if len(target) == 0 || target[0] != '/' || strings.HasPrefix(target, "//") || !all(target, inTarget) {
		return false
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return false
	}
	h.target, h.url = target, u
	return true
}

// readLength takes a decimal number below 10^9 without sign or leading zeros.
func readLength(value string) (n int, ok bool) {
	if value == "" || len(value) > 9 || (value[0] == '0' && value != "0") {
		return 0, false
	}
	for _, c := range []byte(value) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}

// fill makes r, which is fresh but for its URL, the request.
func (h *head) fill(r *http.Request) {
	r.Method, r.RequestURI, r.Host, r.ContentLength, r.Header = h.method, h.target, h.host, int64(h.length), h.fields
	*r.URL = *h.url // a handler may change its own
	clear(h.fields)
	copy(h.given[:h.count], h.values[:h.count])
	for i, name := range h.names[:h.count] {
		if before := h.fields[name]; before != nil {
			h.fields[name] = append(before, h.given[i])
		} else {
			h.fields[name] = h.given[i : i+1 : i+1]
		}
	}
}

// forget frees what is kept of the last head.
func (h *head) forget() {
	clear(h.fields)
	*h = head{fields: h.fields}
}

// body is a request's body that lies in memory.
type body struct{ bytes.Reader }

func (*body) Close() error { return nil }
