package http1

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// lentConn is a connection as net/http sees it for one request whose length is known: it ends behind
// that request. What comes after is read only to learn that the caller is gone, and kept for whoever
// has the connection next.
type lentConn struct {
	net.Conn
	io    io.ReadWriter // its reads and writes
	first []byte        // of the request, what was read already
	left  int           // of it, what was not
	// done is closed when net/http is through with the connection.
	done chan struct{}

	mu       sync.Mutex
	changed  *sync.Cond
	after    []byte // what was read behind the request
	answered bool   // and the connection goes on
	hijacked bool
	ended    bool // net/http closed it
	readBy   time.Time
}

// lend has net/http answer the request of size bytes that c.buf begins with. It reports whether the
// connection goes on.
func (c *conn) lend(size int) (again bool) {
	here := min(size, len(c.buf))
	l := &lentConn{Conn: c.nc, io: c.io, first: c.buf[:here:here], left: size - here, after: c.buf[here:], done: make(chan struct{})}
	l.changed = sync.NewCond(&l.mu)
	s := c.server
	s.unwatch(c) // the deadlines are net/http's meanwhile
	_ = c.nc.SetDeadline(time.Time{})
	if !s.rest.hand(l) {
		return false
	}
	<-l.done
	if !l.answered || !s.watchAgain(c) {
		return false
	}
	_ = c.nc.SetDeadline(time.Time{})
	c.readBy, c.writeBy, c.ownWrite = time.Time{}, time.Time{}, false
	if !c.called {
		c.setCalled()
	}
	c.buf = append(c.buf[:0], l.after...)
	c.keepLittle(0)
	return true
}

// watchAgain undoes unwatch, and reports whether the connection is still wanted.
func (s *Server) watchAgain(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.cut {
		s.conns[c] = struct{}{}
	}
	return !s.cut
}

// followRest has connections that are lent learn from net/http how far it is with them.
func (s *Server) followRest() {
	before := s.Rest.ConnState
	s.Rest.ConnState = func(c net.Conn, state http.ConnState) {
		if l, ok := c.(*lentConn); ok {
			l.follow(state)
		}
		if before != nil {
			before(c, state)
		}
	}
}

// follow is told by net/http how far it is with the connection.
func (l *lentConn) follow(state http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch state {
	case http.StateIdle:
		l.answered = l.left == 0 && len(l.first) == 0
	case http.StateHijacked:
		l.hijacked = true
	}
	l.changed.Broadcast()
}

// Read is net.Conn's. Behind the request it blocks until net/http wants no more, or the caller is gone.
func (l *lentConn) Read(p []byte) (int, error) {
	switch {
	case len(l.first) > 0:
		n := copy(p, l.first)
		l.first = l.first[n:]
		return n, nil
	case l.left > 0:
		n, err := l.io.Read(p[:min(len(p), l.left)])
		l.left -= n
		return n, err
	}
	if err := l.readAfter(); err != nil {
		return 0, err
	}
	// Hijacked: everything is the handler's.
	if len(l.after) > 0 {
		n := copy(p, l.after)
		l.after = l.after[n:]
		return n, nil
	}
	return l.io.Read(p)
}

// readAfter returns nil only when the connection is hijacked.
func (l *lentConn) readAfter() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.hijacked:
			return nil
		case l.answered, l.ended:
			return io.EOF
		case !l.readBy.IsZero() && !time.Now().Before(l.readBy):
			return os.ErrDeadlineExceeded // which is how net/http ends a read that it has begun
		case len(l.after) > 0:
			l.changed.Wait()
			continue
		}
		room := make([]byte, 512)
		l.mu.Unlock()
		n, err := l.io.Read(room)
		l.mu.Lock()
		if l.after = room[:n]; n == 0 {
			return err
		}
	}
}

// Write is net.Conn's.
func (l *lentConn) Write(p []byte) (int, error) { return l.io.Write(p) }

// SetReadDeadline is net.Conn's, but for a future deadline while Read waits behind the request.
func (l *lentConn) SetReadDeadline(at time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended { // by Shutdown, while net/http was about to wait for the next request
		return net.ErrClosed
	}
	l.readBy = at
	l.changed.Broadcast()
	return l.Conn.SetReadDeadline(at)
}

// SetDeadline is net.Conn's.
func (l *lentConn) SetDeadline(at time.Time) error {
	if err := l.SetReadDeadline(at); err != nil {
		return err
	}
	return l.SetWriteDeadline(at)
}

// CloseWrite is as a handedConn's.
func (l *lentConn) CloseWrite() error { return closeWrite(l.Conn) }

// Close gives the connection back. Only whoever lent it closes it, or a handler that hijacked it.
func (l *lentConn) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil
	}
	l.ended = true
	l.changed.Broadcast()
	if !l.answered { // nothing may be left in a read or write on it
		_ = l.Conn.SetDeadline(time.Unix(1, 0))
	}
	close(l.done)
	return nil
}

// closeWrite is what net/http calls when it does not read the rest of a request: the answer then arrives
// before the connection is reset.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
