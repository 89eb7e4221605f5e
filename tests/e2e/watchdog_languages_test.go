package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// language is one that fwatchdog has a runner for, with the bundle that does what it is told.
type language struct {
	name     string
	faults   string
	settings []string
	slowInit string // a bundle's entry whose init does %s after it noted that it began
	entry    string
	sleep    string
	loop     string
	child    string // run and wait for a program that sleeps
}

func languages(t *testing.T) []language {
	t.Helper()
	r, err := filepath.Abs(filepath.Join("testdata", "faults_r"))
	if err != nil {
		t.Fatal(err)
	}
	return []language{{
		name: "python3", faults: faults(t), entry: "main.py",
		slowInit: "import os, time, subprocess\ndef init():\n    open(os.environ['INIT_LOG'], 'a').write('x\\n')\n    %s\ndef predict(r): return r\n",
		sleep:    "time.sleep(300)", loop: "while True: pass", child: "subprocess.run(['sleep', '300'])",
	}, {
		name: "r", faults: r, settings: []string{"interpreter=Rscript"}, entry: "main.R",
		slowInit: "init <- function() {\n  cat('x\\n', file = Sys.getenv('INIT_LOG'), append = TRUE)\n  %s\n}\npredict <- function(request) request\n",
		sleep:    "Sys.sleep(300)", loop: "repeat {}", child: "system('sleep 300')",
	}}
}

// inEvery runs a test once for each language.
func inEvery(t *testing.T, test func(t *testing.T, l language)) {
	for _, l := range languages(t) {
		t.Run(l.name, func(t *testing.T) { test(t, l) })
	}
}

func (l language) start(t *testing.T, settings ...string) *watchdog {
	t.Helper()
	return start(t, l.faults, append(slices.Clone(l.settings), settings...)...)
}

// startR is start for the R bundle that does what it is told.
func startR(t *testing.T, settings ...string) *watchdog {
	t.Helper()
	return languages(t)[1].start(t, settings...)
}

// The table is what a caller sees of a model, whatever it is written in.
func TestEveryLanguageIsAnsweredWithTheSameStatusesAndHeaders(t *testing.T) {
	table := []struct {
		request, body string // body: "" is not compared
		status        int
		detail        string
		headers       []string
	}{
		{request: "echo grün ☃", body: "grün ☃", status: http.StatusOK},
		{request: "echo", body: "", status: http.StatusOK},
		{request: "big 100000", body: strings.Repeat("ü", 100_000), status: http.StatusOK},
		{request: "cwd", status: http.StatusOK},
		{request: "chdir", body: "/", status: http.StatusOK},
		{request: "lines 50", body: "printed", status: http.StatusOK},
		{request: "stderr a word", body: "said", status: http.StatusOK},
		{request: "echo \xff", status: http.StatusBadRequest},
		{request: "none", status: http.StatusInternalServerError, detail: "must return a string; it returned "},
		{request: "int", status: http.StatusInternalServerError, detail: "it returned int"},
		{request: "bytes", status: http.StatusInternalServerError, detail: "it returned "},
		{request: "raise Türgriff", status: http.StatusInternalServerError, detail: "Schlüssel ☃ fehlt: Türgriff"},
		{request: "no such verb", status: http.StatusInternalServerError},
		{request: "exit 0", status: http.StatusBadGateway, detail: "exit code 0"},
		{request: "exit 9", status: http.StatusBadGateway, detail: "exit code 9"},
		{request: "sigkill", status: http.StatusBadGateway, detail: "signal 9"},
		{request: "sigsegv", status: http.StatusBadGateway, detail: "signal 11"},
		{request: "sleep 30", status: http.StatusGatewayTimeout, headers: []string{"X-Timeout: 300ms"}},
		{request: "loop", status: http.StatusGatewayTimeout, headers: []string{"X-Timeout: 300ms"}},
	}
	seen := map[string][]string{} // the header names of an answer, by request, of the first language
	inEvery(t, func(t *testing.T, l language) {
		w := l.start(t, "workers=1")
		for _, c := range table {
			a := w.wantStatus(c.status, w.post(c.request, append(c.headers, "X-Call-Id: the-call")...))
			if c.body != "" && a.body != c.body {
				t.Errorf("%s: the body is %.100q", c.request, a.body)
			}
			if !strings.Contains(a.body, c.detail) {
				t.Errorf("%s: does not say %q: %s", c.request, c.detail, a)
			}
			if strings.Contains(a.body, "Traceback") || strings.Contains(a.body, l.entry) {
				t.Errorf("%s: the traceback reached the caller: %s", c.request, a)
			}
			if a.header.Get("X-Call-Id") != "the-call" || a.header.Get("X-Model-Version") == "" {
				t.Errorf("%s: headers are %v", c.request, a.header)
			}
			names := slices.Sorted(maps.Keys(a.header))
			if first, known := seen[c.request]; !known {
				seen[c.request] = names
			} else if !slices.Equal(first, names) {
				t.Errorf("%s: headers are %v, in the other language %v", c.request, names, first)
			}
		}
		if n := w.inits(); n != 1 {
			t.Errorf("init ran %d times", n)
		}
	})
}

