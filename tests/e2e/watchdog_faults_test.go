package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWatchdogLosesOnlyTheRequestThatKillsItsWorker(t *testing.T) {
	for _, death := range []struct{ request, reason string }{
		{"exit 0", "exit code 0"},
		{"exit 9", "exit code 9"},
		{"segv", "signal 11"},
		{"sigsegv", "signal 11"},
		{"sigkill", "signal 9"},
	} {
		t.Run(death.request, func(t *testing.T) {
			t.Parallel()
			w := start(t, faults(t))
			stop := w.load(8)
			const deaths = 6
			for range deaths {
				a := w.wantStatus(http.StatusBadGateway, w.post(death.request))
				if p := a.problem(t); !strings.Contains(p.Detail, death.reason) || p.CallID == "" {
					t.Errorf("the answer does not tell %q: %s", death.reason, a)
				}
				time.Sleep(30 * time.Millisecond)
			}
			w.unharmed(stop)
			if n := w.inits(); n != 1 {
				t.Errorf("init ran %d times", n)
			}
		})
	}
}

// Requests that one worker has at once must not share its fate: a death costs exactly one.
func TestWatchdogCountsOneLossPerDeathAmongRequestsSentAhead(t *testing.T) {
	w := start(t, faults(t), "workers=1")
	for range 300 {
		w.wantBody("warm", w.post("echo warm"))
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	const clients, each, everyth = 24, 60, 40
	for c := range clients {
		group.Add(1)
		go func() {
			defer group.Done()
			for n := range each {
				request, want := fmt.Sprintf("echo %d.%d", c, n), http.StatusOK
				if (c*each+n)%everyth == everyth-1 {
					request, want = "exit 1", http.StatusBadGateway
				}
				a := w.post(request)
				mu.Lock()
				statuses[a.status]++
				if a.status != want || (want == http.StatusOK && "echo "+a.body != request) {
					t.Errorf("%q: %s", request, a)
				}
				mu.Unlock()
			}
		}()
	}
	group.Wait()
	t.Logf("answers: %v", statuses)
	if n := w.inits(); n != 1 {
		t.Errorf("init ran %d times", n)
	}
}

func TestWatchdogIsBackWithinMillisecondsOfADeath(t *testing.T) {
	w := start(t, faults(t), "workers=1")
	var gaps []time.Duration
	for range 9 {
		w.wantStatus(http.StatusBadGateway, w.post("sigkill"))
		began := time.Now()
		w.wantBody("back", w.post("echo back"))
		gaps = append(gaps, time.Since(began))
	}
	slices.Sort(gaps)
	t.Logf("back after %v", gaps)
	if gaps[len(gaps)/2] > 50*time.Millisecond {
		t.Errorf("the median gap is %s, more than 50 ms", gaps[len(gaps)/2])
	}
	if n := w.inits(); n != 1 {
		t.Errorf("init ran %d times", n)
	}
}

func TestWatchdogSurvivesARealOutOfMemoryKill(t *testing.T) {
	by, limited := limitMemory(t, 400<<20)
	t.Logf("memory limited by the kernel: %v", limited)
	w := launchBy(t, by, faults(t))
	w.awaitReady()
	stop := w.load(4)
	if limited {
		a := w.wantStatus(http.StatusBadGateway, w.post("eat 2000"))
		if !strings.Contains(a.body, "signal 9") {
			t.Errorf("the answer does not tell of the kill: %s", a)
		}
	} else {
		// Where no control group can be made, the test does what the kernel would do.
		went := make(chan answer)
		go func() { went <- w.post("note oom 30") }()
		w.eventually(5*time.Second, "in predict", func() bool { return len(w.lines("notes")) > 0 })
		w.killBusiest()
		w.wantStatus(http.StatusBadGateway, <-went)
	}
	w.unharmed(stop)
	w.wantBody("after", w.post("echo after"))
	if n := w.inits(); n != 1 {
		t.Errorf("init ran %d times: the kernel took more than a worker", n)
	}
}

// killBusiest kills the workers that sleep in predict, which leaves the others.
func (w *watchdog) killBusiest() {
	idle := w.post("pid").body
	pid, zygote, _ := strings.Cut(idle, " ")
	for _, p := range w.processes() {
		s := strconv.Itoa(p)
		if s != pid && s != zygote && p != w.cmd.Process.Pid {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
	}
}

// limitMemory makes a control group and returns the command that runs another inside it. It returns
// false where this machine lets nobody make one.
func limitMemory(t *testing.T, limit int) (by []string, ok bool) {
	t.Helper()
	for _, version := range []struct{ base, file string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
		{"/sys/fs/cgroup", "memory.max"},
	} {
		dir := filepath.Join(version.base, fmt.Sprintf("fwatchdog-e2e-%d", os.Getpid()))
		if version.file == "memory.max" {
			_ = os.WriteFile(filepath.Join(version.base, "cgroup.subtree_control"), []byte("+memory"), 0)
		}
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			for range 100 {
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
		if os.WriteFile(filepath.Join(dir, version.file), []byte(strconv.Itoa(limit)), 0) != nil {
			continue
		}
		// Without swap the limit is the end; where the kernel does not count swap there is no such file.
		_ = os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0)
		_ = os.WriteFile(filepath.Join(dir, "memory.memsw.limit_in_bytes"), []byte(strconv.Itoa(limit)), 0)
		enter := "echo $$ > " + filepath.Join(dir, "cgroup.procs") + ` && exec "$@"`
		if exec.Command("sh", "-c", enter, "sh", "true").Run() == nil {
			return []string{"sh", "-c", enter, "sh"}, true
		}
	}
	return nil, false
}

func TestWatchdogKillsAnEndlessLoopAndItsGroup(t *testing.T) {
	for _, limit := range []struct {
		name     string
		settings []string
		headers  []string
		least    time.Duration
	}{
		{"at exec_timeout", []string{"exec_timeout=700ms"}, nil, 700 * time.Millisecond},
		{"at a shorter X-Timeout", []string{"exec_timeout=30s"}, []string{"X-Timeout: 400ms"}, 400 * time.Millisecond},
		{"not later for a longer X-Timeout", []string{"exec_timeout=700ms"}, []string{"X-Timeout: 30s"}, 700 * time.Millisecond},
	} {
		t.Run(limit.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, faults(t), limit.settings...)
			stop := w.load(2)
			a := w.wantStatus(http.StatusGatewayTimeout, w.post("loop", limit.headers...))
			a.problem(t)
			if a.took < limit.least || a.took > limit.least+3*time.Second {
				t.Errorf("took %s, not about %s", a.took, limit.least)
			}
			w.unharmed(stop)
			group := w.lines("notes")
			if len(group) != 1 {
				t.Fatalf("expected one group, got %v", group)
			}
			for _, s := range strings.Split(group[0], "_") {
				pid, _ := strconv.Atoi(s)
				w.eventually(2*time.Second, "rid of process "+s, func() bool { return !alive(pid) })
			}
			if n := w.inits(); n != 1 {
				t.Errorf("init ran %d times", n)
			}
		})
	}
}

