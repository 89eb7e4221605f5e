package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const echoModel = "def predict(request):\n    return request\n"

func TestWatchdogTakesEveryBodyWithinTheLimit(t *testing.T) {
	t.Parallel()
	w := start(t, bundle(t, map[string]string{"main.py": echoModel}), "read_timeout=1s")
	const limit = 16 << 20
	for name, body := range map[string]string{
		"empty": "", "one byte": "x", "NUL": "a\x00b", "text": "Größe ☃ 🜲\r\n\n", "64 KiB": strings.Repeat("k", 64<<10),
		"64 KiB less a byte": strings.Repeat("k", 64<<10-1), "pipe": strings.Repeat("p", 256<<10), "16 MiB": strings.Repeat("m", limit),
		"16 MiB of two-byte letters": strings.Repeat("ß", limit/2),
	} {
		if a := w.post(body); a.status != http.StatusOK || a.body != body {
			t.Errorf("%s: %d, %d bytes for %d (%v)", name, a.status, len(a.body), len(body), a.err)
		}
		chunked, _ := http.NewRequest(http.MethodPut, "http://f/any/path?q=1", io.MultiReader(strings.NewReader(body)))
		if a := w.do(chunked); a.status != http.StatusOK || a.body != body {
			t.Errorf("%s, chunked: %d, %d bytes for %d (%v)", name, a.status, len(a.body), len(body), a.err)
		}
	}
	over := strings.Repeat("m", limit+1)
	w.wantStatus(http.StatusRequestEntityTooLarge, w.post(over)).problem(t)
	chunked, _ := http.NewRequest(http.MethodPost, "http://f/", io.MultiReader(strings.NewReader(over)))
	w.wantStatus(http.StatusRequestEntityTooLarge, w.do(chunked)).problem(t)
	for _, bad := range []string{"\xff", "abc\xc3", "\xed\xa0\x80", strings.Repeat("k", 100<<10) + "\xfe"} {
		w.wantStatus(http.StatusBadRequest, w.post(bad)).problem(t)
	}
	for _, method := range []string{"GET", "DELETE", "PATCH", "BREW"} {
		req, _ := http.NewRequest(method, "http://f/x", nil)
		w.wantStatus(http.StatusOK, w.do(req))
	}
	w.wantBody("end", w.post("end"))
}