// Requests that one worker has at once must not share its fate in any language.
func TestEveryLanguageLosesOneCallPerDeath(t *testing.T) {
	inEvery(t, func(t *testing.T, l language) {
		w := l.start(t, "workers=1")
		for range 300 {
			w.wantBody("warm", w.post("echo warm"))
		}
		var group sync.WaitGroup
		const clients, each, everyth = 16, 40, 40
		for c := range clients {
			group.Go(func() {
				for n := range each {
					request, want := fmt.Sprintf("echo %d.%d", c, n), http.StatusOK
					if (c*each+n)%everyth == everyth-1 {
						request, want = "exit 1", http.StatusBadGateway
					}
					a := w.post(request)
					if a.status != want || (want == http.StatusOK && "echo "+a.body != request) {
						t.Errorf("%q: %s", request, a)
					}
				}
			})
		}
		group.Wait()
		if n := w.inits(); n != 1 {
			t.Errorf("init ran %d times", n)
		}
	})
}

func TestEveryLanguageIsBackWithinMillisecondsOfADeath(t *testing.T) {
	inEvery(t, func(t *testing.T, l language) {
		w := l.start(t, "workers=1")
		var gaps []time.Duration
		for range 9 {
			w.wantStatus(http.StatusBadGateway, w.post("sigkill"))
			began := time.Now()
			w.wantBody("back", w.post("echo back"))
			gaps = append(gaps, time.Since(began))
		}
		slices.Sort(gaps)
		t.Logf("back after %v", gaps)
		if gaps[len(gaps)/2] > 100*time.Millisecond {
			t.Errorf("the median gap is %s, more than 100 ms", gaps[len(gaps)/2])
		}
	})
}

func TestEveryLanguageLeavesNothingWhenTheWatchdogIsKilled(t *testing.T) {
	inEvery(t, func(t *testing.T, l language) {
		for _, c := range []struct{ name, init, request string }{
			{"idle", "", ""},
			{"while a worker sleeps", "", "note x 300"},
			{"while a worker loops, with a child", "", "loop"},
			{"while init sleeps", l.sleep, ""},
			{"while init loops", l.loop, ""},
			{"while init waits for a child", l.child, ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				var w *watchdog
				if c.init == "" {
					w = l.start(t)
				} else {
					w = launch(t, bundle(t, map[string]string{l.entry: fmt.Sprintf(l.slowInit, c.init)}), l.settings...)
					w.eventually(10*time.Second, "in init", func() bool { return w.inits() == 1 })
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
	})
}

// A runner that dies takes along everything that it and its workers started, under spawn with their
// init under way too, and the next one serves.
func TestEveryLanguageStartsAgainWhenItsRunnerDies(t *testing.T) {
	inEvery(t, func(t *testing.T, l language) {
		w := l.start(t)
		before := w.processes()
		answers := make(chan answer, 2)
		for range 2 {
			go func() { answers <- w.post("loop", "X-Timeout: 20s") }()
		}
		w.eventually(5*time.Second, "busy", func() bool { return len(w.lines("notes")) == 2 })
		runner := childOf(t, w.cmd.Process.Pid)
		_ = syscall.Kill(runner, syscall.SIGKILL)
		for range 2 {
			if a := <-answers; a.took > 10*time.Second || (a.status != http.StatusBadGateway && a.status != http.StatusServiceUnavailable) {
				t.Errorf("got %s", a)
			}
		}
		w.awaitReady()
		w.wantBody("again", w.post("echo again"))
		for _, pid := range before {
			if pid != w.cmd.Process.Pid && alive(pid) {
				t.Errorf("left behind: %v", w.describe([]int{pid}))
			}
		}
	})
}

// ppidOf is the parent of a process, or 0 when it is gone.
func ppidOf(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}

// childOf returns the oldest child of a process.
func childOf(t *testing.T, parent int) int {
	t.Helper()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	oldest := 0
	for _, stat := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		if ppidOf(pid) == parent && (oldest == 0 || pid < oldest) {
			oldest = pid
		}
	}
	if oldest == 0 {
		t.Fatalf("process %d has no child", parent)
	}
	return oldest
}
