package process

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// launcher starts every child from one operating-system thread that lives as long as it does, for
// two reasons: a child's parent-death signal is about the thread that started it, not the process,
// and no_new_privs set on this thread is inherited by the children and by nothing else.
type launcher struct {
	requests chan launchRequest
	done     chan struct{}
}

type launchRequest struct {
	start func() error
	err   chan error
}

func newLauncher() *launcher {
	l := &launcher{requests: make(chan launchRequest), done: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		for {
			select {
			case r := <-l.requests:
				r.err <- r.start()
			case <-l.done:
				return
			}
		}
	}()
	return l
}

// start calls the function, which starts a child, on the thread.
func (l *launcher) start(start func() error) error {
	r := launchRequest{start, make(chan error, 1)}
	l.requests <- r
	return <-r.err
}

// close ends the thread, and with it sends the children their parent-death signal: stop them first.
func (l *launcher) close() { close(l.done) }
