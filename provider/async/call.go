package async

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// Call is a call as it was accepted.
type Call struct {
	UID      string      `json:"uid"`     // of this acceptance; a subject of JetStream
	ID       string      `json:"call_id"` // X-Call-Id
	Ref      backend.Ref `json:"ref"`
	Name     string      `json:"name"` // as the caller wrote it: NAME or NAME.NAMESPACE
	Method   string      `json:"method"`
	Target   string      `json:"target"` // path and query, with a slash at its start
	Host     string      `json:"host"`
	Header   http.Header `json:"header"`            // what the function is to get; no credentials
	Version  string      `json:"version,omitempty"` // chosen when the call was accepted
	Callback string      `json:"callback,omitempty"`
	Accepted time.Time   `json:"accepted"`
	Body     []byte      `json:"-"`

	known string // identifies a call that its caller may send again
}

// Identify gives the call its id: the caller's, or a new one where that is "". Two calls with the same id of
// the caller's are one when they also ask the same of the same function.
func (c *Call) Identify(id string) {
	c.UID, c.ID = uuid.NewString(), id
	if id == "" {
		c.ID = c.UID
		return
	}
	sum := sha256.New()
	for _, part := range [][]byte{[]byte(id), []byte(c.Ref.String()), []byte(c.Method), []byte(c.Target), []byte(c.Callback), c.Body} {
		var size [8]byte
		binary.LittleEndian.PutUint64(size[:], uint64(len(part)))
		sum.Write(size[:])
		sum.Write(part)
	}
	c.known = hex.EncodeToString(sum.Sum(nil))
}

// Result is what became of a call.
type Result struct {
	Status int         `json:"status"`
	Header http.Header `json:"header"`
	Body   []byte      `json:"-"`
	// Gone: there is no such function any more.
	Gone bool `json:"-"`
	// Final: another attempt would end the same way, whatever the status.
	Final bool `json:"-"`
}

// report is a result on its way to the callback.
type report struct {
	UID      string      `json:"uid"`
	ID       string      `json:"call_id"`
	Ref      backend.Ref `json:"ref"`
	Name     string      `json:"name"`
	Callback string      `json:"callback"`
	Accepted time.Time   `json:"accepted"`
	Seconds  float64     `json:"seconds"`
	Result
}

// encode puts what says everything about a message in front of its body: JSON with its length. NATS headers
// would do but for their 64 KiB, which a request's may exceed.
func encode(meta any, body []byte) ([]byte, error) {
	head, err := json.Marshal(meta)
	if err != nil {
		return nil, fmt.Errorf("encode a call: %w", err)
	}
	out := make([]byte, 0, 4+len(head)+len(body))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(head))) // heads of requests are bounded
	out = append(out, head...)
	return append(out, body...), nil
}

// decode is encode's inverse; the body is a part of payload.
func decode(payload []byte, meta any) (body []byte, err error) {
	if len(payload) < 4 {
		return nil, errors.New("a stored message is cut short")
	}
	n := uint64(binary.LittleEndian.Uint32(payload))
	if n > uint64(len(payload)-4) {
		return nil, errors.New("a stored message is cut short")
	}
	if err := json.Unmarshal(payload[4:4+n], meta); err != nil {
		return nil, fmt.Errorf("read a stored message: %w", err)
	}
	return payload[4+n:], nil
}
