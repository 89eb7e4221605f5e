package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// maxBuffered is the largest body that is read before the request is sent: such a request leaves in
// one write and can be sent again. Larger ones stream.
const maxBuffered = 64 << 10

// maxHeaderLines bounds an answer's headers; a line is bounded by the read buffer.
const maxHeaderLines = 256

// StatusClientGone is what nginx made usual for a caller that left. Only one that still reads
// receives it.
const StatusClientGone = 499

var (
	// ErrUnreached means that the function never got the whole request: nothing ran.
	ErrUnreached = errors.New("function not reached")
	// ErrBroken means that the function went away after it got the request and before it answered:
	// it may have run, so the request is never sent again.
	ErrBroken = errors.New("function went away without an answer")
	// ErrAborted means that the answer had begun and cannot be finished. The client's connection
	// has to be cut: anything else would look like a complete answer.
	ErrAborted = errors.New("answer cut short")
	// ErrClientGone means that the caller left, or its body could not be read.
	ErrClientGone = errors.New("client went away")
)

// Forward sends r to the function as method, target, headers and body, and writes the answer to w.
// It returns the answer's status. An error other than ErrAborted means that nothing was written to
// w. header holds what is to be sent; Forward drops what only concerns one connection, but for what a header
// Connection names, which is the caller's to drop before it adds its own, and adds what frames the body.
//
// When the client goes away, the connection to the function is closed, which cancels the call there.
func (p *Pool) Forward(w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error) {
	streaming := r.ContentLength < 0 || r.ContentLength > maxBuffered
	var body *bytes.Buffer
	if !streaming && r.ContentLength > 0 {
		body = buffers.Get().(*bytes.Buffer)
		defer buffers.Put(body)
		body.Reset()
		if n, err := body.ReadFrom(r.Body); err != nil || n != r.ContentLength {
			return 0, fmt.Errorf("%w while it sent its request: %w", ErrClientGone, err)
		}
	}
	if !streaming && fits(r) {
		if c := p.links.get(r.Context()); c != nil {
			if status, handled, err := overLink(c, w, r, target, host, header, body); handled {
				return status, err
			}
		}
	}
	take := p.get
	if streaming {
		take = p.dial // a streamed body cannot be sent again, so it never meets a closed connection
	}
	c, err := take(r.Context())
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrUnreached, err)
	}
	status, err := p.call(c, w, r, target, host, header, body, streaming)
	if errors.Is(err, ErrUnreached) && c.reused && !streaming && r.Context().Err() == nil {
		// The function closed this connection while it was idle, and our request crossed with that.
		if c, err = p.dial(r.Context()); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrUnreached, err)
		}
		status, err = p.call(c, w, r, target, host, header, body, streaming)
	}
	return status, err
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// call is one attempt on one connection, which it puts back or closes.
func (p *Pool) call(c *conn, w http.ResponseWriter, r *http.Request, target, host string, header http.Header, body *bytes.Buffer, streaming bool) (int, error) {
	reusable := false
	release := context.AfterFunc(r.Context(), func() { c.Close() })
	defer func() {
		if release() && reusable {
			p.put(c)
		} else {
			c.Close()
		}
	}()

	writeRequestHead(c.w, r, target, host, header)
	var upload *upload
	if streaming {
		if err := c.w.Flush(); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrUnreached, err)
		}
		upload = startUpload(c, w, r)
		defer func() {
			// Whatever happens, the goroutine that reads r.Body ends before this call does.
			if !upload.stop(c, w) {
				reusable = false
			}
		}()
	} else {
		if body != nil {
			c.w.Write(body.Bytes())
		}
		if err := c.w.Flush(); err != nil {
			return 0, c.broken(r.Context(), err)
		}
	}

	head, err := readHead(c.r)
	for err == nil && head.status >= 100 && head.status < 200 {
		head, err = readHead(c.r) // interim answers are ours, not the client's
	}
	if err != nil {
		if upload != nil && upload.unread.Load() {
			return 0, fmt.Errorf("%w while it sent its request: %w", ErrClientGone, err)
		}
		if upload != nil && errors.Is(err, syscall.ECONNRESET) {
			return 0, fmt.Errorf("%w: %w", ErrBroken, err)
		}
		return 0, c.broken(r.Context(), err)
	}
	answer, reuse, err := head.body(c.r, r.Method)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	out := w.Header()
	for name, values := range head.header {
		if !hopByHop(name) && !named(head.connection, name) {
			out[name] = values
		}
	}
	w.WriteHeader(head.status)
	if err := copyAnswer(w, answer, head.length); err != nil {
		return head.status, fmt.Errorf("%w: %w", ErrAborted, err)
	}
	reusable = reuse
	return head.status, nil
}

