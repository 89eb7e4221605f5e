// Package wire is the framing between the watchdog and a runner, as docs/runner-protocol.md defines
// it for every language: a fixed little-endian header and raw bytes.
//
// It encodes and decodes; it opens nothing and blocks on nothing.
package wire

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Version is what both sides must speak. A runner states its own in HELLO; another is refused.
const Version = 1

// HeaderSize is the length of a frame's header in bytes.
const HeaderSize = 24

// MaxPayload bounds a frame's payload. A runner that claims more is broken, and is replaced before
// anything is allocated for it.
const MaxPayload = 256 << 20

// Kind says what a frame means.
type Kind uint8

// From the watchdog to a zygote, on the control channel.
const (
	// Fork asks for a worker; ID is the number that names its channels.
	Fork Kind = 1
	// Kill asks for SIGKILL to the process group of worker ID.
	Kill Kind = 2
)

// From a zygote to the watchdog, on the control channel.
const (
	// Hello is the first frame: payload is a JSON Greeting.
	Hello Kind = 16
	// Ready follows when init returned: payload is a JSON Capabilities.
	Ready Kind = 17
	// InitFailed replaces Ready: payload is the traceback, and the runner exits.
	InitFailed Kind = 18
	// Forked: worker ID lives; Elapsed is its pid.
	Forked Kind = 19
	// Exited: worker ID is gone; Elapsed is its exit code, or 128 + the signal.
	Exited Kind = 20
)

// From the watchdog to a worker.
const (
	// Request carries one request, UTF-8. With FlagMore, further requests follow for the same call
	// of predict_batch.
	Request Kind = 32
	// Run is several requests as one frame, for workers that want them so: the headers of all, then the
	// payloads of all. Elapsed is how many there are.
	Run Kind = 33
)

// From a worker to the watchdog.
const (
	// Up is a worker's first frame: it may be given requests. Elapsed is its pid.
	Up Kind = 48
	// Response carries predict's string, UTF-8; Elapsed is the nanoseconds predict took.
	Response Kind = 49
	// Raised: predict raised. Payload is type NUL message NUL traceback.
	Raised Kind = 50
	// NotString: predict returned something else. Payload says what.
	NotString Kind = 51
	// Skipped: the worker did not begin this request because it was revoked.
	Skipped Kind = 52
)

// FlagPadded of an answer: bytes that mean nothing follow its payload and make its length a multiple of
// four. Length does not count them.
const FlagPadded uint8 = 4

// Flags of a Request.
const (
	// FlagMore: the batch it belongs to goes on with the next frame.
	FlagMore uint8 = 1
	// FlagHold: its answer may be held until a request without the flag is answered. Nobody waits
	// for this answer alone, and answers that leave with one write cost less.
	FlagHold uint8 = 2
)

// Header precedes each payload.
//
//	offset size field
//	     0    4 payload length
//	     4    1 kind
//	     5    1 flags
//	     6    2 zero
//	     8    8 id, opaque to the runner
//	    16    8 elapsed: nanoseconds, or the number that the kind defines
type Header struct {
	Length  uint32
	Kind    Kind
	Flags   uint8
	ID      uint64
	Elapsed uint64
}

// Greeting is Hello's payload.
type Greeting struct {
	Wire    int    `json:"wire"`
	Runtime string `json:"runtime"` // such as "python 3.11.2"
}

// Capabilities are Ready's payload: what this runner and this model can do.
type Capabilities struct {
	// Batch: the bundle defines predict_batch.
	Batch bool `json:"batch"`
	// Journal: workers keep the journal that lets them hold several requests.
	Journal bool `json:"journal"`
	// Runs: workers read requests that go out together faster as a Run.
	Runs bool `json:"runs"`
}

// AppendHeader appends h to dst.
func AppendHeader(dst []byte, h Header) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, h.Length)
	dst = append(dst, byte(h.Kind), h.Flags, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, h.ID)
	return binary.LittleEndian.AppendUint64(dst, h.Elapsed)
}

// AppendRun appends the requests in frames to dst as a Run. It reports false, and appends nothing, when
// they are not at least two whole requests, or too large for one frame.
func AppendRun(dst, frames []byte) ([]byte, bool) {
	count, heads := 0, len(dst)+HeaderSize
	for rest := frames; len(rest) > 0; count++ {
		h, _, after, _, ok, err := Next(rest)
		if err != nil || !ok || h.Kind != Request {
			return dst, false
		}
		rest = after
	}
	if count < 2 || len(frames) > MaxPayload {
		return dst, false
	}
	dst = AppendHeader(dst, Header{Length: uint32(len(frames)), Kind: Run, Elapsed: uint64(count)})
	dst = slices.Grow(dst, len(frames))[:heads+count*HeaderSize]
	for rest, at := frames, heads; len(rest) > 0; at += HeaderSize {
		_, payload, after, _, _, _ := Next(rest)
		copy(dst[at:], rest[:HeaderSize])
		dst = append(dst, payload...)
		rest = after
	}
	return dst, true
}

// Next splits the first whole frame off buf. When buf holds only part of one it returns ok == false;
// need is then how many bytes the frame takes in all, or HeaderSize while that is not known. The
// payload is a slice of buf.
func Next(buf []byte) (h Header, payload, rest []byte, need int, ok bool, err error) {
	if len(buf) < HeaderSize {
		return h, nil, buf, HeaderSize, false, nil
	}
	h = Header{
		Length:  binary.LittleEndian.Uint32(buf),
		Kind:    Kind(buf[4]),
		Flags:   buf[5],
		ID:      binary.LittleEndian.Uint64(buf[8:]),
		Elapsed: binary.LittleEndian.Uint64(buf[16:]),
	}
	if h.Length > MaxPayload {
		return h, nil, buf, 0, false, fmt.Errorf("frame of %d bytes is over the limit of %d", h.Length, MaxPayload)
	}
	if buf[6] != 0 || buf[7] != 0 {
		return h, nil, buf, 0, false, fmt.Errorf("frame header of kind %d has non-zero reserved bytes", h.Kind)
	}
	end := HeaderSize + int(h.Length)
	need = end
	if h.Flags&FlagPadded != 0 {
		need = (end + 3) &^ 3
	}
	if len(buf) < need {
		return h, nil, buf, need, false, nil
	}
	return h, buf[HeaderSize:end], buf[need:], need, true, nil
}
