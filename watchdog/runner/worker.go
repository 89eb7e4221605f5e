package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faas-predict/faas-predict/watchdog/nonblock"
	"github.com/faas-predict/faas-predict/watchdog/wire"
)

// logGrace is how long the log streams of a worker that is gone are still read: until their end,
// unless a process that left the worker's group holds them open.
const logGrace = time.Second

// Worker is a process that answers requests. One goroutine reads with Next; writes and the rest are
// safe for concurrent use.
type Worker struct {
	ID      uint64
	Journal *Journal // nil when the runner keeps none
	Batch   bool     // the model defines predict_batch
	Runs    bool     // it takes requests that are written together as one frame

	zygote  *Zygote
	slot    int
	pid     atomic.Int64 // 0 until it is up
	group   atomic.Int64 // the process group it leads; 0 until FORKED
	in      *os.File
	out     *os.File
	to      *nonblock.File // writes to in
	frames  *frameReader
	started sync.Once
	holds   []*os.File // writing ends, held until the worker has opened its own
	logs    sync.WaitGroup
	logEnds []*os.File
	gone    chan struct{} // closed when the process was reaped
	code    int
}

func newWorker(z *Zygote, id uint64, slot int) (*Worker, error) {
	w := &Worker{ID: id, zygote: z, slot: slot, gone: make(chan struct{}), Journal: z.journal.slot(slot)}
	base := filepath.Join(z.dir, strconv.FormatUint(id, 10))
	var err error
	fail := func(err error) (*Worker, error) {
		w.closeHolds()
		for _, f := range append([]*os.File{w.in, w.out}, w.logEnds...) {
			if f != nil {
				f.Close()
			}
		}
		return nil, err
	}
	if w.in, err = makeFIFO(base+".in", os.O_RDWR); err != nil {
		return fail(err)
	}
	if w.out, err = w.makeReadEnd(base + ".out"); err != nil {
		return fail(err)
	}
	for _, f := range []*os.File{w.in, w.out} {
		// Unprivileged processes have a budget for this; without it the pipe is only smaller.
		if conn, err := f.SyscallConn(); err == nil {
			_ = conn.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeBytes) })
		}
	}
	for _, stream := range []string{"stdout", "stderr"} {
		end, err := w.makeReadEnd(base + "." + stream)
		if err != nil {
			return fail(err)
		}
		w.logEnds = append(w.logEnds, end)
		w.logs.Add(1)
		go w.readLog(stream, end)
	}
	from, err := nonblock.New(w.out)
	if err == nil {
		w.to, err = nonblock.New(w.in)
	}
	if err != nil {
		return fail(err)
	}
	w.frames = newFrameReader(from)
	return w, nil
}

// makeReadEnd makes a FIFO to read from, and holds a writing end so that the reader does not see
// the end of the stream before the worker is there.
func (w *Worker) makeReadEnd(path string) (*os.File, error) {
	f, err := makeFIFO(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	hold, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open the channel %s: %w", filepath.Base(path), err)
	}
	w.holds = append(w.holds, hold)
	return f, nil
}

func (w *Worker) closeHolds() {
	w.started.Do(func() {
		for _, f := range w.holds {
			f.Close()
		}
		base := filepath.Join(w.zygote.dir, strconv.FormatUint(w.ID, 10))
		for _, suffix := range []string{".in", ".out", ".stdout", ".stderr"} {
			_ = os.Remove(base + suffix)
		}
	})
}

func (w *Worker) readLog(stream string, from *os.File) {
	defer w.logs.Done()
	lines := newLineWriter(func(line []byte) { w.zygote.cfg.Log(stream, w.ID, line) }, w.zygote.cfg.LogBuffer)
	_, _ = io.Copy(lines, struct{ io.Reader }{from})
	lines.Flush()
	from.Close()
}

// awaitUp blocks for the worker's first frame.
func (w *Worker) awaitUp(ctx context.Context) error {
	if err := w.out.SetReadDeadline(time.Now().Add(w.zygote.cfg.InitTimeout)); err != nil {
		return fmt.Errorf("start a worker: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = w.out.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	h, payload, err := w.frames.next()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &InitError{fmt.Sprintf("a worker was not up within init_timeout (%s)", w.zygote.cfg.InitTimeout)}
	case errors.Is(err, io.EOF):
		<-w.gone
		return &InitError{"the process ended: " + codeReason(w.code)}
	case err != nil:
		return fmt.Errorf("start a worker: %w", err)
	case h.Kind == wire.InitFailed:
		return &InitError{string(payload)}
	case h.Kind != wire.Up:
		return fmt.Errorf("start a worker: it began with a frame of kind %d instead of UP", h.Kind)
	}
	var caps wire.Capabilities
	if err := json.Unmarshal(payload, &caps); err != nil {
		return fmt.Errorf("start a worker: read its UP: %w", err)
	}
	w.Batch, w.Runs = caps.Batch, caps.Runs
	w.pid.Store(int64(h.Elapsed))
	w.group.Store(int64(h.Elapsed))
	if !caps.Journal {
		w.Journal = nil
	}
	w.closeHolds()
	return w.out.SetReadDeadline(time.Time{})
}

// exited is called once, when the process was reaped.
func (w *Worker) exited(code int) {
	w.code = code
	w.closeHolds()
	// What the worker wrote is in the pipe already; only a process that left its group could still
	// hold the other end, and nobody waits for that one.
	_ = w.out.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	for _, end := range w.logEnds {
		_ = end.SetReadDeadline(time.Now().Add(logGrace))
	}
	w.in.Close() // ends a write that waits for a reader
	close(w.gone)
}

// Pid of the worker's process.
func (w *Worker) Pid() int { return int(w.pid.Load()) }

// Write sends frames, and those of requests as a Run if the worker wants that. It blocks while the channel is full, and fails when the worker is gone.
func (w *Worker) Write(frames []byte) error {
	if w.Runs {
		if run, ok := wire.AppendRun(nil, frames); ok {
			frames = run
		}
	}
	_, err := w.to.Write(frames)
	return err
}

// Next blocks for a frame from the worker. The payload is valid until the following call. After an
// error the worker is of no use; Wait then says why.
func (w *Worker) Next() (wire.Header, []byte, error) { return w.frames.next() }

// Buffered reports whether Next will return at once.
func (w *Worker) Buffered() bool { return w.frames.buffered() }

// Kill sends SIGKILL to the worker and every process in its group.
func (w *Worker) Kill() {
	frame := wire.AppendHeader(nil, wire.Header{Kind: wire.Kill, ID: w.ID})
	_, _ = w.zygote.control.Write(frame)
}

// Close lets the worker leave when it has answered what it was sent.
func (w *Worker) Close() { w.in.Close() }

// Wait blocks until the process is gone and says how it ended. It must be followed by Release.
func (w *Worker) Wait() string {
	select {
	case <-w.gone:
	case <-time.After(killGrace):
		w.Kill() // it closed its channel and still runs
		select {
		case <-w.gone:
		case <-w.zygote.done:
			<-w.gone
		}
	}
	return codeReason(w.code)
}

// Release frees what the worker held, after its journal was read for the last time.
func (w *Worker) Release() {
	w.logs.Wait()
	w.out.Close()
	w.zygote.freeSlot(w.slot)
}
