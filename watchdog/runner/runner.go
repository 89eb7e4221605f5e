// Package runner starts the program that holds a model, and the workers it forks.
//
// A Zygote is that program after init; it only forks. A Worker is one fork, with a channel for
// frames in each direction, a journal and two log streams. Who gets which request is the pool's
// business and may not enter here.
package runner

import (
	"context"
	_ "embed" // the runners travel inside the watchdog's binary
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/scratch"
	"github.com/faas-predict/faas-predict/watchdog/wire"
)

//go:embed python3.py
var python3 []byte

//go:embed r.R
var r []byte

// MaxWorkers is how many workers may live at once: each has a slot of the journal.
const MaxWorkers = 256

// pipeBytes is the size asked for a worker's channels. While what is under way to a worker fits in
// it, writing never blocks.
const pipeBytes = 256 << 10

// killGrace is how long a runner gets to leave by itself when it is told to.
const killGrace = 2 * time.Second

// programs maps a bundle's runtime to the source of its runner and its default interpreter.
var programs = map[string]struct {
	source      []byte
	file        string
	interpreter string
	// ownTemp: the interpreter makes a temporary folder that it does not remove when it is killed, so
	// it gets the runner's, which goes in any case.
	ownTemp bool
}{
	model.RuntimePython: {source: python3, file: "python3.py", interpreter: "python3"},
	model.RuntimeR:      {source: r, file: "r.R", interpreter: "Rscript", ownTemp: true},
}

// Config says what to start.
type Config struct {
	Bundle      *model.Bundle
	StartMethod string        // model.StartFork or model.StartSpawn
	Interpreter string        // program that reads the runner; "" is the runtime's default
	Program     string        // a runner's source, instead of the one for the bundle's runtime; "" as a rule
	InitTimeout time.Duration // bound on init, and on a worker's start
	// Log takes each line that the model prints; stream is "stdout" or "stderr". It is called from
	// several goroutines and may block, which then blocks the model's print.
	Log func(stream string, worker uint64, line []byte)
	// LogBuffer bounds a line in bytes; a longer one is cut into several. Negative: no bound.
	LogBuffer int
	Logger    *slog.Logger
}

// InitError is a model that could not be initialised. Detail is the traceback, word for word, or
// the limit that was passed.
type InitError struct{ Detail string }

func (e *InitError) Error() string { return "init failed: " + e.Detail }

// Zygote is a running runner after init.
type Zygote struct {
	cfg      Config
	folder   *scratch.Folder
	dir      string // of folder
	cmd      *exec.Cmd
	control  *os.File
	report   *os.File
	journal  *journalFile
	greeting wire.Greeting
	caps     wire.Capabilities
	done     chan struct{} // closed when the process is gone and its last report was read
	exit     chan error

	mu      sync.Mutex
	nextID  uint64
	workers map[uint64]*Worker
	slots   [MaxWorkers]bool
	ended   bool // no report will come any more
}

// Start starts the runner and blocks until init returned. It returns an *InitError when the model
// is at fault. Cancelling ctx kills the runner.
func Start(ctx context.Context, cfg Config) (*Zygote, error) {
	program, known := programs[cfg.Bundle.Runtime]
	if cfg.Program != "" {
		source, err := os.ReadFile(cfg.Program)
		if err != nil {
			return nil, fmt.Errorf("read the runner: %w", err)
		}
		program.source, program.file, known = source, filepath.Base(cfg.Program), true
	}
	if !known {
		return nil, &InitError{fmt.Sprintf("this watchdog has no runner for runtime: %s", cfg.Bundle.Runtime)}
	}
	interpreter := cfg.Interpreter
	if interpreter == "" {
		interpreter = program.interpreter
	}
	folder, err := scratch.New("runner")
	if err != nil {
		return nil, err
	}
	z := &Zygote{cfg: cfg, folder: folder, dir: folder.Path, done: make(chan struct{}), exit: make(chan error, 1), workers: map[uint64]*Worker{}}
	if err := z.start(ctx, interpreter, program.file, program.source, program.ownTemp); err != nil {
		z.Close()
		return nil, err
	}
	return z, nil
}

