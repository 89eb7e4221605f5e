package nonblock

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func socketPair(t testing.TB, network string) (a, b net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			accepted <- c
		}
	}()
	if a, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	b = <-accepted
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// pipe is a FIFO as runners' channels are.
func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if r, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		t.Fatal(err)
	}
	if w, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func TestEverythingArrivesInOrder(t *testing.T) {
	sent := make([]byte, 5<<20)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(sent)
	for _, kind := range []string{"tcp", "unix", "fifo"} {
		t.Run(kind, func(t *testing.T) {
			var from, to syscall.Conn
			var closer io.Closer
			if kind == "fifo" {
				r, w := pipe(t)
				from, to, closer = r, w, w
			} else {
				a, b := socketPair(t, kind)
				from, to, closer = a.(syscall.Conn), b.(syscall.Conn), b
			}
			r, err := New(from)
			if err != nil {
				t.Fatal(err)
			}
			w, err := New(to)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer closer.Close()
				for at := 0; at < len(sent); {
					end := min(at+1+rand.IntN(300_000), len(sent))
					if n, err := w.Write(sent[at:end]); err != nil || n != end-at {
						t.Errorf("wrote %d of %d: %v", n, end-at, err)
						return
					}
					at = end
				}
			}()
			got, err := io.ReadAll(r) // to the end of the file
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d of %d bytes, %v", len(got), len(sent), err)
			}
		})
	}
}

func TestWaitingEndsWithTheDeadlineAndWithTheConnection(t *testing.T) {
	a, _ := socketPair(t, "unix")
	f := Of(a)
	buf := make([]byte, 1)
	_ = a.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := f.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	much := make([]byte, 64<<20)
	_ = a.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := f.Write(much); !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
		t.Error(n, err)
	}
	_ = a.SetDeadline(time.Time{})
	go func() {
		time.Sleep(20 * time.Millisecond)
		a.Close()
	}()
	if _, err := f.Read(buf); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := f.Write(buf); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestAPeerThatIsGoneIsAnError(t *testing.T) {
	a, b := socketPair(t, "unix")
	f := Of(a)
	b.Close()
	if n, err := f.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Error(n, err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Error(err)
	}
	if n, err := f.Read(nil); n != 0 || err != nil {
		t.Error(n, err)
	}
}

func TestWhatHasNoDescriptorKeepsItsMethods(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Of(a) != io.ReadWriter(a) {
		t.Error("another")
	}
}

// BenchmarkEcho is a byte there and back; net is the connection's own methods.
func BenchmarkEcho(b *testing.B) {
	for name, of := range map[string]func(net.Conn) io.ReadWriter{"nonblock": Of, "net": func(c net.Conn) io.ReadWriter { return c }} {
		b.Run(name, func(b *testing.B) {
			near, far := socketPair(b, "unix")
			go func() {
				f, buf := of(far), make([]byte, 1)
				for {
					if _, err := f.Read(buf); err != nil {
						return
					}
					if _, err := f.Write(buf); err != nil {
						return
					}
				}
			}()
			f, buf := of(near), make([]byte, 1)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = f.Write(buf)
				_, _ = f.Read(buf)
			}
		})
	}
}
