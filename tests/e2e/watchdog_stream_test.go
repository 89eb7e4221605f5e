package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const ndjson = "Content-Type: application/x-ndjson"

// streamed decodes an answer line by line.
func (w *watchdog) streamed(a answer) []string {
	w.t.Helper()
	w.wantStatus(http.StatusOK, a)
	if got := a.header.Get("Content-Type"); got != "application/x-ndjson" {
		w.t.Errorf("Content-Type is %q", got)
	}
	if a.body == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(a.body, "\n"), "\n")
}

func rowStatus(line string) int {
	var row struct {
		Error struct{ Status int }
	}
	_ = json.Unmarshal([]byte(line), &row)
	return row.Error.Status
}

func TestWatchdogAnswersRowsInOrder(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t))
	var rows strings.Builder
	const count = 5000
	for n := range count {
		if n%500 == 250 {
			fmt.Fprintf(&rows, "\"sleep 0.0%d\"\n", n/500)
		} else {
			fmt.Fprintf(&rows, "\"echo %d\"\n", n)
		}
	}
	lines := w.streamed(w.post(rows.String(), ndjson))
	if len(lines) != count {
		t.Fatalf("%d rows came back, not %d", len(lines), count)
	}
	for n, line := range lines {
		want := fmt.Sprintf(`"%d"`, n)
		if n%500 == 250 {
			want = fmt.Sprintf(`"0.0%d"`, n/500)
		}
		if line != want {
			t.Fatalf("row %d is %s, not %s", n, line, want)
		}
	}
	if lines := w.streamed(w.post("", ndjson)); len(lines) != 0 {
		t.Errorf("nothing gave %q", lines)
	}
}

func TestWatchdogGoesOnAfterABadRow(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "max_body_bytes=1000", "exec_timeout=3s")
	rows := []struct {
		line   string
		status int    // of the error, or 0
		want   string // the row
	}{
		{`"echo 1"`, 0, `"1"`},
		{`{not json`, 400, ""},
		{`"unfinished`, 400, ""},
		{"\"\xff\"", 400, ""},
		{`"echo ` + strings.Repeat("x", 2000) + `"`, 413, ""},
		{`"raise x"`, 500, ""},
		{`"none"`, 500, ""},
		{`"echo gr\u00fc\u00dfe \"\n\u2603"`, 0, `"grüße \"\n☃"`},
		{`"exit 1"`, 502, ""},
		{`"echo 2"`, 0, `"2"`},
		{`"loop"`, 504, ""},
		{`"echo last, without an end"`, 0, `"last, without an end"`},
	}
	var body []string
	for _, r := range rows {
		body = append(body, r.line)
	}
	lines := w.streamed(w.post(strings.Join(body, "\n\n"), ndjson)) // empty lines are no rows
	if len(lines) != len(rows) {
		t.Fatalf("%d rows came back for %d:\n%s", len(lines), len(rows), strings.Join(lines, "\n"))
	}
	for n, r := range rows {
		if r.status != 0 && rowStatus(lines[n]) != r.status {
			t.Errorf("row %d (%.40s) is %s, not an error of status %d", n, r.line, lines[n], r.status)
		}
		if r.status == 0 && lines[n] != r.want {
			t.Errorf("row %d is %s, not %s", n, lines[n], r.want)
		}
	}
}

func TestWatchdogTakesAndGivesJSONValues(t *testing.T) {
	t.Parallel()
	w := start(t, bundle(t, map[string]string{"main.py": `
import json
def predict(request):
    if request == "[1, 2]":
        return "not json"
    if request == "true":
        return "{\n}"
    value = json.loads(request)
    return json.dumps({"got": value})
`}))
	in := []string{`{"a": [1, 2.5, null]}`, `7`, `[1, 2]`, `true`, `"3"`}
	want := []string{`{"got": {"a": [1, 2.5, null]}}`, `{"got": 7}`, `"not json"`, `"{\n}"`, `"{\"got\": 3}"`}
	got := w.streamed(w.post(strings.Join(in, "\r\n")+"\r\n", ndjson+"; charset=utf-8"))
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q\nnot %q", got, want)
	}
}

