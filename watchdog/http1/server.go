// Package http1 answers short HTTP/1.1 calls with less work than net/http, and leaves every other
// request to net/http.
//
// A short call is a request of the plainest form that came whole and is small: strict grammar, one
// Content-Length, no transfer coding, no expectation, nothing about the connection but to keep it. A
// request of that form that is not small, or not the handler's, is lent to net/http, and the connection
// comes back behind its answer. On the first request of a connection that has another form, the
// connection goes to net/http for good, with all its bytes. So this package never has to interpret what
// is rare, ambiguous or hostile: a request that it answers means to net/http the same, which a fuzzer
// checks, and one that it does not understand is net/http's to refuse.
//
// It serves connections. What is called, by whom, and what it answers stays with the handler.
package http1

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/nonblock"
)

// Server serves HTTP/1.1. Its fields must not change once Serve is called.
type Server struct {
	// Handler answers short calls. Nothing of the request or the response writer may be used after
	// ServeHTTP returns: the next call reuses them. The response writer can be flushed, not hijacked,
	// sends no trailers, and takes headers until the answer leaves. The request's context ends when the
	// caller is gone, as net/http's does, and not before the connection ends.
	Handler http.Handler
	// Takes says which short calls Handler answers; nil means all. It sees the request as Handler
	// would, with its body unread.
	Takes func(*http.Request) bool
	// Rest serves everything else. Its Handler need not be the same. It must have no TLSConfig. Its ConnState
	// is called as before, and sees a connection for each request that is lent to it.
	Rest *http.Server
	// HeadTimeout bounds how long a connection may take to send the head of its first request, and the
	// head of a later one from its first byte; 0 does not. While shutting down it is all that is left to
	// a request of which a part has come, but for one that is lent to Rest, whose limits hold.
	HeadTimeout time.Duration
	// ReadTimeout bounds how long a request that has begun may take to come whole; 0 does not.
	ReadTimeout time.Duration
	// WriteTimeout bounds each write of an answer, to half of it more, unless the handler sets a deadline
	// of its own; 0 does not.
	WriteTimeout time.Duration
	// IdleTimeout is how long a connection may wait for the next request, to half of it more; 0 is no
	// limit.
	IdleTimeout time.Duration
	// Logger is told of handlers that panic; nil is slog.Default.
	Logger *slog.Logger

	rest    *handedOver
	closing atomic.Bool
	watch   watch

	mu       sync.Mutex
	listener net.Listener
	conns    map[*conn]struct{} // whose descriptors the watch may look at
	active   int                // connections that are neither closed nor handed over yet, and one while Serve accepts
	cut      bool               // Close was called
	gone     chan struct{}      // closed when closing and active is 0
}

// Serve accepts connections until Shutdown or Close, and then returns http.ErrServerClosed. It may be
// called once.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closing.Load() {
		s.mu.Unlock()
		_ = l.Close()
		return http.ErrServerClosed
	}
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	s.listener, s.conns, s.gone = l, map[*conn]struct{}{}, make(chan struct{})
	s.rest = newHandedOver(l.Addr())
	s.followRest()
	s.watch.start(s)
	s.active++
	s.mu.Unlock()
	defer s.left()
	go func() { _ = s.Rest.Serve(s.rest) }()
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			if c := s.enter(nc); c != nil {
				go s.serve(c)
			}
			continue
		}
		if s.closing.Load() {
			return http.ErrServerClosed
		}
		// Out of file descriptors, for one, passes.
		if temporary, ok := err.(interface{ Temporary() bool }); !ok || !temporary.Temporary() {
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		time.Sleep(pause)
	}
}

// How long a connection without a request is still listened to when the server shuts down: a request on its
// way is answered rather than cut off. On a connection that is new one is more likely on its way than not.
const (
	lastRead  = 5 * time.Millisecond
	firstRead = time.Second
)

// lastWait is how long that is for one connection.
func (c *conn) lastWait() time.Duration {
	if c.called {
		return lastRead
	}
	return firstRead
}

// Shutdown takes no new connections, answers the requests that are in, and closes each connection
// behind its last answer. It blocks until all are closed or ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopListening()
	s.Rest.SetKeepAlivesEnabled(false) // it still takes what is handed over
	now := time.Now()
	s.mu.Lock()
	for c := range s.conns {
		switch by := now.Add(s.HeadTimeout); {
		case !c.begun: // Who is in a handler sees closing afterwards.
			_ = c.nc.SetReadDeadline(now.Add(c.lastWait()))
		case s.HeadTimeout > 0 && (c.readBy.IsZero() || by.Before(c.readBy)):
			c.readBy = by
			_ = c.nc.SetReadDeadline(by)
		}
	}
	gone := s.gone
	s.mu.Unlock()
	var err error
	if gone != nil {
		select {
		case <-gone:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	// Only now can no connection be handed over any more.
	err = errors.Join(err, s.Rest.Shutdown(ctx))
	s.stopWatch()
	return err
}

// Close closes all connections at once. Contexts of requests end with them.
func (s *Server) Close() error {
	s.stopListening()
	s.mu.Lock()
	s.cut = true
	for c := range s.conns {
		_ = c.nc.SetDeadline(time.Now())
		c.cancel()
	}
	s.mu.Unlock()
	err := s.Rest.Close()
	s.stopWatch()
	return err
}

func (s *Server) stopListening() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Swap(true) {
		return
	}
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.gone != nil && s.active == 0 {
		close(s.gone)
	}
}

