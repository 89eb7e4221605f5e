package runner

import (
	"io"

	"github.com/faas-predict/faas-predict/watchdog/wire"
)

// readBytes is what one read of a channel asks for.
const readBytes = 64 << 10

// frameReader reads frames, as many with one read as the channel holds.
type frameReader struct {
	in   io.Reader
	buf  []byte
	have []byte // the unread part of buf
}

func newFrameReader(in io.Reader) *frameReader {
	return &frameReader{in: in, buf: make([]byte, readBytes)}
}

// next blocks for a frame. The payload is valid until the following call.
func (r *frameReader) next() (wire.Header, []byte, error) {
	for {
		h, payload, rest, need, ok, err := wire.Next(r.have)
		if err != nil || ok {
			r.have = rest
			return h, payload, err
		}
		if err := r.fill(need); err != nil {
			return h, nil, err
		}
	}
}

// buffered reports whether next will return without a read.
func (r *frameReader) buffered() bool {
	_, _, _, _, ok, err := wire.Next(r.have)
	return ok || err != nil
}

func (r *frameReader) fill(need int) error {
	switch {
	case need > len(r.buf):
		grown := make([]byte, need)
		r.have = grown[:copy(grown, r.have)]
		r.buf = grown
	case len(r.have) == 0 && len(r.buf) > 16*readBytes:
		// One large answer must not keep its memory for the life of the worker.
		r.buf = make([]byte, readBytes)
		r.have = r.buf[:0]
	default:
		r.have = r.buf[:copy(r.buf, r.have)]
	}
	n, err := r.in.Read(r.buf[len(r.have):])
	r.have = r.buf[:len(r.have)+n]
	if n > 0 {
		return nil
	}
	return err
}
