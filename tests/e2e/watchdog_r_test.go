package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// R users write predict(model, newdata) in a function that is called predict.
func TestRModelsReachThePredictOfTheirModels(t *testing.T) {
	t.Parallel()
	w := startR(t)
	w.wantBody("29.6098", w.post("lm 12"))        // predict(lm(dist ~ speed, cars), data.frame(speed = 12))
	w.wantBody("0.4921", w.post("glm 3"))         // type = "response", so the method's own arguments arrive
	w.wantBody("14", w.post("own 7"))             // a method that the bundle defines
	w.wantBody("again ü", w.post("again echo ü")) // predict of a string is the bundle's
}

func TestRStringsAreUTF8InEveryLocale(t *testing.T) {
	t.Parallel()
	for _, locale := range [][]string{{"LC_ALL=C"}, {"LANG=C", "LC_CTYPE=POSIX"}, {"LC_ALL=C.UTF-8"}, {"LC_ALL=no_such"}} {
		w := startR(t, append(locale, "workers=1")...)
		w.wantBody("7 GRÜN ☃Ñ", w.post("chars grün ☃ñ"))
		w.wantBody("grün", w.post("latin1"))
		w.wantBody("said", w.post("stderr Schlüssel ☃"))
		w.wantBody("printed", w.post("print Schlüssel ☃"))
		if a := w.wantStatus(http.StatusInternalServerError, w.post("raise Türgriff")); !strings.Contains(a.body, "Schlüssel ☃ fehlt: Türgriff") {
			t.Errorf("%v: %s", locale, a)
		}
		w.eventually(5*time.Second, "printed", func() bool {
			return strings.Contains(w.stderr.String(), "\nSchlüssel ☃\n") && strings.Contains(w.stdout.String(), `[1] "Schlüssel ☃"`)
		})
	}
}

func TestRAnswers500ForWhatPredictMustNotDo(t *testing.T) {
	t.Parallel()
	w := startR(t, "workers=1")
	pid := w.post("pid").body
	for _, c := range []struct{ request, detail, logged string }{
		{"none", "it returned NULL", ""},
		{"int", "it returned integer of length 1", ""},
		{"missing", "it returned NA", ""},
		{"two", "it returned a character vector of length 2", ""},
		{"factor", "it returned factor of length 1", ""},
		{"bytes", "it returned raw of length 3", ""},
		{"broken", "it returned a string that has no UTF-8", ""},
		{"echo a\x00b", "the request holds a NUL byte", ""},
		{"raise Türgriff", "simpleError: Schlüssel ☃ fehlt: Türgriff", `1: predict(request)`},
		{"raise where", "fehlt: where", "at main.R#"},
		{"condition gone", "no_such_plant: gone", "Traceback"},
		{"deep", "too ", ""},
	} {
		a := w.wantStatus(http.StatusInternalServerError, w.post(c.request))
		p := a.problem(t)
		if !strings.Contains(p.Detail, c.detail) {
			t.Errorf("%s: the detail %q does not say %q", c.request, p.Detail, c.detail)
		}
		w.eventually(5*time.Second, "logged", func() bool {
			for line := range strings.Lines(w.stderr.String()) {
				if strings.Contains(line, p.CallID) && strings.Contains(line, c.logged) {
					return true
				}
			}
			return c.logged == ""
		})
	}
	if a := w.post("pid"); a.body != pid {
		t.Errorf("the worker was replaced: %s", a)
	}
}

