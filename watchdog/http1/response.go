package http1

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// kept is how much of an answer is kept until the handler is done, to leave with one write. A larger
// one leaves as it is made.
const kept = 16 << 10

// response is a ResponseWriter.
type response struct {
	conn   *conn
	header http.Header
	status int
	body   []byte // not yet written
	first  []byte // of a body of which none is kept
	buf    []byte

	length    int64 // what the handler declared, -1: nothing
	written   int64
	streaming bool // the head has left
	chunked   bool
	bodyless  bool
	close     bool
	err       error // of the first write that failed
}

func (w *response) reset() {
	w.status, w.body, w.first, w.written, w.length, w.err = 0, w.body[:0], nil, 0, -1, nil
	w.streaming, w.chunked, w.bodyless, w.close = false, false, false, false
}

func (w *response) Header() http.Header { return w.header }

// WriteHeader ignores interim statuses: a short call has no use for them.
func (w *response) WriteHeader(status int) {
	if w.status != 0 || status < http.StatusOK {
		return
	}
	w.status = status
	w.bodyless = status == http.StatusNoContent || status == http.StatusNotModified
	if declared := w.header["Content-Length"]; len(declared) > 0 {
		if n, err := strconv.ParseInt(declared[0], 10, 63); err == nil && n >= 0 {
			w.length = n
		}
	}
}

func (w *response) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	switch {
	case w.err != nil:
		return 0, w.err
	case len(p) == 0:
		return 0, nil
	case w.bodyless:
		return 0, http.ErrBodyNotAllowed
	case w.length >= 0 && w.written+int64(len(p)) > w.length:
		return 0, http.ErrContentLength
	}
	w.written += int64(len(p))
	if !w.streaming && len(w.body)+len(p) <= kept {
		w.body = append(w.body, p...)
		return len(p), nil
	}
	if !w.streaming {
		w.first = p
		w.stream()
	}
	w.send(p)
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// FlushError is what http.ResponseController calls to flush.
func (w *response) FlushError() error {
	w.WriteHeader(http.StatusOK)
	if !w.streaming {
		w.stream()
	}
	return w.err
}

// SetWriteDeadline, SetReadDeadline and EnableFullDuplex are http.ResponseController's. The request was
// read whole, so the latter two have nothing to do.
func (w *response) SetWriteDeadline(at time.Time) error {
	w.conn.writeBy, w.conn.ownWrite = at, true
	return w.conn.nc.SetWriteDeadline(at)
}

func (w *response) SetReadDeadline(time.Time) error { return nil }

func (w *response) EnableFullDuplex() error { return nil }

// stream lets the head leave with what was written so far; what follows leaves as it comes.
func (w *response) stream() {
	w.streaming = true
	w.chunked = w.length < 0 && !w.bodyless
	w.buf = w.appendHead(w.buf[:0])
	first := w.body
	if len(first) == 0 {
		w.put(w.buf)
		return
	}
	if w.chunked {
		w.buf = appendChunkSize(w.buf, len(first))
		first = append(first, "\r\n"...)
	}
	w.buf = append(w.buf, first...)
	w.put(w.buf)
}

func appendChunkSize(b []byte, n int) []byte {
	return append(strconv.AppendInt(b, int64(n), 16), "\r\n"...)
}

// send writes a piece of a streamed body.
func (w *response) send(p []byte) {
	if !w.chunked {
		w.put(p)
		return
	}
	w.buf = append(append(appendChunkSize(w.buf[:0], len(p)), p...), "\r\n"...)
	w.put(w.buf)
}

func (w *response) put(b []byte) {
	if w.err == nil {
		w.conn.limitWrite()
		_, w.err = w.conn.io.Write(b)
	}
}

var errShort = errors.New("the handler wrote less than it declared")

// finish writes what is left of the answer, all of it in most cases, and reports whether the connection
// can go on.
func (w *response) finish() bool {
	w.WriteHeader(http.StatusOK)
	switch {
	case w.length > w.written && !w.bodyless:
		w.err = fmt.Errorf("%w: %d of %d bytes", errShort, w.written, w.length)
	case !w.streaming:
		if w.length < 0 {
			w.length = int64(len(w.body))
		}
		w.buf = append(w.appendHead(w.buf[:0]), w.body...)
		w.put(w.buf)
	case w.chunked:
		w.put([]byte("0\r\n\r\n"))
	}
	return w.err == nil && !w.close
}

// keepLittle drops what an idle connection should not hold.
func (w *response) keepLittle() {
	clear(w.header)
	if w.first = nil; cap(w.buf) > firstBuffer {
		w.buf = nil
	}
	if cap(w.body) > firstBuffer {
		w.body = nil
	}
}

var lineBreaks = strings.NewReplacer("\r", " ", "\n", " ")

// appendHead appends the status line and the headers, in no order. The handler ends the connection by
// the header Connection: close.
func (w *response) appendHead(b []byte) []byte {
	w.close = w.conn.server.closing.Load()
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(w.status), 10)
	b = append(append(append(b, ' '), http.StatusText(w.status)...), "\r\n"...)
	hasType, hasDate := false, false
	for name, values := range w.header {
		if name == "" || !all(name, inName) { // it could hold a header of its own
			continue
		}
		switch name {
		case "Content-Length", "Transfer-Encoding", "Trailer": // ours to say
			continue
		case "Connection":
			w.close = w.close || len(values) > 0 && strings.EqualFold(values[0], "close")
			continue
		case "Content-Type", "Content-Encoding": // what is encoded does not look like what it is
			hasType = true
		case "Date":
			hasDate = true
		}
		for _, v := range values {
			b = append(append(b, name...), ": "...)
			if strings.ContainsAny(v, "\r\n") {
				v = lineBreaks.Replace(v)
			}
			b = append(append(b, v...), "\r\n"...)
		}
	}
	if begin := w.begin(); !hasType && len(begin) > 0 {
		b = append(append(append(b, "Content-Type: "...), http.DetectContentType(begin)...), "\r\n"...)
	}
	switch {
	case w.bodyless:
	case w.chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	default:
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, w.length, 10), "\r\n"...)
	}
	if !hasDate {
		b = append(append(append(b, "Date: "...), date()...), "\r\n"...)
	}
	if w.close {
		b = append(b, "Connection: close\r\n"...)
	}
	return append(b, "\r\n"...)
}

// begin is how the body begins, as far as that is known.
func (w *response) begin() []byte {
	if len(w.body) > 0 {
		return w.body
	}
	return w.first
}

type dated struct {
	second int64
	text   string
}

var lastDate atomic.Pointer[dated]

// date is the header's value, made once a second.
func date() string {
	now := time.Now()
	if d := lastDate.Load(); d != nil && d.second == now.Unix() {
		return d.text
	}
	d := &dated{now.Unix(), now.UTC().Format(http.TimeFormat)}
	lastDate.Store(d)
	return d.text
}