func (s *Server) stopWatch() {
	s.mu.Lock()
	started := s.listener != nil
	s.mu.Unlock()
	if started {
		s.watch.stop()
	}
}

// conn is one connection and what its calls reuse.
type conn struct {
	server   *Server
	nc       net.Conn
	io       io.ReadWriter // its reads and writes
	accepted time.Time
	ctx      context.Context
	cancel   context.CancelFunc
	// since is when the handler was called, in nanoseconds, and 0 while none runs.
	since     atomic.Int64
	pipelined atomic.Bool // the next request is here while the handler runs
	begun     bool        // part of a request is there; guarded by the server's lock

	buf    []byte // what was read and not yet answered
	called bool   // there was a request before; changes under the server's lock
	fresh  *http.Request
	req    *http.Request
	url    url.URL
	head   head
	body   body
	out    response

	readBy, writeBy time.Time // deadlines that stand; readBy changes under the server's lock while begun
	ownWrite        bool      // writeBy is the handler's
}

const (
	firstBuffer = 4 << 10
	// keptHead is the longest head that is kept to know it again.
	keptHead = 2 << 10
	// maxRequest bounds a short call, head and body. A larger one costs more than net/http adds.
	maxRequest = 64 << 10
)

// enter makes a connection one of the server's. After Close it closes it and returns nil. While the server
// shuts down it is still served: its caller may have sent a request already.
func (s *Server) enter(nc net.Conn) *conn {
	c := &conn{server: s, nc: nc, io: nonblock.Of(nc), accepted: time.Now(), buf: make([]byte, 0, firstBuffer)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.fresh = (&http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: nc.RemoteAddr().String()}).WithContext(c.ctx)
	c.req = new(http.Request)
	c.head.fields = make(http.Header, 16)
	c.out.conn, c.out.header = c, make(http.Header, 16)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut {
		c.cancel()
		_ = nc.Close()
		return nil
	}
	s.conns[c] = struct{}{}
	s.active++
	return c
}

func (s *Server) serve(c *conn) {
	defer s.left()
	handed := c.answer()
	s.unwatch(c)
	if handed != nil && s.rest.hand(handed) {
		return // the context lives on for nobody: net/http has its own
	}
	c.cancel()
	_ = c.nc.Close()
}

// unwatch must come before the connection is closed or handed over: the watch looks at the descriptors of
// those in conns.
func (s *Server) unwatch(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *Server) left() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active--; s.active == 0 && s.closing.Load() {
		close(s.gone)
	}
}

// answer answers short calls until the connection ends. It returns the connection when net/http has to
// go on with it, nil when it is to be closed.
func (c *conn) answer() *handedConn {
	for {
		size, verdict, err := c.await()
		switch {
		case verdict == short:
		case verdict == long:
			if !c.lend(size) {
				return nil
			}
			continue
		case err != nil && len(c.buf) == 0:
			return nil // it left, or was idle for too long
		default:
			return c.handOver(err) // net/http knows what an unfinished request deserves, too
		}
		*c.req = *c.fresh
		c.req.URL = &c.url
		c.head.fill(c.req)
		c.body.Reset(c.buf[c.head.size:size])
		c.req.Body = &c.body
		if c.server.Takes != nil && !c.server.Takes(c.req) {
			if !c.lend(size) {
				return nil
			}
			continue
		}
		c.pipelined.Store(len(c.buf) > size)
		if !c.call() {
			return nil
		}
		if !c.called {
			c.setCalled()
		}
		c.keepLittle(size)
	}
}

// keepLittle drops what was answered, and memory that an idle connection should not hold.
func (c *conn) keepLittle(answered int) {
	left := c.buf[answered:]
	c.body.Reset(nil)
	if cap(c.buf) > firstBuffer && len(left) <= firstBuffer {
		c.buf = make([]byte, 0, firstBuffer)
	}
	c.buf = append(c.buf[:0], left...)
	if len(c.head.raw) > keptHead { // of which every string of the request is a part
		c.head.forget()
		*c.req, c.url = http.Request{}, url.URL{}
	}
	c.out.keepLittle()
}