func TestWatchdogTimesOutWhatWaitsInTheQueue(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1")
	slow := make(chan answer)
	go func() { slow <- w.post("note slow 1.5") }()
	w.eventually(5*time.Second, "in predict", func() bool { return len(w.lines("notes")) == 1 })
	a := w.wantStatus(http.StatusGatewayTimeout, w.post("note queued 0", "X-Timeout: 200ms"))
	if a.took > 1200*time.Millisecond {
		t.Errorf("the queued request ended after %s", a.took)
	}
	w.wantStatus(http.StatusOK, <-slow)
	w.wantBody("end", w.post("echo end"))
	if n := len(w.lines("notes")); n != 1 {
		t.Errorf("predict saw %d requests; the one whose time was over must not reach it", n)
	}
	for _, bad := range []string{"soon", "-1s", "0s"} {
		w.wantStatus(http.StatusBadRequest, w.post("echo x", "X-Timeout: "+bad))
	}
}

func TestWatchdogTellsWhyInitFailed(t *testing.T) {
	const predict = "\ndef predict(request):\n    return request\n"
	for _, c := range []struct {
		name, code string
		settings   []string
		detail     []string
		waits      bool // for the end by itself
	}{
		{"raises", "def init():\n    raise ValueError('weights fehlen: ü')" + predict, nil,
			[]string{"Traceback (most recent call last)", "main.py", "line 2, in init", "ValueError: weights fehlen: ü"}, true},
		{"does not import", "import no_such_module" + predict, nil,
			[]string{"Traceback", "ModuleNotFoundError: No module named 'no_such_module'"}, false},
		{"has bad syntax", "def init(:" + predict, nil, []string{"SyntaxError", "main.py"}, false},
		{"hangs", "import time\ndef init():\n    time.sleep(300)" + predict, []string{"init_timeout=600ms"},
			[]string{"init_timeout (600ms)"}, false},
		{"spins", "def init():\n    while True: pass" + predict, []string{"init_timeout=600ms"}, []string{"init_timeout (600ms)"}, false},
		{"leaves", "import os\ndef init():\n    os._exit(7)" + predict, nil, []string{"exit code 7"}, false},
		{"calls sys.exit", "import sys\ndef init():\n    sys.exit(3)" + predict, nil, []string{"exit code 3"}, false},
		{"is killed", "import os\ndef init():\n    os.kill(os.getpid(), 9)" + predict, nil, []string{"signal 9"}, false},
		{"has no predict", "predict = 1\n", nil, []string{"does not define predict"}, false},
		{"has no interpreter", predict, []string{"interpreter=/nonexistent/python"}, []string{"/nonexistent/python"}, false},
		{"raises under spawn", "def init():\n    raise ValueError('spawned')" + predict, []string{"start_method=spawn"},
			[]string{"Traceback", "ValueError: spawned"}, false},
		{"hangs under spawn", "import time\ndef init():\n    time.sleep(300)" + predict,
			[]string{"start_method=spawn", "init_timeout=600ms"}, []string{"init_timeout (600ms)"}, false},
		{"leaves under spawn", "import os\ndef init():\n    os._exit(7)" + predict, []string{"start_method=spawn"}, []string{"exit code 7"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := launch(t, bundle(t, map[string]string{"main.py": c.code}), c.settings...)
			var last answer
			w.eventually(20*time.Second, "failed", func() bool {
				last = w.get("/_/ready")
				return last.err == nil && !strings.Contains(last.body, "init is running")
			})
			w.wantStatus(http.StatusServiceUnavailable, last)
			detail := last.problem(t).Detail
			for _, part := range c.detail {
				if !strings.Contains(detail, part) {
					t.Errorf("/_/ready does not say %q: %s", part, detail)
				}
			}
			w.wantStatus(http.StatusServiceUnavailable, w.post("x"))
			w.wantStatus(http.StatusOK, w.get("/_/health"))
			var err error
			if c.waits {
				err = w.awaitEnd(15 * time.Second)
			} else {
				err = w.terminate(10 * time.Second)
			}
			if w.cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("left with %v, not exit code 1", err)
			}
			for _, part := range c.detail {
				if !strings.Contains(w.stderr.String(), part) {
					t.Errorf("the exit log does not say %q: %s", part, w.stderr.String())
				}
			}
		})
	}
}

