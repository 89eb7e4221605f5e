// Package conformance is the runner contract of docs/runner-protocol.md as a suite. A runner for
// another language brings an interpreter and three small models, and calls Run.
//
// The cases speak frames with a real runner through package runner, as fwatchdog does, so that each
// sees exactly what the runner said. What a pool or an HTTP face make of it may not enter here.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/runner"
	"github.com/faas-predict/faas-predict/watchdog/wire"
)

// Runner is what the suite is run against.
type Runner struct {
	// Interpreter is the program; "" is the runtime's default.
	Interpreter string
	// Program is the runner's source; "" for one that is in watchdog/runner. With it, Entry is the file
	// name of the models' code, since bundles of its language are not known yet.
	Program, Entry string
	// Models is a folder with three bundles that behave as testdata/python3's do: answers, raises
	// (whose init raises) and batch (which defines predict_batch; leave it out if the language has none).
	Models string
	// Traceback is text that the language puts into every traceback.
	Traceback string
}

const patience = 20 * time.Second

// Run runs every case.
func Run(t *testing.T, r Runner) {
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) { c.run(&suite{T: t, runner: r}) })
	}
}

// cases is the contract, a sentence each.
var cases = []struct {
	name string
	run  func(*suite)
}{
	{"the greeting names the runtime", func(s *suite) {
		if z := s.start("answers", model.StartFork); z.Runtime() == "" {
			s.Error("HELLO names no runtime")
		}
	}},
	{"answers come in order, with their ids and times", func(s *suite) {
		w := s.worker("answers")
		const first, count = 1 << 40, 500
		var frames []byte
		for n := range count {
			frames = appendRequest(frames, first+uint64(n), 0, fmt.Sprintf("echo %d", n))
		}
		s.send(w, frames)
		for n := range count {
			h, payload := s.next(w)
			if h.Kind != wire.Response || h.ID != first+uint64(n) || payload != strconv.Itoa(n) || h.Elapsed == 0 {
				s.Fatalf("answer %d is %+v %q", n, h, payload)
			}
		}
		s.send(w, appendRequest(nil, 1, 0, "nap 30"))
		if h, _ := s.next(w); h.Elapsed < uint64(30*time.Millisecond) || h.Elapsed > uint64(patience) {
			s.Errorf("30 ms took %s", time.Duration(h.Elapsed))
		}
	}},
	{"payloads of any size pass", func(s *suite) {
		w := s.worker("answers")
		for n, size := range []int{0, 1, 100, 4<<10 - 24, 64<<10 - 24, 64<<10 - 1, 64 << 10, 64<<10 + 1, 128 << 10, 256 << 10, 3 << 20} {
			text := strings.Repeat("x", size)
			s.ask(w, uint64(n+1), "echo "+text, text)
			if size%2 == 0 {
				s.ask(w, uint64(n+100), "repeat "+strconv.Itoa(size/2), strings.Repeat("ü", size/2))
			}
		}
	}},
	{"a frame may come in pieces", func(s *suite) {
		w := s.worker("answers")
		frames := appendRequest(appendRequest(nil, 1, 0, "echo grüße"), 2, 0, "echo zwei")
		for at := range frames {
			s.send(w, frames[at:at+1])
			if at%7 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		s.want(w, 1, wire.Response, "grüße")
		s.want(w, 2, wire.Response, "zwei")
	}},
	{"a run is answered as its requests are, and may come in pieces", func(s *suite) {
		w := s.worker("answers")
		if !w.Runs {
			return
		}
		frames := appendRequest(appendRequest(nil, 1, wire.FlagHold, "echo grüße"), 2, wire.FlagHold, "fail here")
		frames = appendRequest(appendRequest(frames, 3, wire.FlagHold, ""), 4, 0, "echo vier")
		run, ok := wire.AppendRun(nil, appendRequest(frames, 5, 0, "echo fünf"))
		if !ok {
			s.Fatal("there is no run")
		}
		for at := range run {
			s.send(w, run[at:at+1])
			if at%7 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		s.want(w, 1, wire.Response, "grüße")
		for id := uint64(2); id <= 3; id++ {
			if h, _ := s.next(w); h.ID != id || h.Kind == wire.Response && id == 2 {
				s.Errorf("request %d gave %+v", id, h)
			}
		}
		s.want(w, 4, wire.Response, "vier")
		s.want(w, 5, wire.Response, "fünf")
	}},
	{"an exception is an answer", func(s *suite) {
		w := s.worker("answers")
		s.send(w, appendRequest(nil, 1, 0, "fail Schlüssel ☃"))
		h, payload := s.next(w)
		parts := strings.Split(payload, "\x00")
		if h.Kind != wire.Raised || h.ID != 1 || len(parts) != 3 {
			s.Fatalf("got %+v %q", h, payload)
		}
		if parts[0] == "" || !strings.Contains(parts[1], "Schlüssel ☃") || !strings.Contains(parts[2], s.runner.Traceback) {
			s.Errorf("type, message and traceback are %q", parts)
		}
		s.ask(w, 2, "echo after", "after")
	}},
	{"a value that is no string is an answer", func(s *suite) {
		w := s.worker("answers")
		s.send(w, appendRequest(nil, 1, 0, "number"))
		if h, payload := s.next(w); h.Kind != wire.NotString || payload == "" {
			s.Errorf("got %+v %q", h, payload)
		}
		s.ask(w, 2, "echo after", "after")
	}},
	{"what the model prints are lines, of init and of each worker", func(s *suite) {
		w := s.worker("answers")
		s.ask(w, 1, "say on stdout", "said")
		s.ask(w, 2, "complain on stderr", "complained")
		for _, line := range []string{
			"stdout 0 init was here",
			fmt.Sprintf("stdout %d on stdout", w.ID),
			fmt.Sprintf("stderr %d on stderr", w.ID),
		} {
			s.eventually("printed: "+line, func() bool { return s.printed(line) })
		}
	}},
	{"each request begins in the bundle's folder", func(s *suite) {
		w := s.worker("answers")
		s.ask(w, 1, "leave /", "gone")
		s.ask(w, 2, "where", s.bundle.Dir)
	}},
	{"init runs once under fork", func(s *suite) {
		z := s.start("answers", model.StartFork)
		for n := range 4 {
			s.ask(s.fork(z), uint64(n+1), "echo x", "x")
		}
		if n := s.inits(); n != 1 {
			s.Errorf("init ran %d times", n)
		}
	}},
	{"init runs once a worker under spawn", func(s *suite) {
		z := s.start("answers", model.StartSpawn)
		for n := range 3 {
			s.ask(s.fork(z), uint64(n+1), "echo x", "x")
			if got := s.inits(); got != n+1 {
				s.Errorf("init ran %d times for %d workers", got, n+1)
			}
		}
	}},
	{"a failed init is told word for word", func(s *suite) {
		_, err := runner.Start(s.Context(), s.config("raises", model.StartFork))
		var failed *runner.InitError
		if !errors.As(err, &failed) || !strings.Contains(failed.Detail, "the coefficients are missing: ☃") || !strings.Contains(failed.Detail, s.runner.Traceback) {
			s.Errorf("got %v", err)
		}
		z := s.start("raises", model.StartSpawn)
		if _, err = z.Fork(s.Context()); !errors.As(err, &failed) || !strings.Contains(failed.Detail, "the coefficients are missing: ☃") {
			s.Errorf("under spawn: got %v", err)
		}
	}},
	{"a death is reported with its cause, and costs no other worker", func(s *suite) {
		z := s.start("answers", model.StartFork)
		other := s.fork(z)
		for n, c := range []struct{ request, reason string }{
			{"exit 0", "exit code 0"}, {"exit 3", "exit code 3"}, {"kill 9", "signal 9"}, {"kill 11", "signal 11"},
		} {
			w := s.fork(z)
			s.send(w, appendRequest(appendRequest(nil, 1, 0, c.request), 2, 0, "echo never"))
			s.end(w)
			if reason := w.Wait(); !strings.Contains(reason, c.reason) {
				s.Errorf("%s ended by %q", c.request, reason)
			}
			w.Release()
			s.ask(other, uint64(n+1), "echo there", "there")
		}
		if n := s.inits(); n != 1 {
			s.Errorf("init ran %d times", n)
		}
	}},
	{"a journal tells what was answered and what had begun", func(s *suite) {
		w := s.worker("answers")
		if w.Journal == nil {
			return // a runner may keep none; it is then given one request at a time
		}
		for _, flags := range []uint8{0, wire.FlagHold} {
			s.losesOnlyWhatHadBegun(w, flags)
			w = s.worker("answers")
		}
	}},
	{"a held answer comes no later than the next that is not held", func(s *suite) {
		w := s.worker("answers")
		for first := uint64(1); first < 200; first += 4 {
			var frames []byte
			for n := range uint64(3) {
				frames = appendRequest(frames, first+n, wire.FlagHold, strings.Repeat("echo x", int(first+n)))
			}
			s.send(w, appendRequest(frames, first+3, 0, "echo last"))
			for n := range uint64(3) {
				s.want(w, first+n, wire.Response, strings.Repeat("echo x", int(first+n))[5:])
			}
			s.want(w, first+3, wire.Response, "last")
		}
	}},
	{"held answers may be larger than the journal", func(s *suite) {
		w := s.worker("answers")
		for id := uint64(1); id <= 9; id++ {
			s.send(w, appendRequest(nil, id, wire.FlagHold, "repeat 20000"))
		}
		s.send(w, appendRequest(appendRequest(nil, 10, wire.FlagHold, "repeat 100000"), 11, 0, "echo last"))
		for id := uint64(1); id <= 9; id++ {
			s.want(w, id, wire.Response, strings.Repeat("ü", 20000))
		}
		s.want(w, 10, wire.Response, strings.Repeat("ü", 100000))
		s.want(w, 11, wire.Response, "last")
	}},
	{"strings are UTF-8 in any locale", func(s *suite) {
		for _, locale := range []string{"C", "POSIX", "no_such"} {
			s.Setenv("LC_ALL", locale)
			w := s.worker("answers")
			s.ask(w, 1, "echo grün ☃", "grün ☃")
			s.ask(w, 2, "repeat 3", "üüü")
			s.ask(w, 3, "say Schnee ☃", "said")
			s.eventually("printed", func() bool { return s.printed(fmt.Sprintf("stdout %d Schnee ☃", w.ID)) })
		}
	}},
	{"a revoked request is skipped", func(s *suite) {
		w := s.worker("answers")
		if w.Journal == nil {
			return
		}
		s.send(w, appendRequest(nil, 1, 0, "nap 300"))
		s.eventually("begun", func() bool { return w.Journal.Claimed() == 1 })
		s.send(w, appendRequest(appendRequest(nil, 2, 0, "exit 1"), 3, 0, "exit 1"))
		w.Journal.Revoke(2)
		s.want(w, 1, wire.Response, "rested")
		s.want(w, 2, wire.Skipped, "")
		s.want(w, 3, wire.Skipped, "")
		w.Journal.Restore()
		s.ask(w, 4, "echo on", "on")
	}},
	{"a kill takes the worker's whole group", func(s *suite) {
		w := s.worker("answers")
		s.send(w, appendRequest(nil, 1, 0, "child"))
		_, payload := s.next(w)
		child, err := strconv.Atoi(payload)
		if err != nil {
			s.Fatal(err)
		}
		s.send(w, appendRequest(nil, 2, 0, "nap 60000"))
		w.Kill()
		s.end(w)
		if reason := w.Wait(); !strings.Contains(reason, "signal 9") {
			s.Errorf("ended by %q", reason)
		}
		w.Release()
		s.eventually("rid of the child", func() bool { return !alive(child) && !alive(w.Pid()) })
	}},
	{"a worker that exits takes its children along", func(s *suite) {
		w := s.worker("answers")
		s.send(w, appendRequest(nil, 1, 0, "child"))
		_, payload := s.next(w)
		child, _ := strconv.Atoi(payload)
		s.send(w, appendRequest(nil, 2, 0, "exit 0"))
		s.end(w)
		w.Wait()
		w.Release()
		s.eventually("rid of the child", func() bool { return !alive(child) })
	}},
	{"a worker whose channel ends answers what it has and leaves", func(s *suite) {
		w := s.worker("answers")
		s.send(w, appendRequest(appendRequest(nil, 1, 0, "nap 50"), 2, 0, "echo last"))
		w.Close()
		s.want(w, 1, wire.Response, "rested")
		s.want(w, 2, wire.Response, "last")
		s.end(w)
		if reason := w.Wait(); reason != "exit code 0" {
			s.Errorf("ended by %q", reason)
		}
		w.Release()
	}},
	{"a runner that died forks no more, and says so at once", func(s *suite) {
		z := s.start("answers", model.StartFork)
		w := s.fork(z)
		if err := unix.Kill(z.Pid(), unix.SIGKILL); err != nil {
			s.Fatal(err)
		}
		<-z.Done()
		s.end(w)
		w.Wait()
		w.Release()
		began := time.Now()
		if _, err := z.Fork(s.Context()); err == nil || time.Since(began) > patience/2 {
			s.Errorf("got %v after %s", err, time.Since(began))
		}
		s.eventually("gone", func() bool { return !alive(w.Pid()) })
	}},
	{"nothing outlives the control channel", func(s *suite) {
		z := s.start("answers", model.StartFork)
		busy, idle := s.fork(z), s.fork(z)
		s.send(busy, appendRequest(nil, 1, 0, "child"))
		_, payload := s.next(busy)
		child, _ := strconv.Atoi(payload)
		s.send(busy, appendRequest(nil, 2, 0, "nap 60000"))
		z.Close()
		for _, pid := range []int{z.Pid(), busy.Pid(), idle.Pid(), child} {
			s.eventually("gone", func() bool { return !alive(pid) })
		}
	}},
	{"predict_batch gets what came together", func(s *suite) {
		if _, err := os.Stat(filepath.Join(s.runner.Models, "batch")); err != nil {
			return
		}
		w := s.worker("batch")
		if !w.Batch {
			s.Fatal("UP does not tell of predict_batch")
		}
		batch := func(first uint64, requests ...string) (frames []byte) {
			for n, r := range requests {
				flags := wire.FlagMore
				if n == len(requests)-1 {
					flags = 0
				}
				frames = appendRequest(frames, first+uint64(n), flags, r)
			}
			return frames
		}
		s.send(w, batch(1, "a", "b", "c"))
		s.want(w, 1, wire.Response, "3 a")
		s.want(w, 2, wire.Response, "3 b")
		s.want(w, 3, wire.Response, "3 c")
		s.send(w, batch(4, "a", "bad"))
		s.want(w, 4, wire.Response, "one a")
		if h, _ := s.next(w); h.Kind != wire.Raised || h.ID != 5 {
			s.Errorf("the bad row gave %+v", h)
		}
		s.send(w, batch(6, "d", "e"))
		s.want(w, 6, wire.Response, "2 d")
		s.want(w, 7, wire.Response, "2 e")
		s.ask(w, 8, "f", "one f")
	}},
}

// suite is one case under way.
type suite struct {
	*testing.T
	runner Runner
	bundle *model.Bundle
	log    string // where init counts itself

	mu    sync.Mutex
	lines []string
}

func (s *suite) config(name, startMethod string) runner.Config {
	s.Helper()
	b, err := s.open(filepath.Join(s.runner.Models, name))
	if err != nil {
		s.Fatal(err)
	}
	s.bundle = b
	s.log = filepath.Join(s.TempDir(), "inits")
	s.Setenv("CONFORMANCE_INITS", s.log)
	s.Setenv("PYTHONDONTWRITEBYTECODE", "1")
	return runner.Config{
		Bundle: b, StartMethod: startMethod, Interpreter: s.runner.Interpreter, Program: s.runner.Program, InitTimeout: patience, LogBuffer: 64 << 10,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Log: func(stream string, worker uint64, line []byte) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.lines = append(s.lines, fmt.Sprintf("%s %d %s", stream, worker, line))
		},
	}
}

func (s *suite) open(dir string) (*model.Bundle, error) {
	if s.runner.Program == "" {
		return model.Open(dir)
	}
	dir, err := filepath.Abs(dir)
	return &model.Bundle{Dir: dir, Manifest: model.Manifest{Entry: s.runner.Entry}}, err
}

func (s *suite) printed(line string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lines {
		if l == line {
			return true
		}
	}
	return false
}

func (s *suite) start(name, startMethod string) *runner.Zygote {
	s.Helper()
	z, err := runner.Start(s.Context(), s.config(name, startMethod))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(z.Close)
	return z
}

func (s *suite) fork(z *runner.Zygote) *runner.Worker {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	w, err := z.Fork(ctx)
	if err != nil {
		s.Fatal(err)
	}
	return w
}

func (s *suite) worker(name string) *runner.Worker {
	s.Helper()
	return s.fork(s.start(name, model.StartFork))
}

// losesOnlyWhatHadBegun sends seven requests at once, of which the sixth ends the worker.
func (s *suite) losesOnlyWhatHadBegun(w *runner.Worker, flags uint8) {
	s.Helper()
	var frames []byte
	for id := uint64(1); id <= 5; id++ {
		frames = appendRequest(frames, id, flags, fmt.Sprintf("echo %d", id))
	}
	frames = appendRequest(frames, 6, 0, "exit 1")
	s.send(w, appendRequest(frames, 7, 0, "echo never"))
	answered := map[uint64]string{}
	for {
		h, payload, err := w.Next()
		if err != nil {
			break
		}
		answered[h.ID] = string(payload)
	}
	w.Wait()
	w.Journal.Unwritten(func(h wire.Header, payload []byte) { answered[h.ID] = string(payload) })
	for id := uint64(1); id <= 5; id++ {
		if answered[id] != fmt.Sprint(id) {
			s.Errorf("the answer to %d is lost: %v", id, answered)
		}
	}
	if len(answered) != 5 || w.Journal.Claimed() != 6 {
		s.Errorf("answered %v, claimed %d", answered, w.Journal.Claimed())
	}
	w.Release()
}

func (s *suite) inits() int {
	s.Helper()
	content, err := os.ReadFile(s.log)
	if err != nil {
		s.Fatal(err)
	}
	return strings.Count(string(content), "\n")
}

func appendRequest(dst []byte, id uint64, flags uint8, text string) []byte {
	dst = wire.AppendHeader(dst, wire.Header{Length: uint32(len(text)), Kind: wire.Request, Flags: flags, ID: id})
	return append(dst, text...)
}

func (s *suite) send(w *runner.Worker, frames []byte) {
	s.Helper()
	if err := w.Write(frames); err != nil {
		s.Fatal(err)
	}
}

// next blocks for a frame, but not for ever: a runner that says nothing is killed.
func (s *suite) next(w *runner.Worker) (wire.Header, string) {
	s.Helper()
	silent := time.AfterFunc(patience, w.Kill)
	defer silent.Stop()
	h, payload, err := w.Next()
	if err != nil {
		s.Fatalf("the worker answered nothing: %v", err)
	}
	return h, string(payload)
}

// end reads the worker's channel to its end, and fails if anything came.
func (s *suite) end(w *runner.Worker) {
	s.Helper()
	silent := time.AfterFunc(patience, w.Kill)
	defer silent.Stop()
	if h, payload, err := w.Next(); err == nil {
		s.Errorf("expected the end of the channel, got %+v %.100q", h, payload)
	}
}

func (s *suite) want(w *runner.Worker, id uint64, kind wire.Kind, payload string) {
	s.Helper()
	if h, got := s.next(w); h.ID != id || h.Kind != kind || got != payload {
		s.Errorf("expected kind %d for %d %.60q, got %+v %.60q", kind, id, payload, h, got)
	}
}

// ask expects a RESPONSE.
func (s *suite) ask(w *runner.Worker, id uint64, request, payload string) {
	s.Helper()
	// A large request does not fit in the channel, so it is read while it is written.
	wrote := make(chan error, 1)
	go func() { wrote <- w.Write(appendRequest(nil, id, 0, request)) }()
	s.want(w, id, wire.Response, payload)
	if err := <-wrote; err != nil {
		s.Error(err)
	}
}

func (s *suite) eventually(what string, is func() bool) {
	s.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("not %s within %s", what, patience)
		}
	}
}

// alive reports whether a process runs; one that only waits to be reaped does not.
func alive(pid int) bool {
	if unix.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}