func (z *Zygote) start(ctx context.Context, interpreter, file string, source []byte, ownTemp bool) error {
	script := filepath.Join(z.dir, file)
	if err := os.WriteFile(script, source, 0o600); err != nil {
		return fmt.Errorf("write the runner: %w", err)
	}
	var err error
	if z.journal, err = newJournalFile(); err != nil {
		return err
	}
	var hold *os.File
	if z.control, err = makeFIFO(filepath.Join(z.dir, "control.in"), os.O_RDWR); err != nil {
		return err
	}
	if z.report, err = makeFIFO(filepath.Join(z.dir, "control.out"), os.O_RDONLY); err != nil {
		return err
	}
	// Until the runner has its end open, a reader alone would see the end of the stream.
	if hold, err = os.OpenFile(filepath.Join(z.dir, "control.out"), os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		return fmt.Errorf("open the runner's channel: %w", err)
	}
	defer hold.Close()

	arguments := []string{z.cfg.Bundle.Dir, z.cfg.Bundle.Entry, z.cfg.StartMethod, z.dir, "3"}
	z.cmd = exec.Command(interpreter, append([]string{script}, arguments...)...)
	z.cmd.Env = withHugePages(os.Environ())
	if program, more, ok := withoutShell(interpreter, z.cmd.Env); ok {
		site, err := profile(z.dir)
		if err != nil {
			return fmt.Errorf("write R's profile: %w", err)
		}
		z.cmd = exec.Command(program, append([]string{"--no-echo", "--no-restore", "--file=" + script, "--args"}, arguments...)...)
		z.cmd.Env = append(withHugePages(os.Environ()), append(more, site...)...)
	}
	if ownTemp {
		z.cmd.Env = append(z.cmd.Env, "TMPDIR="+z.dir)
	}
	z.cmd.ExtraFiles = []*os.File{z.journal.file}
	z.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	stdout := newLineWriter(func(line []byte) { z.cfg.Log("stdout", 0, line) }, z.cfg.LogBuffer)
	stderr := newLineWriter(func(line []byte) { z.cfg.Log("stderr", 0, line) }, z.cfg.LogBuffer)
	z.cmd.Stdout, z.cmd.Stderr = stdout, stderr
	z.cmd.WaitDelay = killGrace

	started := make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends, so that thread is
		// kept for as long as the child lives.
		runtime.LockOSThread()
		err := z.cmd.Start()
		started <- err
		if err == nil {
			z.killRest()
			err = z.cmd.Wait()
			stdout.Flush()
			stderr.Flush()
			z.exit <- err
		}
	}()
	if err := <-started; err != nil {
		return &InitError{fmt.Sprintf("cannot start the interpreter %s: %v", interpreter, err)}
	}
	return z.awaitReady(ctx, hold)
}

// awaitReady reads the handshake: HELLO, then READY or INIT_FAILED.
func (z *Zygote) awaitReady(ctx context.Context, hold *os.File) error {
	frames := newFrameReader(z.report)
	handshake := make(chan error, 1)
	go func() { handshake <- z.readHandshake(frames) }()

	limit := time.NewTimer(z.cfg.InitTimeout)
	defer limit.Stop()
	var err error
	select {
	case err = <-handshake:
	case waitErr := <-z.exit:
		z.exit <- waitErr
		hold.Close() // now the reader sees the end, after whatever the runner still said
		if err = <-handshake; errors.Is(err, io.EOF) {
			err = &InitError{fmt.Sprintf("the runner ended during init: %s", exitReason(waitErr))}
		}
	case <-limit.C:
		err = &InitError{fmt.Sprintf("init did not return within init_timeout (%s)", z.cfg.InitTimeout)}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		z.kill()
		return err
	}
	go z.readReports(frames)
	return nil
}

func (z *Zygote) readHandshake(frames *frameReader) error {
	h, payload, err := frames.next()
	if err != nil {
		return err
	}
	if h.Kind != wire.Hello {
		return fmt.Errorf("the runner began with a frame of kind %d instead of HELLO", h.Kind)
	}
	if err := json.Unmarshal(payload, &z.greeting); err != nil {
		return fmt.Errorf("read the runner's HELLO: %w", err)
	}
	if z.greeting.Wire != wire.Version {
		return fmt.Errorf("the runner speaks wire version %d, the watchdog %d", z.greeting.Wire, wire.Version)
	}
	if h, payload, err = frames.next(); err != nil {
		return err
	}
	switch h.Kind {
	case wire.InitFailed:
		return &InitError{string(payload)}
	case wire.Ready:
		return json.Unmarshal(payload, &z.caps)
	}
	return fmt.Errorf("the runner sent a frame of kind %d instead of READY", h.Kind)
}

// readReports follows the zygote's reports on its children until it is gone.
func (z *Zygote) readReports(frames *frameReader) {
	defer close(z.done)
	for {
		h, _, err := frames.next()
		if err != nil {
			break
		}
		z.mu.Lock()
		w := z.workers[h.ID]
		z.mu.Unlock()
		switch {
		case w == nil:
		case h.Kind == wire.Forked:
			w.group.Store(int64(h.Elapsed))
		case h.Kind == wire.Exited:
			z.forget(w, int(h.Elapsed))
		}
	}
	z.mu.Lock()
	z.ended = true
	orphans := make([]*Worker, 0, len(z.workers))
	for _, w := range z.workers {
		orphans = append(orphans, w)
	}
	z.mu.Unlock()
	for _, w := range orphans {
		if group := int(w.group.Load()); group != 0 {
			_ = unix.Kill(-group, unix.SIGKILL)
		}
		z.forget(w, 128+int(unix.SIGKILL))
	}
}

