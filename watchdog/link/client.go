package link

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faas-predict/faas-predict/watchdog/nonblock"
)

// Call is a request with its whole body.
type Call struct {
	Method, Target, Host string
	Header               http.Header // keys in canonical form; not kept
	Body                 []byte      // not kept
}

// Answer is a response with its whole body.
type Answer struct {
	Status  int
	kind    kind
	payload []byte
}

// Read fills header and returns the body, which shares no memory with anything else.
func (a *Answer) Read(header http.Header) ([]byte, error) {
	d := decoder{text: string(a.payload)}
	d.header(header)
	if d.bad {
		return nil, fmt.Errorf("%w: headers of an answer", errFrame)
	}
	return a.payload[d.at:], nil
}

// Client is the caller's end of a link. Any number of goroutines may call at once.
type Client struct {
	w writer

	mu      sync.Mutex
	waiting map[uint64]chan Answer
	last    uint64
	broken  error         // why no call can begin
	done    chan struct{} // the reader ended
}

// unacknowledged is how long a machine may leave bytes unacknowledged: one that is gone says nothing, and would hold
// calls for a quarter of an hour.
const unacknowledged = 10 * time.Second

// Dial asks the watchdog at an address, "unix" or "tcp" as for net.Dial, for a link.
func Dial(ctx context.Context, network, address string) (*Client, error) {
	dialer := net.Dialer{Control: func(network, _ string, c syscall.RawConn) (err error) {
		if strings.HasPrefix(network, "tcp") {
			controlErr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged.Milliseconds()))
			})
			err = errors.Join(err, controlErr)
		}
		return err
	}}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("open link: %w", err)
	}
	unwatch := context.AfterFunc(ctx, func() { conn.Close() })
	direct := nonblock.Of(conn)
	r := bufio.NewReaderSize(direct, 64<<10)
	if _, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: function\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Path, Protocol); err == nil {
		err = readUpgrade(r)
	}
	if !unwatch() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open link: %w", err)
	}
	c := &Client{w: writer{conn: conn, to: direct}, waiting: map[uint64]chan Answer{}, done: make(chan struct{})}
	go c.read(r)
	return c, nil
}

// readUpgrade reads the answer to a request for a link. What follows it is frames, so there is no
// body to close.
func readUpgrade(r *bufio.Reader) error {
	res, err := http.ReadResponse(r, nil) //nolint:bodyclose // see above
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("refused with %s", res.Status)
	}
	return nil
}

var (
	errLeaving = errors.New("the watchdog is shutting down")
	errRetired = errors.New("the link is given up")
)

// Broken reports whether no more calls can begin. The link then closes by itself when those that are out are
// answered.
func (c *Client) Broken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken != nil
}

// Retire lets no call begin any more. The link closes once those that are out are answered. Safe to call twice.
func (c *Client) Retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken == nil {
		c.broken = errRetired
	}
	c.closeUnused()
}

// closeUnused closes a link on which no call can begin and none is out. The caller holds c.mu.
func (c *Client) closeUnused() {
	if c.broken != nil && len(c.waiting) == 0 {
		c.w.conn.Close()
	}
}

// Close ends the link; calls that are out give ErrBroken. Safe to call twice.
func (c *Client) Close() {
	c.w.conn.Close()
	<-c.done
}

var answers = sync.Pool{New: func() any { return make(chan Answer, 1) }}

// Do sends the call and waits for its answer. When ctx ends first, the watchdog is told, and the
// error is ctx's. ErrUnsent means that nothing ran; after ErrBroken it may have.
func (c *Client) Do(ctx context.Context, call *Call) (Answer, error) {
	answer := answers.Get().(chan Answer)
	c.mu.Lock()
	if c.broken != nil {
		defer c.mu.Unlock()
		return Answer{}, fmt.Errorf("%w: %w", ErrUnsent, c.broken)
	}
	c.last++
	id := c.last
	c.waiting[id] = answer
	c.mu.Unlock()

	b, err := c.w.lock()
	if err != nil {
		c.forget(id)
		return Answer{}, fmt.Errorf("%w: %w", ErrUnsent, err)
	}
	start := len(b)
	b = begin(b, kindCall, 0, id)
	b = appendString(appendString(appendString(b, call.Method), call.Target), call.Host)
	b = append(appendHeader(b, call.Header), call.Body...)
	if len(b)-start > MaxCall {
		c.w.unlock(b[:start])
		c.forget(id)
		return Answer{}, fmt.Errorf("%w: %d bytes are too many for a link", ErrUnsent, len(b)-start)
	}
	c.w.unlock(end(b, start))

	select {
	case a, ok := <-answer:
		if !ok {
			return Answer{}, ErrBroken
		}
		answers.Put(answer)
		switch a.kind {
		case kindAnswer:
			return a, nil
		case kindRefuse:
			return Answer{}, fmt.Errorf("%w: %w", ErrUnsent, errLeaving)
		}
		return Answer{}, fmt.Errorf("%w: the call was aborted", ErrBroken)
	case <-ctx.Done():
		if c.forget(id) {
			if b, err := c.w.lock(); err == nil {
				c.w.unlock(begin(b, kindCancel, 0, id))
			}
		}
		return Answer{}, ctx.Err()
	}
}

// forget reports whether nobody had answered yet.
func (c *Client) forget(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, waited := c.waiting[id]
	delete(c.waiting, id)
	c.closeUnused()
	return waited
}

func (c *Client) read(r *bufio.Reader) {
	defer close(c.done)
	var err error
	for {
		c.mu.Lock()
		leaving := c.broken != nil && len(c.waiting) == 0
		c.mu.Unlock()
		if leaving {
			err = errLeaving
			break
		}
		var f frame
		if f, err = readFrame(r, MaxAnswer); err != nil {
			break
		}
		if f.kind == kindRefuse && f.id == everyCall {
			c.mu.Lock()
			c.broken = errLeaving // nobody begins a call any more
			c.mu.Unlock()
			continue
		}
		if f.kind != kindAnswer && f.kind != kindAbort && f.kind != kindRefuse {
			err = fmt.Errorf("%w: kind %d", errFrame, f.kind)
			break
		}
		if f.kind == kindAnswer && (f.status < 200 || f.status > 999) {
			err = fmt.Errorf("%w: status %d", errFrame, f.status)
			break
		}
		c.mu.Lock()
		answer := c.waiting[f.id]
		delete(c.waiting, f.id)
		c.mu.Unlock()
		if answer != nil {
			answer <- Answer{f.status, f.kind, f.payload} // has room: nobody else sends to it
		}
	}
	c.w.fail(err)
	c.w.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = err
	for id, answer := range c.waiting {
		close(answer)
		delete(c.waiting, id)
	}
}
