// Package nonblock reads and writes descriptors that never block without telling the scheduler.
//
// Go announces each system call, so that another thread can take over the processor should the call
// last. On sockets and pipes in non-blocking mode no call waits, but many last longer than the 20 µs after
// which the runtime's monitor begins to take processors away: a write to a TCP socket on the same
// machine does the receiver's work too. Where a program keeps to few processors, as fwatchdog does, it
// then spends more on threads that wake each other, and on the monitor that looks every 20 µs, than on
// what it was asked: two fifths of its time in streams, on a virtual machine with two cores.
//
// Waiting is still the runtime's: deadlines, closing and other goroutines are as with the connection's own
// methods.
package nonblock

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// Of returns a connection's reads and writes by a File, or by its own methods if it has no descriptor.
func Of(c net.Conn) io.ReadWriter {
	if sc, ok := c.(syscall.Conn); ok {
		if f, err := New(sc); err == nil {
			return f
		}
	}
	return c
}

// most is the largest part of a read or write that is done in one call: while it lasts, nobody can have
// the processor, the collector neither. Copying it takes some ten microseconds.
const most = 64 << 10

// File reads and writes. One goroutine may read while another writes; Close and deadlines stay with what
// it was made of.
type File struct {
	raw     syscall.RawConn
	in, out transfer
}

// transfer is one call. It is kept, with its function, so that a call allocates nothing.
type transfer struct {
	call func(fd uintptr) bool
	trap uintptr
	p    []byte
	n    int
	err  error
}

// New returns a File for a connection or pipe that is in non-blocking mode, as those of packages net and
// os are.
func New(c syscall.Conn) (*File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	f := &File{raw: raw}
	f.in.init(syscall.SYS_READ)
	f.out.init(syscall.SYS_WRITE)
	return f, nil
}

func (t *transfer) init(trap uintptr) {
	t.trap = trap
	t.call = func(fd uintptr) bool {
		for {
			n, _, errno := syscall.RawSyscall(t.trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.p))), uintptr(len(t.p)))
			switch errno {
			case 0:
				t.n, t.err = int(n), nil
				return true
			case syscall.EINTR:
			case syscall.EAGAIN:
				return false
			default:
				t.n, t.err = 0, errno
				return true
			}
		}
	}
}

// Read is io.Reader's.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	f.in.p = p[:min(len(p), most)]
	err := f.raw.Read(f.in.call)
	f.in.p = nil
	switch {
	case err != nil:
		return 0, err
	case f.in.err != nil:
		return 0, os.NewSyscallError("read", f.in.err)
	case f.in.n == 0:
		return 0, io.EOF
	}
	return f.in.n, nil
}

// Write is io.Writer's.
func (f *File) Write(p []byte) (written int, err error) {
	for written < len(p) {
		f.out.p = p[written:min(len(p), written+most)]
		err := f.raw.Write(f.out.call)
		f.out.p = nil
		if err == nil && f.out.err != nil {
			err = os.NewSyscallError("write", f.out.err)
		}
		if err != nil {
			return written, err
		}
		written += f.out.n
	}
	return written, nil
}
