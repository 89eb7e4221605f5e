// Package upstream carries an HTTP request to a process of this machine and its answer back, by one
// of two ways.
//
// A small request goes over a link (see watchdog/link), where calls that are ready together share
// their system calls.
//
// What streams, is large, or finds no link goes over HTTP/1.1, by a client of our own: net/http's
// Transport reads and writes each connection in goroutines of its own, two hand-overs a call, which
// costs more than everything else on this path. Here the caller's goroutine writes the request and
// reads the answer on a pooled Unix-socket connection. Only a body too large to buffer gets a second
// goroutine, because then both directions stream at once.
//
// No function, name or route may enter here: a Pool knows one process.
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
)

// Pool holds the connections to one process.
type Pool struct {
	socket  string
	maxIdle int
	links   links

	mu     sync.Mutex
	idle   []*conn // the last one was used last
	closed bool
}

// NewPool returns a Pool for the process that serves HTTP on the Unix socket at the path socket. It
// keeps at most maxIdle idle connections and opens none yet. linkSocket is where the process takes
// links, "" for nowhere.
func NewPool(socket, linkSocket string, maxIdle int) *Pool {
	return &Pool{socket: socket, maxIdle: maxIdle, links: links{socket: linkSocket}}
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
	*net.UnixConn
	raw    syscall.RawConn
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
		if time.Since(c.idleSince) < surelyOpen || c.quiet() {
			c.reused = true
			return c, nil
		}
		c.Close()
	}
}

// dial opens a connection of its own, whatever is idle.
func (p *Pool) dial(ctx context.Context) (*conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	nc, err := dialer.DialContext(ctx, "unix", p.socket)
	if err != nil {
		return nil, fmt.Errorf("connect to function: %w", err)
	}
	uc := nc.(*net.UnixConn)
	raw, err := uc.SyscallConn()
	if err != nil {
		uc.Close()
		return nil, fmt.Errorf("connect to function: %w", err)
	}
	return &conn{
		UnixConn: uc,
		raw:      raw,
		r:        bufio.NewReaderSize(uc, readBufferBytes),
		w:        bufio.NewWriterSize(uc, writeBufferBytes),
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
