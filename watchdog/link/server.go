package link

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"

	"github.com/faas-predict/faas-predict/watchdog/nonblock"
)

// Acceptor is the watchdog's end of links: an http.Handler for Path that answers each call as
// Handler does. Handler's ResponseWriter keeps the whole answer until the call ends. Nothing of the
// request or the response writer may be used after Handler returns: the next call reuses them.
type Acceptor struct {
	Handler http.Handler

	mu       sync.Mutex
	sessions map[*session]struct{}
	ended    bool
	gone     chan struct{} // closed when ended and there are no sessions
}

// ServeHTTP takes the connection over for good.
func (a *Acceptor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != Protocol {
		w.Header().Set("Upgrade", Protocol)
		http.Error(w, "this path takes only links", http.StatusUpgradeRequired)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot become a link", http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	s := &session{acceptor: a, w: writer{conn: conn, to: nonblock.Of(conn)}, handler: a.Handler, cancels: map[uint64]context.CancelFunc{}}
	// The answer comes before every frame, and is yes only if Shutdown will hear of this link: a caller with a link may
	// count on being told what became of its calls.
	answer, err := s.w.lock()
	if err != nil {
		return
	}
	if !a.enter(s) {
		s.w.unlock(append(answer, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"...))
		return
	}
	defer a.leave(s)
	s.w.unlock(fmt.Appendf(answer, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Protocol))
	// What the client sent right behind its request is in the reader that it was parsed from.
	s.serve(bufio.NewReaderSize(io.MultiReader(io.LimitReader(buffered, int64(buffered.Reader.Buffered())), nonblock.Of(conn)), 64<<10))
}

func (a *Acceptor) enter(s *session) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return false
	}
	if a.sessions == nil {
		a.sessions = map[*session]struct{}{}
	}
	a.sessions[s] = struct{}{}
	return true
}

func (a *Acceptor) leave(s *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.sessions, s)
	if a.ended && len(a.sessions) == 0 {
		close(a.gone)
	}
}

func (a *Acceptor) takes() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.ended
}

// Shutdown answers the calls that are in, as http.Server.Shutdown does for HTTP. Callers are told to send no
// more and close their links when they have all answers; a call that crosses with that is refused, so that
// its caller knows that it did not run. Shutdown blocks until all links are closed, or ctx ends: then it
// closes them.
func (a *Acceptor) Shutdown(ctx context.Context) error {
	a.mu.Lock()
	if !a.ended {
		a.ended, a.gone = true, make(chan struct{})
		if len(a.sessions) == 0 {
			close(a.gone)
		}
		for s := range a.sessions {
			go s.signal(kindRefuse, everyCall) // a peer that does not read would hold up the others
		}
	}
	a.mu.Unlock()
	select {
	case <-a.gone:
		return nil
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for s := range a.sessions {
		s.w.conn.Close()
	}
	return ctx.Err()
}

// session is one link.
type session struct {
	acceptor *Acceptor
	w        writer
	handler  http.Handler

	mu      sync.Mutex
	cancels map[uint64]context.CancelFunc
	idle    []*callee
	ended   bool
}

// callee answers one call after another, and keeps what they need: a goroutine with a stack of the
// right size, and the maps of headers.
type callee struct {
	session *session
	calls   chan called // has room for one; closed when there will be no more
	header  http.Header
	answer  whole
}

type called struct {
	ctx   context.Context
	frame frame
}

// keptAnswer is the largest body whose memory is kept for the next call's.
const keptAnswer = 16 << 10

// maxIdle bounds the callees that are kept for the next calls.
const maxIdle = 128

// callee returns one that is free, or a new one.
func (s *session) callee() *callee {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := len(s.idle) - 1; last >= 0 {
		c := s.idle[last]
		s.idle = s.idle[:last]
		return c
	}
	c := &callee{session: s, calls: make(chan called, 1), header: make(http.Header, 12)}
	c.answer.header = make(http.Header, 8)
	go c.run()
	return c
}

// release keeps c for later calls, and reports whether it did.
func (s *session) release(c *callee) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.idle) == maxIdle {
		return false
	}
	s.idle = append(s.idle, c)
	return true
}