// raw sends bytes as they are and returns what comes back until the watchdog closes or a while passes.
func (w *watchdog) raw(send func(net.Conn)) string {
	w.t.Helper()
	conn, err := net.Dial("unix", w.path("s"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	send(conn)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Sprintf("%s (%v)", line, err)
	}
	return line
}

func TestWatchdogLetsPredictTakeLongerThanReadTimeout(t *testing.T) {
	t.Parallel()
	slow := map[string]string{"main.py": "import time\ndef predict(r):\n    time.sleep(0.5)\n    return r\n"}
	w := start(t, bundle(t, slow), "read_timeout=300ms", "workers=1")
	if got := w.post("x"); got.status != http.StatusOK || got.body != "x" {
		t.Errorf("a short body got %d %q", got.status, got.body)
	}
	if got := w.post(""); got.status != http.StatusOK || got.body != "" {
		t.Errorf("no body got %d %q", got.status, got.body)
	}
	if rows := w.streamed(w.post("1\n2\n3\n", ndjson)); strings.Join(rows, "|") != "1|2|3" {
		t.Errorf("a stream got %q", rows)
	}
}

func TestWatchdogDoesNotWaitForASlowSender(t *testing.T) {
	t.Parallel()
	w := start(t, bundle(t, map[string]string{"main.py": echoModel}), "read_timeout=700ms")
	for name, head := range map[string]string{
		"small":   "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 100\r\n\r\nabc",
		"large":   "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 1000000\r\n\r\nabc",
		"chunked": "POST / HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			got := w.raw(func(conn net.Conn) {
				go func() { // a byte now and then must not prolong it
					for range 30 {
						time.Sleep(200 * time.Millisecond)
						piece := "x"
						if name == "chunked" {
							piece = "1\r\nx\r\n"
						}
						if _, err := conn.Write([]byte(piece)); err != nil {
							return
						}
					}
				}()
				_, _ = conn.Write([]byte(head))
			})
			if !strings.Contains(got, " 408 ") || time.Since(began) > 4*time.Second {
				t.Errorf("got %q after %s", got, time.Since(began))
			}
		})
	}
	t.Run("a client that goes", func(t *testing.T) {
		t.Parallel()
		for range 20 {
			conn, err := net.Dial("unix", w.path("s"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write([]byte("POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 100\r\n\r\nabc"))
			conn.Close()
		}
		w.wantBody("there", w.post("there"))
	})
	t.Run("a sender in pieces within the time", func(t *testing.T) {
		t.Parallel()
		got := w.raw(func(conn net.Conn) {
			for _, piece := range []string{"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 9\r\n\r\nab", "cde", "fghi"} {
				_, _ = conn.Write([]byte(piece))
				time.Sleep(100 * time.Millisecond)
			}
		})
		if !strings.Contains(got, " 200 ") {
			t.Errorf("got %q", got)
		}
	})
}

func TestWatchdogForgetsTheRequestOfAClientThatLeft(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1")
	leave := func(request string, begun bool) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://f/", strings.NewReader(request))
		went := make(chan answer)
		go func() { went <- w.do(req) }()
		if begun {
			w.eventually(5*time.Second, "in predict", func() bool { return len(w.lines("notes")) == 1 })
		} else {
			time.Sleep(150 * time.Millisecond)
		}
		cancel()
		if a := <-went; a.err == nil {
			t.Errorf("a cancelled request was answered: %s", a)
		}
	}
	leave("note during 1", true)
	leave("note before 0", false) // waits behind the first, which runs on
	w.wantBody("after", w.post("echo after"))
	if got := w.lines("notes"); len(got) != 1 || got[0] != "during" {
		t.Errorf("predict saw %v; the request whose client left the queue must not reach it", got)
	}
	if w.inits() != 1 {
		t.Error("a worker was lost to a client that left")
	}
}

func TestWatchdogAnswers429AtOnceWhenFull(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1", "queue_depth=3")
	answers := make(chan answer, 12)
	for range 12 {
		go func() { answers <- w.post("sleep 1") }()
	}
	full := false
	for end := time.Now().Add(900 * time.Millisecond); time.Now().Before(end) && !full; time.Sleep(20 * time.Millisecond) {
		a := w.get("/_/ready")
		full = a.status == http.StatusTooManyRequests && a.header.Get("Retry-After") != ""
	}
	if !full {
		t.Error("/_/ready did not tell of the full queue")
	}
	count := map[int]int{}
	for range 12 {
		a := <-answers
		count[a.status]++
		if a.status == http.StatusTooManyRequests {
			a.problem(t)
			if n, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || n < 1 {
				t.Errorf("Retry-After is %q", a.header.Get("Retry-After"))
			}
			if a.took > 800*time.Millisecond {
				t.Errorf("429 took %s", a.took)
			}
		}
	}
	if count[200] != 4 || count[429] != 8 {
		t.Errorf("answers are %v, not 4 × 200 and 8 × 429", count)
	}
	w.wantStatus(http.StatusOK, w.get("/_/ready"))
}

func TestWatchdogKeepsMaxInflight(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=2", "max_inflight=1")
	went := make(chan answer)
	go func() { went <- w.post("note first 0.7") }()
	w.eventually(5*time.Second, "in predict", func() bool { return len(w.lines("notes")) == 1 })
	w.wantStatus(http.StatusTooManyRequests, w.post("echo second")).problem(t)
	w.wantStatus(http.StatusTooManyRequests, w.get("/_/ready"))
	w.wantStatus(http.StatusOK, <-went)
	w.wantBody("third", w.post("echo third"))
}

