package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// read_timeout is for a sender that is silent. One whose rows wait for a slow model is not.
func TestWatchdogWaitsForASlowModelLongerThanForASilentSender(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "read_timeout=1s", "workers=1")
	const count = 1500
	row := `"sleep 0.002"` + strings.Repeat(" ", 100) + "\n" // more than twice the watchdog's buffer, and over three seconds
	rows := w.streamed(w.post(strings.Repeat(row, count), ndjson))
	if len(rows) != count {
		t.Errorf("%d of %d rows were answered; the last one: %s", len(rows), count, rows[len(rows)-1])
	}
	for n, line := range rows {
		if rowStatus(line) != 0 {
			t.Fatalf("row %d: %s", n, line)
		}
	}
}

func TestWatchdogAnswersWhatASilentSenderHadSent(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "read_timeout=300ms", "workers=1")
	body, send := io.Pipe()
	defer send.Close()
	req, _ := http.NewRequest(http.MethodPost, "http://f/", body)
	req.Header.Set("Content-Type", "application/x-ndjson")
	go io.WriteString(send, `"sleep 1"`+"\n"+`"echo 2"`+"\n")
	rows := w.streamed(w.do(req))
	if len(rows) != 3 || rowStatus(rows[0]) != 0 || rows[1] != `"2"` || rowStatus(rows[2]) != http.StatusRequestTimeout {
		t.Errorf("rows are %q, want two answers and 408", rows)
	}
}

var resident = regexp.MustCompile(`VmRSS:\s+(\d+) kB`)

func (w *watchdog) residentMiB() int {
	w.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	kb, _ := strconv.Atoi(string(resident.FindSubmatch(status)[1]))
	return kb >> 10
}

// pump sends text again and again, as many bytes as asked, and returns the answer.
func (w *watchdog) pump(text string, bytes int, last string) answer {
	body, send := io.Pipe()
	go func() {
		out := bufio.NewWriterSize(send, 256<<10)
		for range bytes / len(text) {
			if _, err := out.WriteString(text); err != nil {
				return
			}
		}
		out.WriteString(last)
		out.Flush()
		send.Close()
	}()
	req, _ := http.NewRequest(http.MethodPost, "http://f/", body)
	req.Header.Set("Content-Type", "application/x-ndjson")
	return w.do(req)
}

func TestWatchdogKeepsNoBlankLines(t *testing.T) {
	t.Parallel()
	w := start(t, faults(t), "workers=1")
	rows := w.streamed(w.pump(strings.Repeat(" ", 60_000)+"\n", 300<<20, `"echo 1"`+"\n"))
	if len(rows) != 1 || rows[0] != `"1"` {
		t.Errorf("rows are %q", rows)
	}
	if got := w.residentMiB(); got > 150 {
		t.Errorf("300 MiB of blank lines left %d MiB", got)
	}
}

// A line may be as long as max_body_bytes; so many streams that each have one must not fill the memory.
func TestWatchdogHoldsFewLongLinesAtOnce(t *testing.T) {
	t.Parallel()
	w := start(t, bundle(t, map[string]string{"main.py": "import time\n\ndef predict(request):\n    time.sleep(0.02)\n    return str(len(request))\n"}),
		"max_body_bytes=4194304", "workers=1", "read_timeout=30s")
	line := `"` + strings.Repeat("x", 3<<20) + `"` + "\n"
	const streams = 250
	most, done := 0, make(chan struct{})
	var watch, all sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				most = max(most, w.residentMiB())
			}
		}
	})
	for range streams {
		all.Go(func() {
			rows := w.streamed(w.pump(line, len(line), ""))
			if len(rows) != 1 || rowStatus(rows[0]) != 0 {
				t.Errorf("rows are %.200q", rows)
			}
		})
	}
	all.Wait()
	close(done)
	watch.Wait()
	// 16 lines, which their growth and the collector's slack make several times as much.
	if t.Logf("at most %d MiB", most); most > 450 {
		t.Errorf("%d streams with a line of 3 MiB each took %d MiB", streams, most)
	}
}