func TestWatchdogRefusesRequestsUntilInitReturned(t *testing.T) {
	t.Parallel()
	w := launch(t, bundle(t, map[string]string{"main.py": "import time\ndef init(): time.sleep(1)\ndef predict(r): return r\n"}))
	w.eventually(10*time.Second, "listening", func() bool { return w.get("/_/health").status == http.StatusOK })
	ready := w.wantStatus(http.StatusServiceUnavailable, w.get("/_/ready"))
	if d := ready.problem(t).Detail; d != "init is running" {
		t.Errorf("detail is %q", d)
	}
	early := w.wantStatus(http.StatusServiceUnavailable, w.post("early"))
	early.problem(t)
	if early.header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	w.awaitReady()
	w.wantBody("late", w.post("late"))
}

func TestWatchdogStartsTheRunnerAgainWhenItDies(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t))
	_, zygote, _ := strings.Cut(w.post("pid").body, " ")
	pid, err := strconv.Atoi(zygote)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.eventually(10*time.Second, "initialised again", func() bool { return w.inits() == 2 })
	w.awaitReady()
	w.wantBody("again", w.post("echo again"))
	w.eventually(3*time.Second, "down to its processes", func() bool { return len(w.processes()) == 4 })
}

// Whether a model that was ready once can be made ready again is not for the watchdog to decide.
func TestWatchdogRetriesAFailingInitAfterTheRunnerDied(t *testing.T) {
	const code = `import os, time
def init():
    open(os.environ['INIT_LOG'], 'a').write(f'{time.time()}\n')
    if os.path.exists(os.environ['NOTES']): raise ValueError('weights are gone')
def predict(r): return f'{os.getppid()}'
`
	for _, method := range []string{"fork", "spawn"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			w := start(t, bundle(t, map[string]string{"main.py": code}), "start_method="+method, "workers=1")
			zygote, _ := strconv.Atoi(w.post("").body)
			if err := os.WriteFile(w.path("notes"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			_ = syscall.Kill(zygote, syscall.SIGKILL)
			w.eventually(20*time.Second, "tried eight times", func() bool { return w.inits() >= 9 })
			ready := w.wantStatus(http.StatusServiceUnavailable, w.get("/_/ready"))
			for said, where := range map[string]string{"/_/ready": ready.problem(t).Detail, "the log": w.stderr.String()} {
				if !strings.Contains(where, "in init") || !strings.Contains(where, "ValueError: weights are gone") {
					t.Errorf("%s does not tell the traceback: %s", said, where)
				}
			}
			times := w.lines("init.log")
			before, _ := strconv.ParseFloat(times[7], 64)
			last, _ := strconv.ParseFloat(times[8], 64)
			if last-before < 0.16 {
				t.Errorf("the eighth try came %.3f s after the seventh", last-before)
			}
			if err := os.Remove(w.path("notes")); err != nil {
				t.Fatal(err)
			}
			w.awaitReady()
			w.wantStatus(http.StatusOK, w.post(""))
		})
	}
}

