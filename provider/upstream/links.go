package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/link"
)

// links keeps one link to the process, opened at the first call that can use it.
type links struct {
	network, address string // as link.Dial takes them; no address: nowhere
	current          atomic.Pointer[link.Client]

	opening sync.Mutex // guards what is below
	retry   time.Time  // not before
	closed  bool
}

// linkPause is how long a process that refused a link is not asked again.
const linkPause = 5 * time.Second

// get returns the link, or nil when there is none at the moment. It opens one if that is due; only
// one caller waits for that, the others take HTTP meanwhile.
func (l *links) get(ctx context.Context) *link.Client {
	c := l.current.Load()
	if c != nil && !c.Broken() {
		return c
	}
	if l.address == "" || !l.opening.TryLock() {
		return nil
	}
	defer l.opening.Unlock()
	if l.closed || time.Now().Before(l.retry) {
		return nil
	}
	l.current.Store(nil) // it closes by itself when the calls that are out are answered
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := link.Dial(ctx, l.network, l.address)
	if err != nil {
		l.retry = time.Now().Add(linkPause)
		return nil
	}
	l.current.Store(c)
	return c
}

func (l *links) close() {
	l.opening.Lock()
	defer l.opening.Unlock()
	l.closed = true
	if c := l.current.Swap(nil); c != nil {
		c.Retire()
	}
}

// fits reports whether the request may go over a link: it has a whole small body and wants an answer
// in one piece.
func fits(r *http.Request) bool {
	if r.Method == http.MethodHead || strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-ndjson") {
		return false
	}
	accept := r.Header.Get("Accept")
	return accept == "" || accept == "*/*" || !strings.Contains(accept, "text/event-stream") && !strings.Contains(accept, "application/x-ndjson")
}

// overLink is one call. handled is false when it did not leave: then HTTP can have it.
func overLink(c *link.Client, w http.ResponseWriter, r *http.Request, target, host string, header http.Header, body *bytes.Buffer) (status int, handled bool, err error) {
	for name := range header {
		if hopByHop(name) || name == "Content-Length" || name == "Host" || name == "Expect" {
			delete(header, name)
		}
	}
	call := link.Call{Method: r.Method, Target: target, Host: host, Header: header}
	if body != nil {
		call.Body = body.Bytes()
	}
	answer, err := c.Do(r.Context(), &call)
	switch {
	case errors.Is(err, link.ErrUnsent):
		return 0, false, nil
	case r.Context().Err() != nil && err != nil:
		return 0, true, fmt.Errorf("%w: %w", ErrClientGone, r.Context().Err())
	case err != nil:
		return 0, true, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	out := w.Header()
	content, err := answer.Read(out)
	if err != nil {
		return 0, true, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	if out["Content-Length"] == nil && len(content) > 0 {
		out["Content-Length"] = []string{strconv.Itoa(len(content))}
	}
	w.WriteHeader(answer.Status)
	if _, err := w.Write(content); err != nil && r.Method != http.MethodHead {
		return answer.Status, true, fmt.Errorf("%w: %w", ErrAborted, err)
	}
	return answer.Status, true, nil
}
