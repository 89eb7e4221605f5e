// Package upstream carries an HTTP request to a function's process or container and its answer back, by
// one of two ways.
//
// A small request goes over a link (see watchdog/link), where calls that are ready together share their
// system calls.
//
// What streams, is large, or finds no link goes over HTTP/1.1, by a client of our own: net/http's
// Transport reads and writes each connection in goroutines of its own, two hand-overs a call, which
// costs more than everything else on this path. Here the caller's goroutine writes the request and
// reads the answer on a pooled connection, on a Unix socket or over TCP. Only a body too large to buffer gets a second
// goroutine, because then both directions stream at once.
//
// No function, name or route may enter here: a Pool knows one process or container.
package upstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// ErrClosed is what a Pool's calls give after Close.
var ErrClosed = errors.New("upstream pool closed")

const (
	readBufferBytes  = 8 << 10
	writeBufferBytes = 4 << 10
	dialTimeout      = 5 * time.Second

	// surelyOpen is how long an idle connection is used without looking whether it is still open.
	// The look costs a system call; without it a closed one is found at the write, which is safe too.
	surelyOpen = 50 * time.Millisecond

	// idleOverTCP is how long a TCP connection is kept idle: less than fwatchdog keeps it, so that
	// the two do not cross. On a Unix socket it is safe when they do.
	idleOverTCP = 20 * time.Second
)

// Pool holds the connections to one process or container.
type Pool struct {
	network, address string // as net.Dial takes them
	maxIdle          int
	links            links

	mu     sync.Mutex
	idle   []*conn // the last one was used last
	closed bool
}

// NewPool returns a Pool for the process that serves HTTP on the Unix socket at the path socket. It
// keeps at most maxIdle idle connections and opens none yet. linkSocket is where the process takes
// links, "" for nowhere.
func NewPool(socket, linkSocket string, maxIdle int) *Pool {
	return &Pool{network: "unix", address: socket, maxIdle: maxIdle, links: links{network: "unix", address: linkSocket}}
}

// NewTCPPool is NewPool for a container that serves HTTP, and takes links, at address, HOST:PORT.
func NewTCPPool(address string, maxIdle int) *Pool {
	return &Pool{network: "tcp", address: address, maxIdle: maxIdle, links: links{network: "tcp", address: address}}
}

// Close closes the idle connections and the link, and connections in use when their call ends. Safe
// to call twice.
func (p *Pool) Close() {
	p.links.close()
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, c := range idle {
		c.Close()
	}
}

type conn struct {
	net.Conn
	raw    syscall.RawConn
	remote bool // over TCP: see broken
	r      *bufio.Reader
	w      *bufio.Writer
	reused bool

	idleSince time.Time
}

// get returns an idle connection that its peer has not closed, or a new one.
func (p *Pool) get(ctx context.Context) (*conn, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, ErrClosed
		}
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return p.dial(ctx)
		}
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if c.usable(time.Since(c.idleSince)) {
			c.reused = true
			return c, nil
		}
		c.Close()
	}
}

// dial opens a connection of its own, whatever is idle.
func (p *Pool) dial(ctx context.Context) (*conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	nc, err := dialer.DialContext(ctx, p.network, p.address)
	if err != nil {
		return nil, fmt.Errorf("connect to function: %w", err)
	}
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("connect to function: %w", err)
	}
	return &conn{
		Conn:   nc,
		raw:    raw,
		remote: p.network == "tcp",
		r:      bufio.NewReaderSize(nc, readBufferBytes),
		w:      bufio.NewWriterSize(nc, writeBufferBytes),
	}, nil
}

// put makes the connection idle again. Its last answer must have been read to the end.
func (p *Pool) put(c *conn) {
	if c.r.Buffered() == 0 {
		c.idleSince = time.Now()
		p.mu.Lock()
		if !p.closed && len(p.idle) < p.maxIdle {
			p.idle = append(p.idle, c)
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
	c.Close()
}

// usable reports whether a connection that was idle for so long can carry a call. Over TCP that is always
// looked at: a write to a connection that its peer has closed succeeds there.
func (c *conn) usable(idle time.Duration) bool {
	if c.remote {
		return idle < idleOverTCP && c.quiet()
	}
	return idle < surelyOpen || c.quiet()
}

// quiet reports whether an idle connection is still open with nothing to read: bytes that nobody
// asked for would be taken for the next answer.
func (c *conn) quiet() bool {
	open := false
	err := c.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		open = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && open
}
