// Package link carries many small HTTP calls at once over one connection between a provider and a
// watchdog.
//
// A call over HTTP costs each side a read, a write and a wake-up of its own. Over a link, whatever
// calls are ready at the same time share them: with 32 callers that is a fraction of a system call
// each. Calls whose body or answer streams stay on HTTP; a link carries whole bodies only.
//
// A link starts as an HTTP request with Upgrade: Protocol, so a watchdog without links refuses it in
// the ordinary way and is called over HTTP. Both ends of the protocol live here, and nothing else:
// no function, model or pool may enter.
//
// A frame is a header of 16 bytes, little-endian, and a payload:
//
//	0  uint32  length of the payload
//	4  uint8   kind: call, answer, cancel, abort or refuse
//	5  uint8   0
//	6  uint16  HTTP status of an answer, else 0
//	8  uint64  id, chosen by the caller, not used again on this link
//
// A call's payload is method, target and host, an answer's starts with the headers: a count, then
// names and values. Counts and lengths of strings are uvarints. What is left of the payload is the
// body. The other kinds have no payload: a cancel says that the caller no longer waits, an abort that there
// is no answer, a refusal that the call was not begun and will not be. A refusal of call 0 is of all that are
// still to come: the caller closes the link when it has the answers that are out.
package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
)

// Protocol is the token of the Upgrade header.
const Protocol = "faas-predict-link/1"

// Path is where a watchdog takes links.
const Path = "/_/link"

type kind byte

const (
	kindCall kind = iota + 1
	kindAnswer
	kindCancel
	kindAbort
	kindRefuse
)

// everyCall is the id of no call.
const everyCall = 0

const (
	headerBytes = 16
	// MaxCall bounds a call's frame: the caller sends larger ones over HTTP.
	MaxCall = 1 << 20
	// MaxAnswer bounds an answer's frame; it is the largest that a process should hold twice.
	MaxAnswer = 1 << 30
	// keptBuffer is the largest buffer that is kept for the next frames.
	keptBuffer = 1 << 20
)

var (
	// ErrUnsent means that the call did not leave: nothing ran.
	ErrUnsent = errors.New("call not sent")
	// ErrBroken means that the link ended, or the watchdog gave up, while the call was out: it may
	// have run.
	ErrBroken = errors.New("link broken")
	errFrame  = errors.New("malformed frame")
)

type frame struct {
	kind    kind
	status  int
	id      uint64
	payload []byte
}

// readFrame reads one frame into memory of its own.
func readFrame(r io.Reader, limit uint32) (frame, error) {
	var h [headerBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	n := binary.LittleEndian.Uint32(h[0:])
	if n > limit {
		return frame{}, fmt.Errorf("%w: %d bytes, %d are allowed", errFrame, n, limit)
	}
	f := frame{
		kind:   kind(h[4]),
		status: int(binary.LittleEndian.Uint16(h[6:])),
		id:     binary.LittleEndian.Uint64(h[8:]),
	}
	if n > 0 {
		f.payload = make([]byte, n)
		if _, err := io.ReadFull(r, f.payload); err != nil {
			return frame{}, err
		}
	}
	return f, nil
}

// begin appends a header whose length end fills in.
func begin(b []byte, k kind, status int, id uint64) []byte {
	b = append(b, 0, 0, 0, 0, byte(k), 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(status))
	return binary.LittleEndian.AppendUint64(b, id)
}

func end(b []byte, start int) []byte {
	binary.LittleEndian.PutUint32(b[start:], uint32(len(b)-start-headerBytes))
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendHeader(b []byte, h http.Header) []byte {
	n := 0
	for _, values := range h {
		n += len(values)
	}
	b = binary.AppendUvarint(b, uint64(n))
	for name, values := range h {
		for _, v := range values {
			b = appendString(appendString(b, name), v)
		}
	}
	return b
}

// decoder takes a payload apart. After the first fault it returns zero values and keeps bad.
type decoder struct {
	text string // the payload, converted once: what it returns shares its memory
	at   int
	bad  bool
}

func (d *decoder) uvarint() int {
	var n uint64
	for shift := 0; shift < 35 && d.at < len(d.text); shift += 7 {
		c := d.text[d.at]
		d.at++
		n |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return int(n)
		}
	}
	d.bad = true
	return 0
}

func (d *decoder) string() string {
	n := d.uvarint()
	if d.bad || n > len(d.text)-d.at {
		d.bad = true
		return ""
	}
	d.at += n
	return d.text[d.at-n : d.at]
}

// header sets what the payload holds in h, in place of what h has under the same names.
func (d *decoder) header(h http.Header) {
	n := d.uvarint()
	if n > len(d.text)-d.at {
		d.bad = true
		return
	}
	values := make([]string, n)
	last := ""
	for i := range n {
		name := d.string()
		values[i] = d.string()
		if d.bad {
			return
		}
		if i > 0 && name == last { // the values of one name follow each other
			h[name] = append(h[name], values[i])
		} else {
			h[name] = values[i : i+1 : i+1]
		}
		last = name
	}
}

// writer gathers frames: whoever comes while another writes leaves its frame for that one's next
// write, so frames that are ready together go out together.
type writer struct {
	conn net.Conn
	to   io.Writer // conn

	mu      sync.Mutex
	buf     []byte // to be written
	spare   []byte
	writing bool
	err     error
}

// lock returns the buffer to append one frame to, or why there is no more writing. After a nil error
// unlock must follow.
func (w *writer) lock() ([]byte, error) {
	w.mu.Lock()
	if w.err != nil {
		defer w.mu.Unlock()
		return nil, w.err
	}
	return w.buf, nil
}

// unlock takes the buffer with the frame and sees to it that it is written, by this or another
// goroutine. It does not tell whether that worked: a link that cannot be written breaks, and its
// reader hears of it.
func (w *writer) unlock(b []byte) {
	w.buf = b
	if w.writing {
		w.mu.Unlock()
		return
	}
	w.writing = true
	w.mu.Unlock()
	// Who is ready to send as well does so now: yielding costs less than a write for each.
	runtime.Gosched()
	w.mu.Lock()
	for len(w.buf) > 0 && w.err == nil {
		out := w.buf
		w.buf = w.spare[:0]
		w.mu.Unlock()
		_, err := w.to.Write(out)
		w.mu.Lock()
		if w.spare = out; cap(out) > keptBuffer {
			w.spare = nil
		}
		if err != nil {
			w.err = err
			w.conn.Close()
		}
	}
	w.writing = false
	w.mu.Unlock()
}

// fail stops further writing.
func (w *writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}
