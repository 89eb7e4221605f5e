// Package http1 answers short HTTP/1.1 calls with less work than net/http, and leaves every other
// request to net/http.
//
// A short call is a request of the plainest form that came whole and is small: strict grammar, one
// Content-Length, no transfer coding, no expectation, nothing about the connection but to keep it. On
// the first request of a connection that is anything else, the connection goes to net/http for good,
// with all its bytes. So this package never has to interpret what is rare, ambiguous or hostile: a
// request that it answers means to net/http the same, which a fuzzer checks, and one that it does not
// understand is net/http's to refuse.
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
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/nonblock"
)

// Server serves HTTP/1.1. Its fields must not change once Serve is called.
type Server struct {
	// Handler answers short calls. Nothing of the request or the response writer may be used after
	// ServeHTTP returns: the next call reuses them. The response writer can be flushed, not hijacked, and
	// sends no trailers. As with net/http, the request's context ends when the caller is gone.
	Handler http.Handler
	// Takes says which short calls Handler answers; nil means all. It sees the request as Handler
	// would, with its body unread.
	Takes func(*http.Request) bool
	// Rest serves everything else. Its Handler need not be the same. It must have no TLSConfig.
	Rest *http.Server
	// ReadTimeout bounds how long a request that has begun may take to come whole; 0 does not.
	ReadTimeout time.Duration
	// WriteTimeout bounds how long the answer may take to be written, to half of it more; 0 does not.
	WriteTimeout time.Duration
	// IdleTimeout is how long a connection may wait for the next request, to half of it more; 0 is no
	// limit.
	IdleTimeout time.Duration
	// Logger is told of handlers that panic.
	Logger *slog.Logger

	rest    *handedOver
	serving sync.WaitGroup // connections
	closing atomic.Bool

	mu       sync.Mutex
	listener net.Listener
	conns    map[*conn]struct{}

	watch watch
}

// Serve accepts connections until Shutdown or Close, and then returns http.ErrServerClosed. It may be
// called once.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.listener, s.conns = l, map[*conn]struct{}{}
	s.rest = newHandedOver(l.Addr())
	s.watch.start(s)
	s.mu.Unlock()
	go func() { _ = s.Rest.Serve(s.rest) }()
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			s.serving.Add(1)
			go s.serve(nc)
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

// lastRead is how long a connection that waits for its next request is still listened to when the
// server shuts down: a request on its way is answered rather than cut off.
const lastRead = 5 * time.Millisecond

// Shutdown takes no new connections, answers the requests that are in, and closes each connection
// behind its last answer. It blocks until all are closed or ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopListening()
	s.mu.Lock()
	for c := range s.conns {
		if !c.begun { // Who is in a handler sees closing afterwards.
			_ = c.nc.SetReadDeadline(time.Now().Add(lastRead))
		}
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	// Only now can no connection be handed over any more.
	err = errors.Join(err, s.Rest.Shutdown(ctx))
	s.watch.stop()
	return err
}

// Close closes all connections at once. Contexts of requests end with them.
func (s *Server) Close() error {
	s.stopListening()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.nc.SetDeadline(time.Now())
		c.cancel()
	}
	s.mu.Unlock()
	err := s.Rest.Close()
	s.watch.stop()
	return err
}

func (s *Server) stopListening() {
	s.closing.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		_ = s.listener.Close()
	}
}

// conn is one connection and what its calls reuse.
type conn struct {
	server *Server
	nc     net.Conn
	io     io.ReadWriter // its reads and writes
	ctx    context.Context
	cancel context.CancelFunc
	// since is when the handler was called, in nanoseconds, and 0 while none runs.
	since atomic.Int64
	begun bool // part of a request is there; guarded by the server's lock

	buf  []byte // what was read and not yet answered
	req  *http.Request
	head head
	body body
	out  response

	readBy, writeBy time.Time // deadlines that stand
}

const (
	firstBuffer = 4 << 10
	// keptBuffer is the largest buffer that a connection keeps between its calls.
	keptBuffer = 16 << 10
	// maxRequest bounds a short call, head and body. A larger one costs more than net/http adds.
	maxRequest = 64 << 10
)

func (s *Server) serve(nc net.Conn) {
	defer s.serving.Done()
	c := &conn{server: s, nc: nc, io: nonblock.Of(nc), buf: make([]byte, 0, firstBuffer)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.req = (&http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: nc.RemoteAddr().String()}).WithContext(c.ctx)
	c.head.fields = make(http.Header, 16)
	c.out.conn, c.out.header = c, make(http.Header, 16)
	s.enter(c)
	handed := c.answer()
	s.leave(c)
	if handed != nil {
		if s.rest.hand(handed) {
			return // the context lives on for nobody: net/http has its own
		}
		nc = handed
	}
	c.cancel()
	_ = nc.Close()
}

func (s *Server) enter(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
}

// leave must come before the connection is closed or handed over: the watch looks at the descriptors
// of those that are in.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// answer answers short calls until the connection ends. It returns the connection when net/http has to
// go on with it, nil when it is to be closed.
func (c *conn) answer() *handedConn {
	for {
		size, verdict, err := c.await()
		switch {
		case verdict == short:
		case err != nil && len(c.buf) == 0:
			return nil // it left, or was idle for too long
		default:
			return c.handOver(err) // net/http knows what an unfinished request deserves, too
		}
		c.head.fill(c.req)
		c.body.Reset(c.buf[c.head.size:size])
		c.req.Body = &c.body
		if c.server.Takes != nil && !c.server.Takes(c.req) {
			return c.handOver(nil)
		}
		if !c.call() {
			return nil
		}
		left := c.buf[size:]
		if cap(c.buf) > keptBuffer && len(left) <= firstBuffer {
			c.buf = make([]byte, 0, firstBuffer)
		}
		c.buf = append(c.buf[:0], left...)
	}
}

// await reads until the buffer begins with a short call of so many bytes, or with something else.
func (c *conn) await() (size int, _ verdict, _ error) {
	size, verdict := c.head.parse(c.buf)
	if verdict != incomplete {
		return size, verdict, nil
	}
	begun := false
	for {
		if now := time.Now(); len(c.buf) == 0 {
			c.limitIdle(now)
		} else if !begun {
			begun = true
			c.setBegun(now)
			defer c.clearBegun()
		}
		if err := c.read(); err != nil {
			return 0, incomplete, err
		}
		if size, verdict = c.head.parse(c.buf); verdict != incomplete {
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
		return
	case limit == 0:
		c.readBy = time.Time{}
	default:
		c.readBy = now.Add(limit + limit/2)
	}
	_ = c.nc.SetReadDeadline(c.readBy)
	if c.server.closing.Load() { // Shutdown's own deadline may just have been replaced
		_ = c.nc.SetReadDeadline(now.Add(lastRead))
	}
}

// setBegun gives a request of which a part is there ReadTimeout for the rest, during Shutdown too.
func (c *conn) setBegun(now time.Time) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.begun, c.readBy = true, time.Time{}
	if limit := c.server.ReadTimeout; limit > 0 {
		c.readBy = now.Add(limit)
	}
	_ = c.nc.SetReadDeadline(c.readBy)
}

func (c *conn) clearBegun() {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.begun = false
}

func (c *conn) limitWrite() {
	limit := c.server.WriteTimeout
	if limit == 0 {
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
	c.since.Store(c.server.watch.now())
	c.server.watch.arm()
	ended := c.handle()
	c.since.Store(0)
	return ended && c.ctx.Err() == nil && c.out.finish()
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