// broken sorts an error that came before the answer's first byte.
//
// A Unix socket tells what an Internet socket cannot: when its peer closes with bytes unread, our
// next read gives ECONNRESET, and once it has closed, a write gives EPIPE. Either way the function
// did not get the whole request, and sending it again cannot run it twice. End of file means that
// all of it was read. Over TCP only a write that fails says so much.
func (c *conn) broken(ctx context.Context, err error) error {
	var op *net.OpError
	writing := errors.As(err, &op) && op.Op == "write"
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrClientGone, ctx.Err())
	case c.remote && !writing:
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%w: %w", ErrUnreached, err)
	}
	return fmt.Errorf("%w: %w", ErrBroken, err)
}

// writeRequestHead fills w's buffer with the request line and headers.
func writeRequestHead(w *bufio.Writer, r *http.Request, target, host string, header http.Header) {
	w.WriteString(r.Method)
	w.WriteByte(' ')
	w.WriteString(target)
	w.WriteString(" HTTP/1.1\r\nHost: ")
	w.WriteString(host)
	w.WriteString("\r\n")
	for name, values := range header {
		if hopByHop(name) || name == "Content-Length" || name == "Host" || name == "Expect" {
			continue
		}
		for _, v := range values {
			w.WriteString(name)
			w.WriteString(": ")
			w.WriteString(v)
			w.WriteString("\r\n")
		}
	}
	switch {
	case r.ContentLength > 0:
		var digits [20]byte
		w.WriteString("Content-Length: ")
		w.Write(strconv.AppendInt(digits[:0], r.ContentLength, 10))
		w.WriteString("\r\n")
	case r.ContentLength < 0:
		w.WriteString("Transfer-Encoding: chunked\r\n")
	case r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch:
		w.WriteString("Content-Length: 0\r\n")
	}
	w.WriteString("\r\n")
}

// hopByHop reports whether the header (canonical name) concerns one connection only.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// named reports whether a Connection header lists the header.
func named(connection, name string) bool {
	if connection == "" {
		return false
	}
	for token := range strings.SplitSeq(connection, ",") {
		if strings.EqualFold(strings.TrimSpace(token), name) {
			return true
		}
	}
	return false
}

// upload copies a request's body to the function while the answer is read.
type upload struct {
	ended  atomic.Bool // the whole body was read, so nothing more is awaited from the client
	unread atomic.Bool // it could not be read, which is told before the function can be seen to miss it
	done   chan struct{}
	sent   bool // the whole body went out
}

func startUpload(c *conn, w http.ResponseWriter, r *http.Request) *upload {
	u := &upload{done: make(chan struct{})}
	// Without this, net/http reads the rest of the body before the first byte of the answer.
	_ = http.NewResponseController(w).EnableFullDuplex()
	var dst io.Writer = c.w
	chunked := r.ContentLength < 0
	if chunked {
		dst = httputil.NewChunkedWriter(c.w)
	}
	go func() {
		defer close(u.done)
		buf := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buf)
		for left := r.ContentLength; ; {
			n, err := r.Body.Read(*buf)
			if left -= int64(n); left == 0 || err == io.EOF {
				u.ended.Store(true) // before the function gets it all, and can answer
			}
			if n > 0 {
				if _, werr := dst.Write((*buf)[:n]); werr != nil {
					return
				}
				if werr := c.w.Flush(); werr != nil {
					return
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				u.unread.Store(true)
				c.Close() // a body that stays incomplete must not look complete, nor wait
				return
			}
		}
		if chunked {
			dst.(io.Closer).Close()
			c.w.WriteString("\r\n")
		}
		u.sent = c.w.Flush() == nil
	}()
	return u
}

// finishWithin is how long an upload whose last bytes the function has answered may take to notice.
const finishWithin = 20 * time.Millisecond

// stop ends the upload and reports whether all of it was sent.
func (u *upload) stop(c *conn, w http.ResponseWriter) bool {
	select {
	case <-u.done:
		return u.sent
	default:
	}
	if u.ended.Load() {
		// net/http already waits there for its next request, and
		// a deadline now would end that: every later call on the connection would count as cancelled.
		select {
		case <-u.done:
		case <-time.After(finishWithin):
			c.Close() // the function answered and does not take the rest
		}
	} else {
		// The function answered without reading everything: stop waiting for the client's bytes.
		// net/http then closes the client's connection after the answer.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now())
	}
	<-u.done
	return u.sent
}

// head is an answer's status line and headers.
type head struct {
	status     int
	header     map[string][]string
	connection string
	minor      int // of HTTP/1.x
	length     int64
}