// end lets the idle callees go; the others go after their call.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, c := range s.idle {
		close(c.calls)
	}
	s.idle = nil
}

func (s *session) serve(r *bufio.Reader) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel() // whoever called is gone
	defer s.end()
	for {
		f, err := readFrame(r, MaxCall)
		if err != nil {
			s.w.fail(err)
			return
		}
		switch f.kind {
		case kindCall:
			if !s.acceptor.takes() {
				s.signal(kindRefuse, f.id)
				continue
			}
			call, stop := context.WithCancel(ctx)
			s.remember(f.id, stop)
			s.callee().calls <- called{call, f}
		case kindCancel:
			s.cancel(f.id)
		default:
			s.w.fail(errFrame)
			return
		}
	}
}

func (s *session) remember(id uint64, stop context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancels[id] = stop
}

func (s *session) cancel(id uint64) {
	s.mu.Lock()
	stop := s.cancels[id]
	delete(s.cancels, id)
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (c *callee) run() {
	for call := range c.calls {
		c.call(call.ctx, call.frame)
		c.session.cancel(call.frame.id)
		if !c.session.release(c) {
			return
		}
	}
}

func (c *callee) call(ctx context.Context, f frame) {
	s, w := c.session, &c.answer
	clear(c.header)
	w.reset()
	r, err := request(ctx, f.payload, c.header)
	if err != nil || !s.handle(w, r) {
		s.signal(kindAbort, f.id)
		return
	}
	b, err := s.w.lock()
	if err != nil {
		return
	}
	if len(w.body) > MaxAnswer-MaxCall {
		s.w.unlock(begin(b, kindAbort, 0, f.id))
		return
	}
	start := len(b)
	b = begin(b, kindAnswer, w.code(), f.id)
	b = append(appendHeader(b, w.header), w.body...)
	s.w.unlock(end(b, start))
}

func (s *session) signal(k kind, id uint64) {
	if b, err := s.w.lock(); err == nil {
		s.w.unlock(begin(b, k, 0, id))
	}
}

// handle reports whether the handler came to an end.
func (s *session) handle(w http.ResponseWriter, r *http.Request) (ended bool) {
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				slog.Error("a call's handler panicked", "panic", p)
			}
			ended = false
		}
	}()
	s.handler.ServeHTTP(w, r)
	return true
}

var root = &url.URL{Path: "/"}

// request reads a call's payload; header is the request's, and empty.
func request(ctx context.Context, payload []byte, header http.Header) (*http.Request, error) {
	d := decoder{text: string(payload)}
	r := &http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header, RemoteAddr: "@"}
	r.Method, r.RequestURI, r.Host = d.string(), d.string(), d.string()
	d.header(r.Header)
	if d.bad {
		return nil, errFrame
	}
	r.URL = root
	if r.RequestURI != "/" {
		var err error
		if r.URL, err = url.ParseRequestURI(r.RequestURI); err != nil {
			return nil, fmt.Errorf("%w: target: %w", errFrame, err)
		}
	}
	body := payload[d.at:]
	r.ContentLength = int64(len(body))
	r.Body = http.NoBody
	if len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return r.WithContext(ctx), nil
}

// whole is a ResponseWriter that keeps the answer.
type whole struct {
	header http.Header
	status int
	body   []byte
}

// reset keeps the memory of a small body.
func (w *whole) reset() {
	clear(w.header)
	if w.status, w.body = 0, w.body[:0]; cap(w.body) > keptAnswer {
		w.body = nil
	}
}

func (w *whole) Header() http.Header { return w.header }

func (w *whole) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
	}
}

func (w *whole) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	w.body = append(w.body, p...)
	return len(p), nil
}

func (w *whole) code() int {
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}
