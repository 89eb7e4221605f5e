package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const post = "POST /a/b?c=d HTTP/1.1\r\nHost: f.example:8080\r\nContent-Type: text/plain\r\nX-A: 1\r\nx-a:\t2 \r\nContent-Length: 3\r\n\r\nabc"

// verdicts are heads with what becomes of them.
var verdicts = []struct {
	name string
	text string
	want verdict
}{
	{"plain", post, short},
	{"no body", "GET / HTTP/1.1\r\nHost: f\r\n\r\n", short},
	{"keep-alive", "GET / HTTP/1.1\r\nHost: f\r\nConnection: Keep-Alive\r\n\r\n", short},
	{"empty length", "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 0\r\n\r\n", short},
	{"nothing yet", "", partHead},
	{"half a head", post[:30], partHead},
	{"half a body", post[:len(post)-1], partBody},
	{"lower-case method", "get / HTTP/1.1\r\nHost: f\r\n\r\n", other},
	{"head", "HEAD / HTTP/1.1\r\nHost: f\r\n\r\n", other},
	{"connect", "CONNECT f:80 HTTP/1.1\r\nHost: f\r\n\r\n", other},
	{"absolute target", "GET http://f/ HTTP/1.1\r\nHost: f\r\n\r\n", other},
	{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: f\r\n\r\n", other},
	{"two slashes", "GET //f HTTP/1.1\r\nHost: f\r\n\r\n", other},
	{"percent", "GET /%61 HTTP/1.1\r\nHost: f\r\n\r\n", other},
	{"fragment", "GET /#a HTTP/1.1\r\nHost: f\r\n\r\n", other},
	{"space in target", "GET /a b HTTP/1.1\r\nHost: f\r\n\r\n", other},
	{"HTTP/1.0", "GET / HTTP/1.0\r\nHost: f\r\n\r\n", other},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", other},
	{"TLS hello", "\x16\x03\x01\x02\x00", other},
	{"no host", "GET / HTTP/1.1\r\n\r\n", other},
	{"two hosts", "GET / HTTP/1.1\r\nHost: f\r\nHost: f\r\n\r\n", other},
	{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", other},
	{"two lengths", "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", other},
	{"list of lengths", "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 3, 3\r\n\r\nabc", other},
	{"signed length", "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: +3\r\n\r\nabc", other},
	{"hexadecimal length", "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 0x3\r\n\r\nabc", other},
	{"leading zero", "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 03\r\n\r\nabc", other},
	{"large", "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 70000\r\n\r\n", long},
	{"chunked", "POST / HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", other},
	{"both lengths", "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", other},
	{"space before colon", "POST / HTTP/1.1\r\nHost: f\r\nContent-Length : 3\r\n\r\nabc", other},
	{"folded", "GET / HTTP/1.1\r\nHost: f\r\nX-A: 1\r\n 2\r\n\r\n", other},
	{"bare LF", "GET / HTTP/1.1\nHost: f\n\nX: \r\n\r\n", other},
	{"bare LF in a value", "GET / HTTP/1.1\r\nHost: f\r\nX-A: 1\nContent-Length: 3\r\n\r\n", other},
	{"bare CR in a value", "GET / HTTP/1.1\r\nHost: f\r\nX-A: 1\r2\r\n\r\n", other},
	{"NUL in a value", "GET / HTTP/1.1\r\nHost: f\r\nX-A: \x00\r\n\r\n", other},
	{"not ASCII", "GET / HTTP/1.1\r\nHost: f\r\nX-A: é\r\n\r\n", other},
	{"no colon", "GET / HTTP/1.1\r\nHost: f\r\nX-A\r\n\r\n", other},
	{"no name", "GET / HTTP/1.1\r\nHost: f\r\n: 1\r\n\r\n", other},
	{"expectation", "POST / HTTP/1.1\r\nHost: f\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", other},
	{"upgrade", "GET / HTTP/1.1\r\nHost: f\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", other},
	{"close", "GET / HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n", other},
	{"connection names a header", "GET / HTTP/1.1\r\nHost: f\r\nConnection: keep-alive, X-A\r\nX-A: 1\r\n\r\n", other},
	{"trailer", "GET / HTTP/1.1\r\nHost: f\r\nTrailer: X-A\r\n\r\n", other},
	{"pragma", "GET / HTTP/1.1\r\nHost: f\r\nPragma: no-cache\r\n\r\n", other},
	{"long head", "GET / HTTP/1.1\r\nHost: f\r\nX-A: " + strings.Repeat("a", maxHead) + "\r\n\r\n", other},
	{"many fields", "GET / HTTP/1.1\r\nHost: f\r\n" + strings.Repeat("X-A: 1\r\n", maxFields+1) + "\r\n", other},
}

func newHead() *head { return &head{fields: http.Header{}} }

func TestOnlyThePlainestRequestsAreShortCalls(t *testing.T) {
	for _, c := range verdicts {
		t.Run(c.name, func(t *testing.T) {
			if _, got := newHead().parse([]byte(c.text)); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// sameAsNetHTTP fails unless a short call, or the length of a long one, means to net/http what it means here, to the last byte.
func sameAsNetHTTP(t *testing.T, h *head, text []byte) verdict {
	size, v := h.parse(text)
	if v == long {
		sameLength(t, text, size-h.size)
	}
	if v != short {
		return v
	}
	got := &http.Request{URL: new(url.URL)}
	h.fill(got)
	in := bytes.NewReader(text)
	buffered := bufio.NewReader(in)
	want, err := http.ReadRequest(buffered)
	if err != nil {
		t.Fatalf("net/http refuses it: %v", err)
	}
	body, err := io.ReadAll(want.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(body, text[h.size:size]) {
		t.Fatalf("body %q, net/http has %q", text[h.size:size], body)
	}
	if left := in.Len() + buffered.Buffered(); left != len(text)-size {
		t.Fatalf("net/http leaves %d bytes to the next request, we %d", left, len(text)-size)
	}
	if want.Close || len(want.TransferEncoding) > 0 || want.Trailer != nil || want.ProtoMinor != 1 {
		t.Fatalf("net/http sees more in it: %+v", want)
	}
	type part struct {
		Method, RequestURI, Host string
		URL                      any
		Header                   http.Header
		Length                   int64
	}
	if diff := cmp.Diff(
		part{want.Method, want.RequestURI, want.Host, *want.URL, want.Header, want.ContentLength},
		part{got.Method, got.RequestURI, got.Host, *got.URL, got.Header, got.ContentLength}); diff != "" {
		t.Fatal("net/http (-) and we (+) differ:\n" + diff)
	}
	return v
}

// sameLength fails unless net/http lets a request end where we do, when it is lent a connection.
func sameLength(t *testing.T, text []byte, length int) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(text)))
	if err != nil {
		t.Fatalf("net/http refuses it: %v", err)
	}
	if r.ContentLength != int64(length) || r.Close || len(r.TransferEncoding) > 0 || r.Trailer != nil {
		t.Fatalf("a body of %d bytes, net/http sees %+v", length, r)
	}
}

func TestShortCallsMeanToNetHTTPWhatTheyMeanHere(t *testing.T) {
	h := newHead() // one for all: nothing of a request may be left for the next
	for range 2 {
		for _, c := range verdicts {
			sameAsNetHTTP(t, h, []byte(c.text))
			sameAsNetHTTP(t, h, []byte(c.text+post))
		}
	}
}

func TestAHandlerThatChangesItsRequestChangesNoOther(t *testing.T) {
	h, r := newHead(), &http.Request{URL: new(url.URL)}
	for range 3 {
		if _, v := h.parse([]byte(post)); v != short {
			t.Fatal(v)
		}
		h.fill(r)
		if got := r.Header["X-A"]; len(got) != 2 || got[0] != "1" || got[1] != "2" || r.URL.Path != "/a/b" || r.Header.Get("X-B") != "" {
			t.Fatalf("%v %v", r.Header, r.URL)
		}
		r.Header["X-A"][0] = "changed"
		r.Header.Del("Content-Type")
		r.Header.Set("X-B", "new")
		r.URL.Path = "/elsewhere"
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range verdicts {
		f.Add([]byte(c.text), []byte(post))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		h := newHead()
		sameAsNetHTTP(t, h, first)
		sameAsNetHTTP(t, h, second) // with what the first left behind
		// However the bytes come, the verdict is the same.
		whole, want := newHead().parse(first)
		if want == short {
			for at := range whole {
				if _, v := newHead().parse(first[:at]); v != partHead && v != partBody {
					t.Fatalf("the first %d bytes are %v", at, v)
				}
			}
		}
	})
}