func TestWatchdogStreamsWhileTheClientStillSends(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "read_timeout=2s")
	body, send := io.Pipe()
	req, _ := http.NewRequest(http.MethodPost, "http://f/", body)
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := w.client.Do(req) // returns before any row is sent
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	rows := bufio.NewReader(resp.Body)
	for n := range 50 {
		if n == 25 {
			time.Sleep(1200 * time.Millisecond) // a pause is not the end
		}
		if _, err := fmt.Fprintf(send, "\"echo %d\"\n", n); err != nil {
			t.Fatal(err)
		}
		line, err := rows.ReadString('\n')
		if want := fmt.Sprintf("\"%d\"\n", n); line != want {
			t.Fatalf("row %d is %q, not %q (%v)", n, line, want, err)
		}
	}
	send.Close()
	if rest, err := io.ReadAll(rows); err != nil || len(rest) > 0 {
		t.Errorf("after the last row came %q (%v)", rest, err)
	}
	if resp.Trailer.Get("X-Duration-Seconds") == "" || resp.Trailer.Get("Server-Timing") == "" || resp.Header.Get("X-Call-Id") == "" {
		t.Errorf("trailer is %v", resp.Trailer)
	}
}

func TestWatchdogHoldsBackASenderWhoseAnswersNobodyReads(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "write_timeout=20s")
	body, send := io.Pipe()
	req, _ := http.NewRequest(http.MethodPost, "http://f/", body)
	req.Header.Set("Content-Type", "application/x-ndjson")
	const count = 20_000
	row := strings.Repeat("x", 1000)
	var sent atomic.Int64
	go func() {
		for n := range count {
			if _, err := fmt.Fprintf(send, "\"echo %d %s\"\n", n, row); err != nil {
				return
			}
			sent.Add(1)
		}
		send.Close()
	}()
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	before := int64(-1)
	w.eventually(10*time.Second, "holding the sender back", func() bool {
		now := sent.Load()
		held := now == before && now > 0
		before = now
		time.Sleep(300 * time.Millisecond)
		return held
	})
	// What may lie between the two: socket buffers, the rows under way, the buffers of both ends.
	if before > 4000 {
		t.Errorf("%d rows of a kilobyte were taken from a client that reads nothing", before)
	}
	rows := bufio.NewScanner(resp.Body)
	got := 0
	for ; rows.Scan(); got++ {
		if !strings.HasPrefix(rows.Text(), fmt.Sprintf("\"%d ", got)) {
			t.Fatalf("row %d is %.30s", got, rows.Text())
		}
	}
	if got != count || rows.Err() != nil {
		t.Errorf("%d of %d rows came back (%v)", got, count, rows.Err())
	}
}

func TestWatchdogForgetsAStreamWhoseClientLeft(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1")
	body, send := io.Pipe()
	req, _ := http.NewRequest(http.MethodPost, "http://f/", body)
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for n := range 100 {
			_, _ = fmt.Fprintf(send, "\"note %d 0.02\"\n", n)
		}
	}()
	if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	send.Close()
	w.wantBody("free", w.post("echo free"))
	w.eventually(5*time.Second, "rid of the stream", func() bool { return strings.Contains(w.metrics(), "http_requests_in_flight 0") })
	time.Sleep(100 * time.Millisecond)
	begun := len(w.lines("notes"))
	time.Sleep(200 * time.Millisecond)
	if after := len(w.lines("notes")); after != begun || after == 100 {
		t.Errorf("rows nobody waits for are still predicted: %d, then %d", begun, after)
	}
}