func TestWatchdogAnswersEverythingAcceptedAfterSIGTERM(t *testing.T) {
	t.Run("what waits", func(t *testing.T) {
		t.Parallel()
		w := start(t, faults(t))
		answers := make(chan answer, 20)
		for n := range 20 {
			go func() { answers <- w.post(fmt.Sprintf("note %d 0.1", n)) }()
		}
		w.eventually(5*time.Second, "under load", func() bool {
			return strings.Contains(w.metrics(), "http_requests_in_flight 20") || len(w.lines("notes")) > 4
		})
		if err := w.terminate(20 * time.Second); err != nil {
			t.Errorf("left with %v", err)
		}
		for range 20 {
			w.wantStatus(http.StatusOK, <-answers)
		}
		w.awaitGone(time.Second)
	})
	t.Run("a steady load", func(t *testing.T) {
		t.Parallel()
		w := start(t, faults(t))
		var answered sync.Map
		var lost, count atomic.Int64
		var group sync.WaitGroup
		for c := range 8 {
			group.Add(1)
			go func() {
				defer group.Done()
				for n := 0; ; n++ {
					id := fmt.Sprintf("%d.%d", c, n)
					a := w.post("note " + id + " 0.002")
					if a.status == http.StatusOK {
						answered.Store(id, true)
						count.Add(1)
						continue
					}
					if a.err == nil && a.status != http.StatusServiceUnavailable {
						lost.Add(1)
					}
					if a.err != nil {
						return
					}
				}
			}()
		}
		time.Sleep(400 * time.Millisecond)
		if err := w.terminate(20 * time.Second); err != nil {
			t.Errorf("left with %v", err)
		}
		group.Wait()
		for _, id := range w.lines("notes") {
			if _, ok := answered.Load(id); !ok {
				t.Errorf("predict began %s, and nobody got its answer", id)
			}
		}
		if lost.Load() > 0 || count.Load() == 0 {
			t.Errorf("%d were answered, %d wrongly", count.Load(), lost.Load())
		}
		w.awaitGone(time.Second)
	})
	t.Run("unhealthy first, for healthcheck_interval", func(t *testing.T) {
		t.Parallel()
		w := start(t, faults(t), "healthcheck_interval=800ms")
		_ = w.cmd.Process.Signal(syscall.SIGTERM)
		w.eventually(5*time.Second, "unhealthy", func() bool { return w.get("/_/health").status == http.StatusServiceUnavailable })
		w.wantStatus(http.StatusServiceUnavailable, w.get("/_/ready"))
		w.wantBody("late", w.post("echo late"))
		if err := w.awaitEnd(10 * time.Second); err != nil {
			t.Errorf("left with %v", err)
		}
	})
	t.Run("no longer than drain_timeout", func(t *testing.T) {
		t.Parallel()
		w := start(t, faults(t), "drain_timeout=500ms")
		go w.post("loop")
		w.eventually(5*time.Second, "in predict", func() bool { return len(w.lines("notes")) == 1 })
		if err := w.terminate(10 * time.Second); err == nil {
			t.Error("left as if everything had been answered")
		}
		w.awaitGone(time.Second)
	})
	t.Run("during init", func(t *testing.T) {
		t.Parallel()
		w := launch(t, bundle(t, map[string]string{"main.py": "import time\ndef init(): time.sleep(300)\ndef predict(r): return r\n"}))
		w.eventually(10*time.Second, "listening", func() bool { return w.get("/_/health").status == http.StatusOK })
		if err := w.terminate(10 * time.Second); err != nil {
			t.Errorf("left with %v", err)
		}
		w.awaitGone(time.Second)
	})
}

func TestWatchdogLeavesAtOnceOnSIGINT(t *testing.T) {
	for _, c := range []struct {
		name    string
		signals []os.Signal
	}{
		{"alone", []os.Signal{syscall.SIGINT}},
		{"while it waits after SIGTERM", []os.Signal{syscall.SIGTERM, syscall.SIGINT}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, faults(t), "healthcheck_interval=60s")
			went := make(chan answer)
			go func() { went <- w.post("note slow 0.7") }()
			w.eventually(5*time.Second, "in predict", func() bool { return len(w.lines("notes")) == 1 })
			for n, s := range c.signals {
				if n > 0 {
					w.eventually(5*time.Second, "unhealthy", func() bool { return w.get("/_/health").status == http.StatusServiceUnavailable })
				}
				_ = w.cmd.Process.Signal(s)
			}
			if err := w.awaitEnd(10 * time.Second); err != nil {
				t.Errorf("left with %v", err)
			}
			w.wantStatus(http.StatusOK, <-went)
			w.awaitGone(time.Second)
		})
	}
}