// Rows of a stream reach R many at a time. Each still has its own answer, whatever its neighbours are.
func TestRAnswersEachRowOfAStreamByItself(t *testing.T) {
	const code = `init <- function() options(warn = 2)
predict <- function(request) switch(request,
  fail = stop("not this one"),
  warn = warning("nor this one"),
  number = 1,
  missing = NA_character_,
  latin1 = iconv("gr\u00fcn", "UTF-8", "latin1"),
  move = { setwd("/"); "moved" },
  where = basename(getwd()),
  leave = quit(status = 3),
  nchar = "",
  paste0("<", request, ">"))
`
	special := []struct {
		row, want string
		status    int
	}{
		{`"fail"`, "", 500}, {`"a\u0000b"`, "", 500}, {`"warn"`, "", 500}, {`"number"`, "", 500}, {`"missing"`, "", 500}, {`"leave"`, "", 502},
		{`"latin1"`, `"grün"`, 0}, {`"move"`, `"moved"`, 0}, {`"nchar"`, `""`, 0}, {`""`, `"<>"`, 0}, {`"NA"`, `"<NA>"`, 0}, {`"☃ ü"`, `"<☃ ü>"`, 0},
	}
	const batch = "predict_batch <- function(requests) vapply(requests, predict, \"\", USE.NAMES = FALSE)\n"
	for name, code := range map[string]string{"alone": code, "batch": code + batch} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := bundle(t, map[string]string{"main.R": code})
			w := start(t, dir, "interpreter=Rscript", "workers=2")
			var rows []string
			for n := range 40 * len(special) {
				if n%40 == 17 {
					rows = append(rows, special[n/40].row)
				} else {
					rows = append(rows, strconv.Quote(strings.Repeat("x", n%50+1)))
				}
			}
			lines := w.streamed(w.post(strings.Join(rows, "\n"), ndjson))
			if len(lines) != len(rows) {
				t.Fatalf("%d rows came back for %d", len(lines), len(rows))
			}
			for n, line := range lines {
				want, status := strings.Replace(rows[n], `"x`, `"<x`, 1), 0
				want = strings.TrimSuffix(want, `"`) + `>"`
				if n%40 == 17 {
					want, status = special[n/40].want, special[n/40].status
				}
				if rowStatus(line) != status || status == 0 && line != want {
					t.Errorf("row %d, %s, gave %s, not %s or status %d", n, rows[n], line, want, status)
				}
			}
			w.wantBody(filepath.Base(dir), w.post("where"))
			if strings.Contains(w.stderr.String(), "truncating") {
				t.Error("the log has R's warning of how the runner reads")
			}
		})
	}
}

func TestRModelsThatLeaveCostOneCall(t *testing.T) {
	t.Parallel()
	w := startR(t, "workers=1")
	for _, request := range []string{"quit", "exit 0", "toplevel"} {
		w.wantStatus(http.StatusBadGateway, w.post(request))
		w.wantBody("there", w.post("echo there"))
		// R's own quit removes the folder that all workers share.
		w.wantBody("TRUE", w.post("tempdir"))
	}
	if n := w.inits(); n != 1 {
		t.Errorf("init ran %d times", n)
	}
}

func TestRModelsMayCloseAllConnectionsAndWarn(t *testing.T) {
	t.Parallel()
	w := startR(t, "workers=1")
	pid := w.post("pid").body
	w.wantBody("closed", w.post("close_connections"))
	w.wantBody("warned", w.post("warn of this"))
	w.wantBody("printed", w.post("lines 3"))
	w.wantBody(pid, w.post("pid"))
	w.eventually(5*time.Second, "logged", func() bool {
		return strings.Contains(w.stderr.String(), "careful: of this") && strings.Count(w.stdout.String(), "line ") == 3
	})
}

// init left a generator in a known state. Workers that went on from it would draw the same numbers.
func TestRWorkersDoNotShareARandomStream(t *testing.T) {
	t.Parallel()
	ecuyer := bundle(t, map[string]string{"main.R": "init <- function() {\n  RNGkind(\"L'Ecuyer-CMRG\")\n  set.seed(1)\n}\n" +
		"predict <- function(request) {\n  Sys.sleep(0.05)\n  paste(Sys.getpid(), runif(1))\n}\n"})
	plain := bundle(t, map[string]string{"main.R": "init <- function() {\n  set.seed(1)\n  runif(1)\n}\n" +
		"predict <- function(request) {\n  Sys.sleep(0.05)\n  paste(Sys.getpid(), runif(1))\n}\n"})
	for _, dir := range []string{ecuyer, plain} {
		w := start(t, dir, "interpreter=Rscript", "workers=3")
		answers := make(chan string)
		for range 9 {
			go func() { answers <- w.post("x").body }()
		}
		pids, numbers := map[string]bool{}, map[string]bool{}
		for range 9 {
			pid, number, _ := strings.Cut(<-answers, " ")
			pids[pid], numbers[number] = true, true
		}
		if len(pids) < 2 || len(numbers) != 9 {
			t.Errorf("%d workers drew %d different numbers of 9", len(pids), len(numbers))
		}
	}
}

func TestRSpawnsAWorkerWithItsOwnInit(t *testing.T) {
	t.Parallel()
	w := startR(t, "workers=2", "start_method=spawn")
	w.wantBody("x", w.post("echo x"))
	if n := w.inits(); n != 2 {
		t.Errorf("init ran %d times for 2 workers", n)
	}
}