// Under fork nothing but the worker's death tells that the model does not survive it.
func TestWatchdogGivesUpOnWorkersThatNeverComeUp(t *testing.T) {
	const afterFork = "import os, signal, time\ndef born():\n    %s\ndef init():\n    os.register_at_fork(after_in_child=born)\ndef predict(r): return r\n"
	for _, c := range []struct{ name, born, workers, detail string }{
		{"before they are up", "os._exit(7)", "1", "workers die before they are up: the process ended: exit code 7"},
		{"and take the runner along", "os.kill(os.getppid(), 9); os._exit(7)", "1", "the runner died"},
		// One of them hangs, so that they are never up together; the other dies a little later.
		{"after they are up", `try:
        os.mkdir(os.environ["NOTES"])
    except FileExistsError:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
    else:
        time.sleep(300)`, "2", "workers die after they are up: killed by signal 14"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := launch(t, bundle(t, map[string]string{"main.py": fmt.Sprintf(afterFork, c.born)}), "workers="+c.workers)
			w.eventually(20*time.Second, "telling", func() bool {
				a := w.get("/_/ready")
				return a.status == http.StatusServiceUnavailable && strings.Contains(a.body, c.detail) && strings.Contains(a.body, " in a row")
			})
			err := w.awaitEnd(40 * time.Second)
			if w.cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("left with %v, not exit code 1", err)
			}
			lines := strings.Split(strings.TrimSpace(w.stderr.String()), "\n")
			if last := lines[len(lines)-1]; !strings.HasPrefix(last, "fwatchdog: init failed: "+c.detail) {
				t.Errorf("the last line is %q", last)
			}
		})
	}
}

// The workers that go with the runner are one death; counted each, a dozen would cost a pause of seconds.
func TestWatchdogIsBackAtOnceWhenTheRunnerOfManyWorkersDies(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=16")
	_, zygote, _ := strings.Cut(w.post("pid").body, " ")
	pid, _ := strconv.Atoi(zygote)
	began := time.Now()
	_ = syscall.Kill(pid, syscall.SIGKILL)
	w.eventually(10*time.Second, "initialised again", func() bool { return w.inits() == 2 })
	w.awaitReady()
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("back after %s", took)
	}
}

// A model that dies on every request must not eat the machine, and must say so.
func TestWatchdogBacksOffFromACrashLoop(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1")
	began := time.Now()
	for range 7 {
		w.wantStatus(http.StatusBadGateway, w.post("exit 1"))
	}
	// Three come back at once, then after 20, 40 and 80 ms.
	if took := time.Since(began); took < 140*time.Millisecond {
		t.Errorf("seven deaths in a row took only %s", took)
	}
	seen := false
	for range 400 {
		if a := w.get("/_/ready"); a.status == http.StatusServiceUnavailable && strings.Contains(a.body, "died in a row") {
			seen = true
			break
		}
		time.Sleep(time.Millisecond / 2)
	}
	if !seen {
		t.Error("/_/ready never told of the deaths")
	}
	w.wantBody("well", w.post("echo well"))
	w.wantStatus(http.StatusOK, w.get("/_/ready"))
}