func TestWatchdogTellsItsHealthToAnExecProbe(t *testing.T) {
	t.Parallel()
	w := launch(t, faults(t), "healthcheck_interval=60s")
	healthcheck := func() int {
		cmd := exec.Command(built.fwatchdog, "-run-healthcheck")
		cmd.Env = []string{"TMPDIR=" + w.dir}
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); (code != 0) != strings.Contains(string(out), w.path(".lock")) {
			t.Errorf("exit code %d with %q", code, out)
		}
		return cmd.ProcessState.ExitCode()
	}
	w.awaitReady()
	if code := healthcheck(); code != 0 {
		t.Errorf("healthy, and the exit code is %d", code)
	}
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	w.eventually(5*time.Second, "unhealthy", func() bool { return healthcheck() == 1 })
	w.wantBody("still served", w.post("echo still served"))
	_ = w.cmd.Process.Signal(syscall.SIGINT)
	_ = w.awaitEnd(10 * time.Second)

	removed := start(t, faults(t))
	if err := os.Remove(removed.path(".lock")); err != nil {
		t.Error(err)
	}
	removed.wantStatus(http.StatusServiceUnavailable, removed.get("/_/health"))

	without := start(t, faults(t), "suppress_lock=true")
	if _, err := os.Stat(without.path(".lock")); !os.IsNotExist(err) {
		t.Errorf("there is a lock file in spite of suppress_lock: %v", err)
	}
	without.wantStatus(http.StatusOK, without.get("/_/health"))
}

func TestWatchdogAnswersReadyPathAsItsOwn(t *testing.T) {
	t.Parallel()
	slow := map[string]string{"main.py": "import time\ndef init(): time.sleep(0.5)\n" + echoModel}
	w := launch(t, bundle(t, slow), "ready_path=/probes/ready")
	w.eventually(10*time.Second, "listening", func() bool { return w.get("/_/health").status == http.StatusOK })
	if d := w.wantStatus(http.StatusServiceUnavailable, w.get("/probes/ready")).problem(t).Detail; d != "init is running" {
		t.Errorf("detail is %q", d)
	}
	w.awaitReady()
	own, given := w.get("/_/ready"), w.get("/probes/ready")
	if given.status != own.status || given.body != own.body || given.body == "" {
		t.Errorf("ready_path got %s, /_/ready %s", given, own)
	}
	req, _ := http.NewRequest(http.MethodPost, "http://f/probes/ready", strings.NewReader("x"))
	w.wantStatus(http.StatusMethodNotAllowed, w.do(req))
	for _, path := range []string{"/probes/ready/", "/probes"} { // these are the model's
		req, _ := http.NewRequest(http.MethodPost, "http://f"+path, strings.NewReader("x"))
		w.wantBody("x", w.do(req))
	}
}

