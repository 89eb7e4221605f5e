package http1

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// watchEvery is how long a caller may be gone before the context of its request ends.
	watchEvery = 20 * time.Millisecond
	// watchIdle is how long the watch keeps ticking when no handler runs.
	watchIdle = 250 * time.Millisecond
)

// watch ends the contexts of requests whose callers are gone. net/http reads ahead on each connection
// while its handler runs, which costs every call what only the long ones need. This looks at those that
// run for longer than watchEvery, with one system call for all, and takes no byte from them.
type watch struct {
	began  time.Time
	armed  atomic.Bool
	alarm  chan struct{}
	done   chan struct{}
	closed sync.Once
	ended  chan struct{}
}

func (w *watch) start(s *Server) {
	w.began, w.alarm, w.done, w.ended = time.Now(), make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go w.run(s)
}

// stop blocks until the watch has ended, which start has begun.
func (w *watch) stop() {
	w.closed.Do(func() { close(w.done) })
	<-w.ended
}

// now is never 0.
func (w *watch) now() int64 { return int64(time.Since(w.began)) | 1 }

func (w *watch) arm() {
	if !w.armed.Load() && w.armed.CompareAndSwap(false, true) {
		select {
		case w.alarm <- struct{}{}:
		default:
		}
	}
}

func (w *watch) run(s *Server) {
	defer close(w.ended)
	for {
		select {
		case <-w.alarm:
		case <-w.done:
			return
		}
		ticker := time.NewTicker(watchEvery)
		for quiet := time.Duration(0); quiet < watchIdle; {
			select {
			case <-ticker.C:
			case <-w.done:
				ticker.Stop()
				return
			}
			if quiet += watchEvery; w.look(s) {
				quiet = 0
			}
		}
		ticker.Stop()
		w.armed.Store(false)
		if w.look(s) { // a handler that began meanwhile found the watch armed
			w.arm()
		}
	}
}

// look ends the contexts of those that are gone, and reports whether a handler runs.
func (w *watch) look(s *Server) (busy bool) {
	before := w.now() - int64(watchEvery)
	var conns []*conn
	var polled []unix.PollFd
	s.mu.Lock()
	// The lock is held throughout: nobody closes a descriptor that is looked at.
	defer s.mu.Unlock()
	for c := range s.conns {
		since := c.since.Load()
		if busy = busy || since != 0; since == 0 || since > before {
			continue
		}
		if fd, ok := descriptor(c.nc); ok {
			conns = append(conns, c)
			polled = append(polled, unix.PollFd{Fd: int32(fd), Events: unix.POLLRDHUP})
		}
	}
	if len(polled) == 0 {
		return busy
	}
	if n, err := unix.Poll(polled, 0); err != nil || n == 0 {
		return busy
	}
	for i, p := range polled {
		switch {
		case p.Revents&(unix.POLLHUP|unix.POLLERR) != 0:
			conns[i].cancel()
		case p.Revents&unix.POLLRDHUP != 0 && !conns[i].pipelined.Load() && !unread(int(p.Fd)):
			conns[i].cancel() // as net/http does, which takes the end of what a caller sends for its going
		}
	}
	return busy
}

// unread reports whether there are bytes before the end of what the caller sent: another request.
func unread(fd int) bool {
	var first [1]byte
	n, _, err := unix.Recvfrom(fd, first[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil && n > 0
}

func descriptor(nc net.Conn) (fd uintptr, ok bool) {
	sc, isSyscall := nc.(syscall.Conn)
	if !isSyscall {
		return 0, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, false
	}
	err = raw.Control(func(n uintptr) { fd = n })
	return fd, err == nil
}
