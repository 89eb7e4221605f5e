package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
)

// boundedBody is a request's body of which at most so many bytes can be read.
type boundedBody struct {
	io.ReadCloser
	left int64 // below 0 once there was more
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errBodyTooLarge
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1] // one more, to tell a body that ends here from one that goes on
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n - 1, errBodyTooLarge
	}
	return n, err
}

func (b *boundedBody) exceeded() bool { return b != nil && b.left < 0 }

// unbind makes the request what it was. net/http needs that: seeing its own body, of which a part was not read,
// it waits with closing the connection until the answer has arrived.
func (b *boundedBody) unbind(r *http.Request) {
	if b != nil {
		r.Body = b.ReadCloser
	}
}

var errBodyTooLarge = errors.New("the body is longer than the provider's max_body_bytes")

// bound makes sure that no more of the request's body is read than the setting max_body_bytes allows. It
// reports false for a body that says itself that it is larger; one that does not say is to be asked, when
// something went wrong, whether it has exceeded the bound.
func (s *Server) bound(r *http.Request) (*boundedBody, bool) {
	switch {
	case s.maxBodyBytes == 0:
		return nil, true
	case r.ContentLength >= 0:
		return nil, r.ContentLength <= s.maxBodyBytes
	}
	body := &boundedBody{ReadCloser: r.Body, left: s.maxBodyBytes}
	r.Body = body
	return body, true
}

// tooLarge answers a call whose body is too large.
func (s *Server) tooLarge(w http.ResponseWriter, callID string) {
	w.Header().Set("Connection", "close") // the rest of the body is not worth reading
	problem(w, http.StatusRequestEntityTooLarge, callID, fmt.Sprintf("the body is longer than %d bytes, the provider's max_body_bytes", s.maxBodyBytes))
}