// forget closes what belongs to a worker that is gone and frees its slot once its journal was read.
func (z *Zygote) forget(w *Worker, code int) {
	z.mu.Lock()
	delete(z.workers, w.ID)
	z.mu.Unlock()
	w.exited(code)
}

func (z *Zygote) freeSlot(slot int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.slots[slot] = false
}

// Runtime is the interpreter's name and version, as the runner stated it.
func (z *Zygote) Runtime() string { return z.greeting.Runtime }

// Done is closed when the zygote is gone, and with it all its workers.
func (z *Zygote) Done() <-chan struct{} { return z.done }

// Ended reports whether the zygote is gone. A worker that ended with it says so no earlier than this.
func (z *Zygote) Ended() bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.ended
}

// Pid of the zygote.
func (z *Zygote) Pid() int { return z.cmd.Process.Pid }

// Fork makes a worker and blocks until it can take requests. Under StartSpawn this includes its
// own init. It is safe for concurrent use.
func (z *Zygote) Fork(ctx context.Context) (*Worker, error) {
	z.mu.Lock()
	slot := -1
	for i, used := range z.slots {
		if !used {
			slot = i
			break
		}
	}
	if slot < 0 {
		z.mu.Unlock()
		return nil, fmt.Errorf("fork a worker: all %d are in use", MaxWorkers)
	}
	z.slots[slot] = true
	z.nextID++
	id := z.nextID
	z.mu.Unlock()

	w, err := newWorker(z, id, slot)
	if err != nil {
		z.freeSlot(slot)
		return nil, err
	}
	z.mu.Lock()
	ended := z.ended
	if !ended {
		z.workers[id] = w
	}
	z.mu.Unlock()
	if ended {
		// Its channel would take the order, and nobody would ever read it.
		w.exited(128 + int(unix.SIGKILL))
		w.Release()
		return nil, errors.New("fork a worker: the runner is gone")
	}
	if _, err := z.control.Write(wire.AppendHeader(nil, wire.Header{Kind: wire.Fork, ID: id, Elapsed: uint64(slot)})); err != nil {
		z.forget(w, 0)
		w.Release()
		return nil, fmt.Errorf("fork a worker: %w", err)
	}
	if err := w.awaitUp(ctx); err != nil {
		w.Kill()
		w.Close()
		select {
		case <-w.gone:
		case <-z.done:
		case <-time.After(killGrace):
		}
		w.Release()
		return nil, err
	}
	return w, nil
}

// killRest blocks until the runner is gone, and kills what it leaves in its group while its number
// cannot mean another: processes that init started, and those of a runner that is several itself.
func (z *Zygote) killRest() {
	pid := z.cmd.Process.Pid
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		continue
	}
	_ = unix.Kill(-pid, unix.SIGKILL)
}

func (z *Zygote) kill() {
	if z.cmd != nil && z.cmd.Process != nil {
		// The zygote leads its own session and group; workers lead groups of their own and are
		// killed by the kernel when it dies.
		_ = unix.Kill(-z.cmd.Process.Pid, unix.SIGKILL)
	}
}

// Close ends the zygote and every worker, waits until they are gone, and removes their directory.
// It is safe to call more than once.
func (z *Zygote) Close() {
	if z.control != nil {
		z.control.Close() // the zygote kills its workers and leaves when its channel ends
	}
	if z.cmd != nil && z.cmd.Process != nil {
		select {
		case err := <-z.exit:
			z.exit <- err
		case <-time.After(killGrace):
			z.kill()
			err := <-z.exit
			z.exit <- err
		}
	}
	if z.report != nil {
		z.report.Close()
	}
	if z.journal != nil {
		z.journal.Close()
	}
	z.folder.Remove()
}

// exitReason says how a process ended: "exit code 3" or "killed by signal 9 (killed)".
func exitReason(err error) string {
	var exit *exec.ExitError
	if err == nil {
		return "exit code 0"
	}
	if !errors.As(err, &exit) {
		return err.Error()
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return codeReason(128 + int(status.Signal()))
	}
	return codeReason(exit.ExitCode())
}

func codeReason(code int) string {
	if code > 128 {
		signal := syscall.Signal(code - 128)
		return fmt.Sprintf("killed by signal %d (%s)", code-128, signal)
	}
	return "exit code " + strconv.Itoa(code)
}

// makeFIFO makes a named pipe and opens this side of it. Opening to write takes os.O_RDWR, because
// a FIFO that nobody reads yet refuses a plain writer.
func makeFIFO(path string, flag int) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("make the channel %s: %w", filepath.Base(path), err)
	}
	f, err := os.OpenFile(path, flag|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the channel %s: %w", filepath.Base(path), err)
	}
	return f, nil
}