// await reads until the buffer begins with a short call, or a long one, of so many bytes, or with something
// else.
func (c *conn) await() (size int, _ verdict, _ error) {
	size, verdict := c.head.parse(c.buf)
	if verdict.settled() {
		return size, verdict, nil
	}
	var began time.Time
	limited := short // what the standing deadline is for
	for {
		switch now := time.Now(); {
		case len(c.buf) > 0 && began.IsZero():
			began = now
			c.setBegun(true)
			defer c.setBegun(false)
			fallthrough
		case len(c.buf) > 0:
			if limited != verdict {
				c.limitRequest(verdict, began)
				limited = verdict
			}
		case c.called:
			c.limitIdle(now)
		default:
			c.limitFirst(now)
		}
		if err := c.read(); err != nil {
			return 0, verdict, err
		}
		if size, verdict = c.head.parse(c.buf); verdict.settled() {
			return size, verdict, nil
		}
	}
}

// read reads once, into room that it makes.
func (c *conn) read() error {
	if len(c.buf) == cap(c.buf) {
		c.buf = append(make([]byte, 0, min(2*cap(c.buf), maxRequest)), c.buf...)
	}
	n, err := c.io.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	if n > 0 {
		return nil
	}
	return err
}

// Setting a deadline costs as much as parsing a request. One that stands is left alone as long as it
// lies far enough ahead, which is why the timeouts of a Server may last half as long again.

func (c *conn) limitIdle(now time.Time) {
	limit := c.server.IdleTimeout
	ahead := c.readBy.Sub(now)
	switch {
	case limit == 0 && c.readBy.IsZero(), limit > 0 && ahead >= limit && ahead <= 2*limit:
	case limit == 0:
		c.setReadDeadline(time.Time{})
	default:
		c.setReadDeadline(now.Add(limit + limit/2))
	}
	if c.server.closing.Load() { // Shutdown's own deadline may just have been replaced, or not been set
		c.setReadDeadline(now.Add(c.lastWait()))
	}
}

// limitFirst is limitIdle for a connection that has sent nothing yet.
func (c *conn) limitFirst(now time.Time) {
	if limit := c.server.HeadTimeout; limit > 0 && !c.server.closing.Load() {
		c.setReadDeadline(c.accepted.Add(limit))
		if !c.server.closing.Load() {
			return
		}
	}
	c.limitIdle(now)
}

// limitRequest gives a request of which a part is there its time for the rest, during Shutdown too.
func (c *conn) limitRequest(missing verdict, began time.Time) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	var by time.Time
	earliest := func(at time.Time, limit time.Duration) {
		if at = at.Add(limit); limit > 0 && (by.IsZero() || at.Before(by)) {
			by = at
		}
	}
	earliest(began, s.ReadTimeout)
	if missing == partHead {
		if !c.called {
			began = c.accepted
		}
		earliest(began, s.HeadTimeout)
	}
	if s.closing.Load() {
		earliest(time.Now(), s.HeadTimeout)
	}
	c.setReadDeadline(by)
}

func (c *conn) setReadDeadline(at time.Time) {
	c.readBy = at
	_ = c.nc.SetReadDeadline(at)
}

func (c *conn) setCalled() {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.called = true
}

func (c *conn) setBegun(begun bool) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.begun = begun
}

func (c *conn) limitWrite() {
	limit := c.server.WriteTimeout
	if limit == 0 || c.ownWrite {
		return
	}
	if now := time.Now(); c.writeBy.Sub(now) < limit {
		c.writeBy = now.Add(limit + limit/2)
		_ = c.nc.SetWriteDeadline(c.writeBy)
	}
}

// call has the handler answer c.req and writes the answer. It reports whether the connection goes on.
func (c *conn) call() (again bool) {
	c.out.reset()
	if c.ownWrite {
		c.ownWrite, c.writeBy = false, time.Time{}
		_ = c.nc.SetWriteDeadline(time.Time{})
	}
	c.since.Store(c.server.watch.now())
	c.server.watch.arm()
	ended := c.handle()
	c.since.Store(0)
	// A caller that only will not send any more still gets its answer.
	return ended && c.out.finish() && c.ctx.Err() == nil
}

// handle reports whether the handler came to an end.
func (c *conn) handle() (ended bool) {
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				c.server.Logger.Error("a handler panicked", "panic", p, "stack", string(debug.Stack()))
			}
			ended = false
		}
	}()
	c.server.Handler.ServeHTTP(&c.out, c.req)
	return true
}

// handOver makes the connection net/http's, with what was read of it. err is what reading gave at last,
// if it ended.
func (c *conn) handOver(err error) *handedConn {
	_ = c.nc.SetDeadline(time.Time{})
	return &handedConn{Conn: c.nc, io: c.io, first: c.buf, err: err}
}