// A queue of small requests may be long; one of large bodies must not be what runs out of memory.
func TestWatchdogRefusesBodiesBeyondWhatMayWait(t *testing.T) {
	t.Parallel()
	const largest, most = 4000, 16
	w := start(t, faults(t), "workers=1", fmt.Sprintf("max_body_bytes=%d", largest))
	pid, _, _ := strings.Cut(w.post("pid").body, " ")
	worker, _ := strconv.Atoi(pid)
	body := "echo " + strings.Repeat("x", largest-5)
	for range 2 { // what was refused and what was answered gave back what they held
		_ = syscall.Kill(worker, syscall.SIGSTOP)
		answers := make(chan answer, most)
		for range most {
			go func() { answers <- w.post(body) }()
		}
		w.eventually(5*time.Second, "full", func() bool {
			return regexp.MustCompile(fmt.Sprintf(`(?m)^fwatchdog_queue_length{.*} %d$`, most-1)).MatchString(w.metrics())
		})
		refused := w.wantStatus(http.StatusTooManyRequests, w.post("echo x"))
		if d := refused.problem(t).Detail; d != "too many request bodies wait already" || refused.header.Get("Retry-After") == "" {
			t.Errorf("refused by %s, Retry-After %q", refused, refused.header.Get("Retry-After"))
		}
		for range 2 * most {
			w.wantStatus(http.StatusTooManyRequests, w.post(body))
			chunked, _ := http.NewRequest(http.MethodPost, "http://f/", io.MultiReader(strings.NewReader(body)))
			w.wantStatus(http.StatusTooManyRequests, w.do(chunked))
		}
		_ = syscall.Kill(worker, syscall.SIGCONT)
		for range most {
			w.wantStatus(http.StatusOK, <-answers)
		}
	}
	w.wantBody("x", w.post("echo x"))
}

func TestWatchdogTakesTheExtremesOfXTimeout(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "exec_timeout=0s")
	for n := range 200 {
		w.wantStatus(http.StatusGatewayTimeout, w.post(fmt.Sprintf("note %d 0", n), "X-Timeout: 1ns"))
	}
	stream := w.streamed(w.post(`"note row 0"`+"\n"+`"note row 0"`+"\n", ndjson, "X-Timeout: 1ns"))
	if len(stream) != 2 || !strings.Contains(stream[0], `"status":504`) || !strings.Contains(stream[1], `"status":504`) {
		t.Errorf("rows whose time was over got %q", stream)
	}
	if got := w.lines("notes"); len(got) != 0 {
		t.Errorf("predict saw %d requests whose time was over before", len(got))
	}
	if restarts := w.metrics(); !strings.Contains(restarts, "fwatchdog_worker_restarts{") || strings.Contains(restarts, `cause="timeout"`) {
		t.Error("a worker was killed for a request that it never had")
	}
	const longest = "2562047h47m16.854775807s"
	w.wantBody("x", w.post("echo x", "X-Timeout: "+longest))
	for _, refused := range []string{"2562047h47m16.854775808s", "0.1ns", "-" + longest, "1e9s", "NaN"} {
		w.wantStatus(http.StatusBadRequest, w.post("echo x", "X-Timeout: "+refused))
	}
}

// Batches are put together from the queue too.
func TestWatchdogPutsNothingIntoABatchWhoseTimeIsOver(t *testing.T) {
	t.Parallel()
	w := start(t, bundle(t, map[string]string{"main.py": `import os
def predict(request):
    open(os.environ["NOTES"], "a").write(request + "\n")
    return request
def predict_batch(requests):
    return [predict(r) for r in requests]
`}))
	for range 50 {
		w.wantStatus(http.StatusGatewayTimeout, w.post("late", "X-Timeout: 1ns"))
	}
	w.wantBody("timely", w.post("timely"))
	if got := w.lines("notes"); len(got) != 1 {
		t.Errorf("predict saw %v", got)
	}
}

func (w *watchdog) metrics() string {
	resp, err := w.admin.Get("http://a/metrics")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return string(body)
}