const batchModel = `
import os, time

def init():
    with open(os.environ["INIT_LOG"], "a") as log:
        log.write("x\n")

def predict(request):
    if request == "bad":
        raise ValueError("a bad row")
    if request == "die":
        os._exit(5)
    if request.startswith("slow"):
        time.sleep(0.5)
    return "1:" + request

def predict_batch(requests):
    if "bad" in requests:
        raise ValueError("a bad row in the batch")
    if "die" in requests:
        os._exit(5)
    if "short" in requests:
        return requests[1:]
    if "odd" in requests:
        return [None if r == "odd" else r for r in requests]
    return [f"{len(requests)}:{r}" for r in requests]
`

// behind posts requests while the only worker is busy, so that they wait together.
func (w *watchdog) behind(requests ...string) map[string]answer {
	w.t.Helper()
	first := make(chan answer)
	go func() { first <- w.post("slow") }()
	w.eventually(5*time.Second, "busy", func() bool { return strings.Contains(w.metrics(), "fwatchdog_workers_busy") && w.busy() == 1 })
	type named struct {
		request string
		answer  answer
	}
	all := make(chan named, len(requests))
	for _, r := range requests {
		go func() { all <- named{r, w.post(r)} }()
	}
	answers := map[string]answer{}
	for range requests {
		a := <-all
		answers[a.request] = a.answer
	}
	w.wantStatus(http.StatusOK, <-first)
	return answers
}

func (w *watchdog) busy() (n int) {
	for line := range strings.Lines(w.metrics()) {
		if strings.HasPrefix(line, "fwatchdog_workers_busy{") {
			_, _ = fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &n)
		}
	}
	return n
}

func TestWatchdogGivesWhatWaitsToPredictBatchTogether(t *testing.T) {
	t.Parallel()
	w := start(t, bundle(t, map[string]string{"main.py": batchModel}), "workers=1", "batch_max_size=4")
	w.wantBody("1:alone", w.post("alone"))
	together := 0
	for r, a := range w.behind("a", "b", "c", "d", "e", "f") {
		size, rest, _ := strings.Cut(a.body, ":")
		if a.status != http.StatusOK || rest != r || size > "4" {
			t.Errorf("%s: %s", r, a)
		}
		if size != "1" {
			together++
		}
	}
	if together < 4 {
		t.Errorf("%d of 6 waiting requests went to predict_batch", together)
	}
	if w.inits() != 1 {
		t.Errorf("init ran %d times", w.inits())
	}
}

func TestWatchdogFailsOnlyTheBadRequestOfABatch(t *testing.T) {
	for _, c := range []struct {
		bad    string
		status int
	}{{"bad", 500}, {"die", 502}, {"odd", 500}, {"short", 200}} {
		t.Run(c.bad, func(t *testing.T) {
			t.Parallel()
			w := start(t, bundle(t, map[string]string{"main.py": batchModel}), "workers=1")
			for r, a := range w.behind("a", "b", c.bad, "d", "e") {
				want := http.StatusOK
				if r == c.bad {
					want = c.status
				}
				if a.status != want || (want == http.StatusOK && !strings.HasSuffix(a.body, r)) {
					t.Errorf("%s: %s", r, a)
				}
			}
			w.wantBody("1:after", w.post("after"))
			if w.inits() != 1 {
				t.Errorf("init ran %d times", w.inits())
			}
		})
	}
}

func (w *watchdog) resize(n int) (state struct{ Workers, Ready int }) {
	w.t.Helper()
	req, _ := http.NewRequest(http.MethodPut, "http://a/workers", strings.NewReader(fmt.Sprintf(`{"workers":%d}`, n)))
	resp, err := w.admin.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		w.t.Fatalf("resize to %d: %s", n, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&state); err != nil {
		w.t.Fatal(err)
	}
	return state
}

