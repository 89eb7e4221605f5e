package http1

import (
	"io"
	"net"
	"sync"
)

// handedConn is a connection of which some bytes were read already.
type handedConn struct {
	net.Conn
	io    io.ReadWriter // its reads and writes
	first []byte
	err   error // what comes after first, nil when the connection has more
}

func (c *handedConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		if c.first = c.first[n:]; len(c.first) == 0 {
			c.first = nil
		}
		return n, nil
	}
	if c.err != nil {
		return 0, c.err
	}
	return c.io.Read(p)
}

func (c *handedConn) Write(p []byte) (int, error) { return c.io.Write(p) }

// CloseWrite closes the writing half, as closeWrite does.
func (c *handedConn) CloseWrite() error { return closeWrite(c.Conn) }

// handedOver is the listener from which net/http takes what is handed over.
type handedOver struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	close sync.Once
}

func newHandedOver(addr net.Addr) *handedOver {
	return &handedOver{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// hand reports whether the connection was taken.
func (h *handedOver) hand(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.done:
		return false
	}
}

func (h *handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handedOver) Close() error {
	h.close.Do(func() { close(h.done) })
	return nil
}

func (h *handedOver) Addr() net.Addr { return h.addr }