func TestWatchdogPutsItsHeadersOnEveryAnswer(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "max_body_bytes=1000")
	var version struct{ id string }
	seen := map[string]bool{}
	check := func(name string, a answer) {
		t.Helper()
		if a.err != nil {
			t.Errorf("%s: %v", name, a.err)
			return
		}
		if v := a.header.Get("X-Model-Version"); version.id == "" {
			version.id = v
		} else if v != version.id || v == "" {
			t.Errorf("%s: X-Model-Version is %q", name, v)
		}
		id := a.header.Get("X-Call-Id")
		if len(id) < 16 || seen[id] {
			t.Errorf("%s: X-Call-Id is %q", name, id)
		}
		seen[id] = true
		if s, err := strconv.ParseFloat(a.header.Get("X-Duration-Seconds"), 64); err != nil || s < 0 || s > 10 {
			t.Errorf("%s: X-Duration-Seconds is %q", name, a.header.Get("X-Duration-Seconds"))
		}
		if timing := a.header.Get("Server-Timing"); !strings.Contains(timing, "queue;dur=") || !strings.Contains(timing, "predict;dur=") {
			t.Errorf("%s: Server-Timing is %q", name, timing)
		}
	}
	check("200", w.wantStatus(200, w.post("echo x")))
	check("400", w.wantStatus(400, w.post("\xff")))
	check("404", w.wantStatus(404, w.get("/_/nothing")))
	check("413", w.wantStatus(413, w.post(strings.Repeat("x", 1001))))
	check("500", w.wantStatus(500, w.post("none")))
	check("502", w.wantStatus(502, w.post("exit 1")))
	check("504", w.wantStatus(504, w.post("sleep 9", "X-Timeout: 100ms")))
	check("health", w.wantStatus(200, w.get("/_/health")))
	check("ready", w.wantStatus(200, w.get("/_/ready")))
	check("version", w.wantStatus(200, w.get("/_/version")))
	if a := w.post("echo x", "X-Call-Id: mine-1"); a.header.Get("X-Call-Id") != "mine-1" {
		t.Errorf("the caller's X-Call-Id became %q", a.header.Get("X-Call-Id"))
	}
	for _, hostile := range []string{strings.Repeat("x", 500), "a b", "ü"} {
		if a := w.post("echo x", "X-Call-Id: "+hostile); a.header.Get("X-Call-Id") == hostile {
			t.Errorf("X-Call-Id %.20q came back", hostile)
		}
	}
	if a := w.post("sleep 0.2"); true {
		took, _ := strconv.ParseFloat(a.header.Get("X-Duration-Seconds"), 64)
		if took < 0.2 || took > a.took.Seconds() {
			t.Errorf("X-Duration-Seconds is %g of %s", took, a.took)
		}
	}
	if a := w.get("/_/version"); !strings.Contains(a.body, version.id) || !strings.Contains(a.body, `"runtime":"python3"`) || !strings.Contains(a.body, `"code_digest"`) {
		t.Errorf("/_/version is %s", a)
	}
}