// Under spawn a worker's init may be under way when everything that could stop it dies.
func TestRWorkersInInitGoWithTheirRunner(t *testing.T) {
	t.Parallel()
	dir := bundle(t, map[string]string{"main.R": "init <- function() {\n  cat('x\\n', file = Sys.getenv('INIT_LOG'), append = TRUE)\n  repeat {}\n}\npredict <- function(request) request\n"})
	w := launch(t, dir, "interpreter=Rscript", "workers=1", "start_method=spawn")
	w.eventually(10*time.Second, "in init", func() bool { return w.inits() == 1 })
	_ = w.cmd.Process.Kill()
	_ = w.awaitEnd(10 * time.Second)
	w.awaitGone(1500 * time.Millisecond)
}

func TestRTellsWhyItsInitFailed(t *testing.T) {
	for _, c := range []struct{ name, code, says string }{
		{"stop", "init <- function() stop('no coefficients')\npredict <- function(request) request", "Error in init() : no coefficients"},
		{"a missing package", "library(no.such.package)\npredict <- function(request) request", "there is no package called"},
		{"a syntax error", "predict <- function(request) {\n  request ]\n}", "main.R:2:11: unexpected ']'"},
		{"no function", "predict <- 'soon'", "main.R does not define predict(request)"},
		{"quit", "init <- function() quit(status = 3)\npredict <- function(request) request", "exit code 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := launch(t, bundle(t, map[string]string{"main.R": c.code}), "interpreter=Rscript")
			w.eventually(15*time.Second, "failed", func() bool { return strings.Contains(w.get("/_/ready").body, "init failed") })
			if body := w.get("/_/ready").body; !strings.Contains(body, c.says) {
				t.Errorf("does not say %q: %s", c.says, body)
			}
		})
	}
}

// A worker that dies takes all that was its own along, its entry in the runner's folder too.
func TestRKeepsNothingOfTheDead(t *testing.T) {
	t.Parallel()
	w := startR(t, "workers=1")
	held := func() (files int) {
		_ = filepath.WalkDir(w.dir, func(string, os.DirEntry, error) error { files++; return nil })
		return files + 1000*len(w.processes())
	}
	kill := func(times int) {
		for range times {
			w.wantStatus(http.StatusBadGateway, w.post("exit 1"))
			w.wantBody("", w.post("echo"))
		}
		time.Sleep(200 * time.Millisecond)
	}
	kill(5)
	before := held()
	kill(60)
	if after := held(); after > before+2 {
		t.Errorf("after 60 deaths there are %d processes and %d files, before %d and %d", after/1000, after%1000, before/1000, before%1000)
	}
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	_ = w.awaitEnd(10 * time.Second)
	if left, _ := filepath.Glob(w.path("*")); strings.Contains(strings.Join(left, " "), "Rtmp") {
		t.Errorf("left behind: %v", left)
	}
}

// whatRIsToldAtItsStart is what differs between R as Rscript starts it and R started any other way.
const whatRIsToldAtItsStart = `
predict <- function(request) {
  told <- Sys.getenv()
  told <- told[grepl("^R_|^LD_|^PAGER$|^EDITOR$", names(told)) & names(told) != "R_SESSION_TMPDIR"]
  paste(c(paste(names(told), told, sep = "="), .libPaths(), R.home("share"), R.home("doc"), R.home("include"), search(), interactive(),
          commandArgs()[1:3], Sys.getlocale()), collapse = "\n")
}`

// Where R is installed as usual it is started without its starter, a shell script, and knows the same as with it.
func TestRStartsWithoutAShell(t *testing.T) {
	t.Parallel()
	rscript, err := exec.LookPath("Rscript")
	if err != nil {
		t.Fatal(err)
	}
	starter, err := os.ReadFile(filepath.Join(filepath.Dir(rscript), "R"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"bare/Rscript":    "\x7fELF, but no program", // so that a start by way of it fails
		"bare/R":          strings.Replace(string(starter), "#!/bin/bash", "#!/no/such/shell", 1),
		"wrapper/Rscript": "#!/bin/sh\nexec " + rscript + ` "$@"`, // is run as it stands
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	model := bundle(t, map[string]string{"main.R": whatRIsToldAtItsStart})
	settings := []string{"workers=1", "LD_LIBRARY_PATH=/some/where", "R_LIBS_USER=" + dir}
	without := start(t, model, append(settings, "interpreter="+filepath.Join(dir, "bare", "Rscript"))...)
	with := start(t, model, append(settings, "interpreter="+filepath.Join(dir, "wrapper", "Rscript"))...)
	told := without.wantStatus(http.StatusOK, without.post("")).body
	with.wantBody(told, with.post(""))
	if !strings.Contains(told, "R_SHARE_DIR=") || !strings.Contains(told, ":/some/where\n") {
		t.Errorf("R was told\n%s", told)
	}
}