var errHead = errors.New("malformed answer")

func readHead(r *bufio.Reader) (head, error) {
	var h head
	line, err := r.ReadSlice('\n')
	if err != nil {
		return h, err
	}
	// HTTP/1.1 200 OK
	if len(line) < 13 || string(line[:7]) != "HTTP/1." || line[8] != ' ' {
		return h, fmt.Errorf("%w: status line %.40q", errHead, line)
	}
	h.minor = int(line[7] - '0')
	if h.status, err = strconv.Atoi(string(line[9:12])); err != nil || h.status < 100 {
		return h, fmt.Errorf("%w: status line %.40q", errHead, line)
	}
	h.header = make(map[string][]string, 12)
	for range maxHeaderLines {
		if line, err = r.ReadSlice('\n'); err != nil {
			return h, fmt.Errorf("%w: headers: %w", errHead, err)
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			h.connection = http.Header(h.header).Get("Connection")
			return h, nil
		}
		name, value, found := bytes.Cut(line, []byte(":"))
		if !found || len(name) == 0 {
			return h, fmt.Errorf("%w: header line %.40q", errHead, line)
		}
		key := textproto.CanonicalMIMEHeaderKey(string(name))
		h.header[key] = append(h.header[key], string(bytes.TrimSpace(value)))
	}
	return h, fmt.Errorf("%w: more than %d header lines", errHead, maxHeaderLines)
}

// body returns the answer's body and whether the connection can be used again after it.
func (h *head) body(r *bufio.Reader, method string) (io.Reader, bool, error) {
	reuse := h.minor == 1 && !named(h.connection, "close")
	h.length = -1
	if method == http.MethodHead || h.status == http.StatusNoContent || h.status == http.StatusNotModified {
		h.length = 0
		return nil, reuse, nil
	}
	if te := h.header["Transfer-Encoding"]; len(te) > 0 {
		if len(te) != 1 || !strings.EqualFold(te[0], "chunked") {
			return nil, false, fmt.Errorf("%w: transfer encoding %q", errHead, te)
		}
		return &chunkedBody{chunks: httputil.NewChunkedReader(r), r: r}, reuse, nil
	}
	if lengths := h.header["Content-Length"]; len(lengths) > 0 {
		n, err := strconv.ParseUint(lengths[0], 10, 63)
		if err != nil || len(lengths) != 1 {
			return nil, false, fmt.Errorf("%w: content length %q", errHead, lengths)
		}
		h.length = int64(n)
		return &io.LimitedReader{R: r, N: h.length}, reuse, nil
	}
	return r, false, nil // until the function closes
}

// chunkedBody also reads the trailer part, so that the connection is at the next answer's start.
// Trailers themselves are dropped: fwatchdog sends none.
type chunkedBody struct {
	chunks io.Reader
	r      *bufio.Reader
	ended  bool
}

func (b *chunkedBody) Read(p []byte) (int, error) {
	n, err := b.chunks.Read(p)
	if err == io.EOF && !b.ended {
		b.ended = true
		for {
			line, lerr := b.r.ReadSlice('\n')
			if lerr != nil {
				return n, io.ErrUnexpectedEOF
			}
			if len(bytes.TrimRight(line, "\r\n")) == 0 {
				break
			}
		}
	}
	return n, err
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// copyAnswer writes the body to the client as it comes. length is -1 when it is not known; then each
// piece is flushed, since the client may be waiting for it (a stream of lines).
func copyAnswer(w http.ResponseWriter, body io.Reader, length int64) error {
	if body == nil || length == 0 {
		return nil
	}
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	var flush func() error
	if length < 0 {
		flush = http.NewResponseController(w).Flush
		if err := flush(); err != nil {
			return err
		}
	}
	var copied int64
	for length < 0 || copied < length {
		n, err := body.Read(*buf)
		if n > 0 {
			copied += int64(n)
			if _, werr := w.Write((*buf)[:n]); werr != nil {
				return werr
			}
			if flush != nil {
				if werr := flush(); werr != nil {
					return werr
				}
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if length > 0 && copied < length {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// Get is a plain GET on the socket for the function's owner: no pooling, a bounded answer.
func Get(ctx context.Context, socket, path string) (int, []byte, error) {
	return do(ctx, http.MethodGet, socket, path, nil)
}

// Put is a plain PUT of JSON, otherwise like Get.
func Put(ctx context.Context, socket, path string, body []byte) (int, []byte, error) {
	return do(ctx, http.MethodPut, socket, path, body)
}

const maxOwnAnswer = 4 << 20

func do(ctx context.Context, method, socket, path string, body []byte) (int, []byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://function"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxOwnAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return res.StatusCode, answer, nil
}