func TestWatchdogNamesItsMetrics(t *testing.T) {
	t.Parallel()
	function, side := freePort(t), freePort(t)
	w := launch(t, faults(t), "socket_path=", "port="+function, "metrics_port="+side)
	base := "http://127.0.0.1:" + function
	w.client = &http.Client{Timeout: 20 * time.Second, Transport: rehost{"127.0.0.1:" + function}}
	w.awaitReady()
	w.wantBody("x", w.post("echo x"))
	w.wantStatus(502, w.post("exit 1"))
	w.wantStatus(504, w.post("sleep 9", "X-Timeout: 50ms"))
	resp, err := http.Get("http://127.0.0.1:" + side + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for _, want := range []string{
		`http_requests_total{code="200",method="POST"} 1`, `http_requests_total{code="502",method="POST"} 1`,
		`http_request_duration_seconds_bucket{code="200",method="POST",le=`, "http_requests_in_flight 0",
		"fwatchdog_queue_seconds_bucket{", "fwatchdog_predict_seconds_count{", "fwatchdog_batch_size_bucket{",
		"fwatchdog_workers{", "fwatchdog_workers_ready{", "fwatchdog_workers_busy{", "fwatchdog_queue_length{", "fwatchdog_worker_restarts{",
		`version="`, `cause="crash"`, `cause="timeout"`,
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if a := w.get("/metrics"); a.status == http.StatusOK && strings.Contains(a.body, "fwatchdog_workers") {
		t.Errorf("%s/metrics is open on the function's port", base)
	}
}

// rehost sends every request to one address.
type rehost struct{ address string }

func (r rehost) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Host = r.address
	return http.DefaultTransport.RoundTrip(req)
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// A model that is mostly fast has calls sent ahead of it; none may wait behind a slow one while
// another worker idles.
func TestWatchdogNeverLetsAFastRequestWaitBehindASlowOne(t *testing.T) {
	w := start(t, faults(t), "workers=2")
	for range 2000 {
		w.wantBody("", w.post("echo"))
	}
	if late := w.lateBehindSlow(); late > 0 {
		t.Errorf("%d fast requests took more than 100 ms", late)
	}
}

// lateBehindSlow mixes a few slow requests into many fast ones and returns how many of the fast took
// more than 100 ms.
func (w *watchdog) lateBehindSlow() (late int) {
	w.t.Helper()
	stopSlow := make(chan struct{})
	var group sync.WaitGroup
	group.Add(1)
	go func() {
		defer group.Done()
		for {
			select {
			case <-stopSlow:
				return
			default:
			}
			w.wantStatus(200, w.post("sleep 0.3"))
			time.Sleep(60 * time.Millisecond) // fast ones bring the pace down again
		}
	}()
	var mu sync.Mutex
	var took []time.Duration
	for c := range 6 {
		group.Add(1)
		go func() {
			defer group.Done()
			for n := range 500 {
				text := fmt.Sprintf("%d.%d", c, n)
				a := w.post("echo " + text)
				if a.status != 200 || a.body != text {
					w.t.Errorf("%s: %s", text, a)
				}
				mu.Lock()
				took = append(took, a.took)
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		}()
	}
	time.Sleep(2 * time.Second)
	close(stopSlow)
	group.Wait()
	slices.Sort(took)
	for _, d := range took {
		if d > 100*time.Millisecond {
			late++
		}
	}
	w.t.Logf("%d fast requests: median %s, p99 %s, longest %s", len(took), took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	return late
}

func TestWatchdogCommands(t *testing.T) {
	t.Parallel()
	dir := bundle(t, map[string]string{
		"main.py":   echoModel,
		"model.yml": "name: parrot\ncode_version: \"1.2\"\nexamples:\n  - {request: a, response: a}\n  - {request: b, response: wrong}\n",
	})
	run := func(want int, args ...string) string {
		t.Helper()
		cmd := exec.Command(built.fwatchdog, args...)
		cmd.Env = append(os.Environ(), "interpreter="+built.interpreter, "TMPDIR="+t.TempDir(), "PYTHONDONTWRITEBYTECODE=1")
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%v: exit code %d, not %d: %s", args, got, want, out)
		}
		return string(out)
	}
	if out := run(0, "version", dir); !strings.Contains(out, `"name": "parrot"`) || !strings.Contains(out, `"version": "1.2_`) {
		t.Errorf("version prints %s", out)
	}
	if out := run(1, "check", dir); !strings.Contains(out, `example 2: request "b": expected "wrong", got "b"`) || !strings.Contains(out, "1 of 2 examples failed") {
		t.Errorf("check prints %s", out)
	}
	if err := os.WriteFile(filepath.Join(dir, "model.yml"), []byte("examples: [{request: a, response: a}]"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(0, "check", dir)
	if err := os.WriteFile(filepath.Join(dir, "main.py"), []byte("def init(): 1/0\n"+echoModel), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := run(1, "check", dir); !strings.Contains(out, "ZeroDivisionError") {
		t.Errorf("check prints %s", out)
	}
	if out := run(1, "version", filepath.Join(dir, "nothing")); !strings.Contains(out, "nothing") {
		t.Errorf("version prints %s", out)
	}
	run(1, "-run-healthcheck")
	run(1, "frobnicate")
	if out := run(0, "--help"); !strings.Contains(out, "max_body_bytes") {
		t.Errorf("help prints %s", out)
	}
}

// A client that does not read its answer costs a connection, not a worker.
func TestWatchdogDoesNotWaitForASlowReader(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1", "write_timeout=700ms")
	for range 3 {
		conn, err := net.Dial("unix", w.path("s"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		const request = "big 8000000"
		_, _ = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: f\r\nContent-Length: %d\r\n\r\n%s", len(request), request)
	}
	time.Sleep(100 * time.Millisecond)
	w.wantBody("free", w.post("echo free"))
	w.eventually(10*time.Second, "rid of the readers", func() bool { return strings.Contains(w.metrics(), "http_requests_in_flight 0") })
}