// What init starts belongs to the zygote's group and goes with it.
func TestWatchdogEndsWhatInitStarted(t *testing.T) {
	const child = "import os, subprocess\ndef init():\n    subprocess.Popen(['sleep', '300'])\n    %s\ndef predict(r): return r\n"
	for _, c := range []struct {
		name, then string
		end        func(w *watchdog)
	}{
		{"when it drains", "pass", func(w *watchdog) { w.awaitReady(); _ = w.terminate(10 * time.Second) }},
		{"when it is killed", "pass", func(w *watchdog) { w.awaitReady(); _ = w.cmd.Process.Kill(); _ = w.awaitEnd(10 * time.Second) }},
		{"when init raises", "raise ValueError('no')", func(w *watchdog) {
			w.eventually(10*time.Second, "failed", func() bool { return strings.Contains(w.get("/_/ready").body, "ValueError") })
		}},
		{"when init leaves", "os._exit(3)", func(w *watchdog) {
			w.eventually(10*time.Second, "failed", func() bool { return strings.Contains(w.get("/_/ready").body, "exit code 3") })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := launch(t, bundle(t, map[string]string{"main.py": fmt.Sprintf(child, c.then)}))
			c.end(w)
			w.eventually(4*time.Second, "rid of init's child", func() bool {
				for _, line := range w.describe(w.processes()) {
					if strings.Contains(line, "sleep 300") {
						return false
					}
				}
				return true
			})
		})
	}
}

func TestWatchdogSigkilledLeavesNothing(t *testing.T) {
	const slowInit = "import os, time\ndef init():\n    open(os.environ['INIT_LOG'], 'a').write('x\\n')\n    %s\ndef predict(r): return r\n"
	for _, c := range []struct {
		name, init, request string
	}{
		{"idle", "", ""},
		{"while a worker sleeps", "", "note x 300"},
		{"while a worker loops, with a child", "", "loop"},
		{"while init sleeps", "time.sleep(300)", ""},
		{"while init loops", "while True: pass", ""},
		{"while init waits for a child", "import subprocess; subprocess.run(['sleep', '300'])", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var w *watchdog
			if c.init == "" {
				w = start(t, faults(t))
			} else {
				w = launch(t, bundle(t, map[string]string{"main.py": fmt.Sprintf(slowInit, c.init)}))
				w.eventually(10*time.Second, "in init", func() bool { return w.inits() == 1 })
				time.Sleep(100 * time.Millisecond)
			}
			if c.request != "" {
				go w.post(c.request)
				w.eventually(10*time.Second, "in predict", func() bool { return len(w.lines("notes")) == 1 })
			}
			_ = w.cmd.Process.Kill()
			_ = w.awaitEnd(10 * time.Second)
			w.awaitGone(1500 * time.Millisecond)
		})
	}
}