func TestWatchdogResizesByForking(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1")
	stop := w.load(4)
	for _, n := range []int{8, 2, 5, 1} {
		began := time.Now()
		if s := w.resize(n); s.Workers != n || s.Ready != n {
			t.Errorf("after a resize to %d: %+v", n, s)
		}
		t.Logf("resized to %d in %s", n, time.Since(began).Round(time.Millisecond))
		// The watchdog, the zygote, and its workers.
		w.eventually(5*time.Second, fmt.Sprintf("down to %d processes", n+2), func() bool { return len(w.processes()) == n+2 })
	}
	w.unharmed(stop)
	if n := w.inits(); n != 1 {
		t.Errorf("init ran %d times", n)
	}
	for _, bad := range []string{`{"workers":0}`, `{"workers":100000}`, `{}`, `nonsense`} {
		req, _ := http.NewRequest(http.MethodPut, "http://a/workers", strings.NewReader(bad))
		resp, err := w.admin.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", bad, resp.Status)
		}
	}
}

func TestWatchdogShrinksWithoutLosingWhatAWorkerHas(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=4")
	answers := make(chan answer, 4)
	for n := range 4 {
		go func() { answers <- w.post(fmt.Sprintf("note %d 0.6", n)) }()
	}
	w.eventually(5*time.Second, "busy", func() bool { return len(w.lines("notes")) == 4 })
	w.resize(1)
	for range 4 {
		w.wantStatus(http.StatusOK, <-answers)
	}
	w.wantBody("x", w.post("echo x"))
}

func TestWatchdogSpawnsAWorkerWithItsOwnInit(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=3", "start_method=spawn")
	if n := w.inits(); n != 3 {
		t.Errorf("init ran %d times for 3 workers", n)
	}
	w.wantBody("x", w.post("echo x"))
	w.wantStatus(http.StatusBadGateway, w.post("exit 1"))
	w.eventually(5*time.Second, "whole again", func() bool { return w.inits() == 4 })
	w.resize(4)
	if n := w.inits(); n != 5 {
		t.Errorf("init ran %d times, not 5", n)
	}
}

func TestWatchdogFinishesAStreamAfterSIGTERM(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t))
	var rows strings.Builder
	const count = 300
	for n := range count {
		fmt.Fprintf(&rows, "\"note %d 0.005\"\n", n)
	}
	went := make(chan answer)
	go func() { went <- w.post(rows.String(), ndjson) }()
	w.eventually(5*time.Second, "streaming", func() bool { return len(w.lines("notes")) > 10 })
	if err := w.terminate(20 * time.Second); err != nil {
		t.Errorf("left with %v", err)
	}
	lines := w.streamed(<-went)
	if len(lines) != count {
		t.Fatalf("%d of %d rows came back", len(lines), count)
	}
	for n, line := range lines {
		if line != fmt.Sprintf(`"%d 0.005"`, n) {
			t.Errorf("row %d is %s", n, line)
		}
	}
}

func TestWatchdogGivesRowsOfAStreamToPredictBatch(t *testing.T) {
	t.Parallel()
	w := start(t, bundle(t, map[string]string{"main.py": batchModel}), "workers=1")
	var rows []string
	for n := range 400 {
		row := fmt.Sprintf("r%d", n)
		if n == 123 {
			row = "bad"
		}
		if n == 321 {
			row = "die"
		}
		rows = append(rows, `"`+row+`"`)
	}
	lines := w.streamed(w.post(strings.Join(rows, "\n"), ndjson))
	if len(lines) != len(rows) {
		t.Fatalf("%d of %d rows came back", len(lines), len(rows))
	}
	batched := 0
	for n, line := range lines {
		switch {
		case n == 123 && rowStatus(line) == 500, n == 321 && rowStatus(line) == 502:
		case !strings.HasSuffix(line, fmt.Sprintf(`:r%d"`, n)):
			t.Errorf("row %d is %s", n, line)
		case !strings.HasPrefix(line, `"1:`):
			batched++
		}
	}
	if batched < 100 {
		t.Errorf("only %d of %d rows went to predict_batch with others", batched, len(rows))
	}
}
