package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestWatchdogTakesWhatPredictPrintsAsLogLines(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1")
	const many = 4000 // about 4 MB
	w.wantBody("printed", w.post("lines 4000"))
	w.wantBody("13", w.post("fd1 straight out"))
	w.wantBody("said", w.post("stderr a complaint"))
	w.eventually(5*time.Second, "printed", func() bool {
		return strings.Contains(w.stdout.String(), "straight out\n") && strings.Contains(w.stderr.String(), "a complaint\n")
	})
	out := strings.Split(strings.TrimSpace(w.stdout.String()), "\n")
	if len(out) != many+1 {
		t.Errorf("%d lines came out, not %d", len(out), many+1)
	}
	for n, line := range out[:many] {
		if !strings.HasPrefix(line, "line ") || len(line) < 1000 {
			t.Fatalf("line %d is %.50q", n, line)
		}
	}
	if strings.Contains(w.stdout.String(), "complaint") || strings.Contains(w.stdout.String(), "level=") {
		t.Error("stdout holds what belongs to stderr")
	}
}

func TestWatchdogPrefixesAndCutsLines(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1", "prefix_logs=true", "log_buffer_size=200", "log_callid=true", "log_format=json")
	w.wantBody("printed", w.post("lines 1", "X-Call-Id: call-77"))
	w.eventually(5*time.Second, "printed", func() bool { return strings.Count(w.stdout.String(), "\n") >= 6 })
	for _, line := range strings.Split(strings.TrimSpace(w.stdout.String()), "\n") {
		date, rest, _ := strings.Cut(line, " stdout: ")
		if _, err := time.Parse("2006/01/02 15:04:05", date); err != nil || len(rest) > 200 {
			t.Errorf("line is %q", line)
		}
	}
	w.eventually(5*time.Second, "logged", func() bool { return strings.Contains(w.stderr.String(), `"call_id":"call-77"`) })
}

func TestWatchdogOutlivesWhatPredictDoesToItsProcess(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1")
	home := w.wantStatus(http.StatusOK, w.post("cwd")).body
	pid := w.post("pid").body
	w.wantBody("/", w.post("chdir"))
	w.wantBody(home, w.post("cwd"))
	w.wantBody("closed", w.post("close_stdout"))
	w.wantBody("still", w.post("echo still"))
	for _, fd := range []string{"0", "1", "2"} {
		w.wantBody("closed", w.post("close_fd "+fd))
		w.wantBody("still", w.post("echo still"))
	}
	w.wantBody(pid, w.post("pid"))
	w.wantBody(strings.Repeat("ü", 3_000_000), w.post("big 3000000"))
}

func TestWatchdogAnswers500ForWhatPredictMustNotDo(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1")
	pid := w.post("pid").body
	for _, c := range []struct{ request, detail, logged string }{
		{"none", "NoneType", ""},
		{"int", "int", ""},
		{"bytes", "bytes", ""},
		{"surrogate", "surrogates", ""},
		{"raise Türgriff", "ValueError: Schlüssel ☃ fehlt: Türgriff", "in raises"},
		{"raise_surrogate", `half \ud800 a pair`, "in raises_surrogate"},
		{"sysexit", "SystemExit: 3", "Traceback"},
		{"interrupt", "KeyboardInterrupt", "Traceback"},
		{"no such verb", "KeyError: 'no'", "in predict"},
	} {
		a := w.wantStatus(http.StatusInternalServerError, w.post(c.request, "X-Call-Id: id-of-"+strings.Fields(c.request)[0]))
		p := a.problem(t)
		if !strings.Contains(p.Detail, c.detail) {
			t.Errorf("%s: the detail %q does not say %q", c.request, p.Detail, c.detail)
		}
		if p.CallID != a.header.Get("X-Call-Id") || p.CallID != "id-of-"+strings.Fields(c.request)[0] {
			t.Errorf("%s: call id is %q", c.request, p.CallID)
		}
		if strings.Contains(a.body, "Traceback") || strings.Contains(a.body, "main.py") {
			t.Errorf("%s: the traceback reached the caller: %s", c.request, a)
		}
		if c.logged == "" {
			continue
		}
		w.eventually(5*time.Second, "logged", func() bool { return strings.Contains(w.stderr.String(), p.CallID) })
		for line := range strings.Lines(w.stderr.String()) {
			if strings.Contains(line, "call_id="+p.CallID+" ") && !strings.Contains(line, c.logged) {
				t.Errorf("the log does not say %q: %s", c.logged, line)
			}
		}
	}
	w.wantBody(pid, w.post("pid"))
}