// The runner finds out by the report of what it was ordered to do, not by the end of its orders.
func TestWatchdogSigkilledWithAnOrderUnderWayLeavesNothing(t *testing.T) {
	t.Parallel()
	admin := filepath.Join(t.TempDir(), "admin.sock")
	w := start(t, faults(t), "admin_socket="+admin)
	go w.post("loop")
	w.eventually(10*time.Second, "in predict", func() bool { return len(w.lines("notes")) == 1 })
	worker, _, _ := strings.Cut(w.lines("notes")[0], "_")
	stat, err := os.ReadFile("/proc/" + worker + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, fields, _ := strings.Cut(string(stat), ") ") // behind the name: state, parent
	zygote, err := strconv.Atoi(strings.Fields(fields)[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(zygote, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	orders, err := filepath.Glob(filepath.Join(w.dir, "fwatchdog-*", "control.in"))
	if err != nil || len(orders) != 1 {
		t.Fatalf("channels of orders: %v %v", orders, err)
	}
	pipe, err := unix.Open(orders[0], unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", admin)
		}}}
		req, _ := http.NewRequest(http.MethodPut, "http://admin/workers", strings.NewReader(`{"workers": 3}`))
		if res, err := c.Do(req); err == nil {
			res.Body.Close()
		}
	}()
	w.eventually(10*time.Second, "an order is on its way", func() bool {
		n, err := unix.IoctlGetInt(pipe, unix.TIOCINQ)
		return err == nil && n > 0
	})
	unix.Close(pipe)
	_ = w.cmd.Process.Kill()
	if err := syscall.Kill(zygote, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	_ = w.awaitEnd(10 * time.Second)
	w.awaitGone(1500 * time.Millisecond)
}

// A killed watchdog cannot remove its folders; the next one in the same place does.
func TestWatchdogRemovesTheFoldersOfAKilledOne(t *testing.T) {
	t.Parallel()
	shared := t.TempDir()
	settings := []string{"TMPDIR=" + shared, "suppress_lock=true"}
	folders := func() []string {
		found, _ := filepath.Glob(filepath.Join(shared, "fwatchdog-*"))
		return found
	}
	living := start(t, faults(t), settings...)
	theirs := folders()
	killed := start(t, faults(t), settings...)
	if n := len(folders()); n != 2*len(theirs) || n == 0 {
		t.Fatalf("two watchdogs have %d folders, one %d", n, len(theirs))
	}
	_ = killed.cmd.Process.Kill()
	_ = killed.awaitEnd(10 * time.Second)
	if n := len(folders()); n != 2*len(theirs) {
		t.Fatalf("%d folders after a kill that can remove none", n)
	}
	next := start(t, faults(t), settings...)
	if n := len(folders()); n != 2*len(theirs) {
		t.Errorf("%d folders for two watchdogs: %v", n, folders())
	}
	living.wantBody("x", living.post("echo x"))
	_ = next.terminate(10 * time.Second)
	if left := folders(); !slices.Equal(left, theirs) {
		t.Errorf("the living one's folders are %v, were %v", left, theirs)
	}
	living.wantStatus(http.StatusBadGateway, living.post("exit 1"))
	living.wantBody("forked", living.post("echo forked"))
}

func TestWatchdogServesAModelWhoseInitClosedItsStreams(t *testing.T) {
	t.Parallel()
	w := start(t, bundle(t, map[string]string{"main.py": "import os, sys\ndef init():\n    sys.stdout.close()\n    sys.stderr = None\n    os.close(0)\n    os.close(1)\ndef predict(r): return r\n"}))
	w.wantBody("x", w.post("x"))
}

func TestWatchdogReplacesWorkersThatDieIdle(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=3")
	_, zygote, _ := strings.Cut(w.post("pid").body, " ")
	for range 3 {
		for _, pid := range w.processes() {
			if pid != w.cmd.Process.Pid && strconv.Itoa(pid) != zygote {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		w.wantBody("there", w.post("echo there"))
	}
	w.eventually(5*time.Second, "whole again", func() bool { return len(w.processes()) == 5 })
	if n := w.inits(); n != 1 {
		t.Errorf("init ran %d times", n)
	}
}

func TestWatchdogAnswersWhatWasUnderWayWhenTheRunnerDies(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=2")
	_, zygote, _ := strings.Cut(w.post("pid").body, " ")
	pid, _ := strconv.Atoi(zygote)
	answers := make(chan answer, 6)
	for n := range 6 {
		go func() { answers <- w.post(fmt.Sprintf("note %d 30", n), "X-Timeout: 20s") }()
	}
	w.eventually(5*time.Second, "busy", func() bool { return len(w.lines("notes")) == 2 })
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for range 6 {
		if a := <-answers; a.took > 10*time.Second || (a.status != http.StatusBadGateway && a.status != http.StatusServiceUnavailable) {
			t.Errorf("got %s", a)
		}
	}
	w.awaitReady()
	w.wantBody("again", w.post("echo again"))
}

// A worker that dies takes all that was its own along: descriptors, FIFOs, its slot of the journal.
func TestWatchdogKeepsNothingOfTheDead(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1")
	held := func() (files, descriptors int) {
		_ = filepath.WalkDir(w.dir, func(string, os.DirEntry, error) error { files++; return nil })
		entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.cmd.Process.Pid))
		return files, len(entries)
	}
	kill := func(times int) {
		for range times {
			w.wantStatus(http.StatusBadGateway, w.post("exit 1"))
			w.wantBody("", w.post("echo"))
		}
		time.Sleep(100 * time.Millisecond)
	}
	kill(5)
	files, descriptors := held()
	kill(300) // more than the journal has slots
	afterFiles, afterDescriptors := held()
	if afterFiles > files+2 || afterDescriptors > descriptors+6 {
		t.Errorf("after 300 deaths there are %d files and %d descriptors, before %d and %d", afterFiles, afterDescriptors, files, descriptors)
	}
	if err := w.terminate(10 * time.Second); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(w.path("fwatchdog-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
