package async

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// What a child that is killed in the midst of its work is told.
const (
	crashDir      = "CRASH_DIR"
	crashStep     = "CRASH_STEP"
	crashCallback = "CRASH_CALLBACK"
	crashAccept   = "CRASH_ACCEPT" // how many calls it accepts
)

// crashCalls is how many calls are accepted before the kill at the latest.
const crashCalls = 20

// journal is an Executor that writes down what it executes in a file that outlives it.
type journal struct{ file *os.File }

func (j journal) Execute(_ context.Context, call *Call) Result {
	if _, err := fmt.Fprintln(j.file, call.ID); err != nil {
		return Result{Status: http.StatusInternalServerError}
	}
	if strings.HasPrefix(call.Target, "/fail") {
		return Result{Status: http.StatusInternalServerError}
	}
	return Result{Status: http.StatusOK, Header: http.Header{"Content-Type": {"text/plain"}}, Body: call.Body}
}

// crash is the child: it accepts calls, says which, works on them and kills itself at the step, the third time it
// comes by. Without a step it ends when its input does.
func crash() {
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	dir := os.Getenv(crashDir)
	file, err := os.OpenFile(filepath.Join(dir, "executed"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	check(err)
	ackWait = 300 * time.Millisecond
	at := os.Getenv(crashStep)
	var met atomic.Int64
	// A kill meets whatever else is going on. So that each step is met alone, a kill elsewhere waits until no
	// report is under way: that one could be in the window which "reported" is about.
	var report sync.Mutex
	step = func(name string) {
		if name == "result fetched" {
			report.Lock()
		}
		if name == at && met.Add(1) == 3 {
			if !slices.Contains([]string{"result fetched", "reported", "marked", "report acknowledged"}, at) {
				report.Lock()
			}
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		}
		if name == "report acknowledged" {
			report.Unlock()
		}
	}
	q := New(testSettings(dir), prometheus.NewRegistry())
	q.Start(journal{file})
	n, err := strconv.Atoi(os.Getenv(crashAccept))
	check(err)
	for i := range n {
		call := testCall("/", fmt.Sprintf("body %d", i), os.Getenv(crashCallback))
		if i%5 == 4 {
			call.Target = "/fail"
		}
		check(q.Accept(context.Background(), call))
		fmt.Println(call.ID) // what a 202 is to a client
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	check(q.Close(context.Background()))
	os.Exit(0)
}

func testSettings(dir string) Settings {
	return Settings{
		Dir: filepath.Join(dir, "nats"), Sync: time.Second, MaxMessages: 1000, MaxBytes: 64 << 20, MaxBodyBytes: 1 << 20,
		Concurrency: 4, MaxAttempts: 2, RetryMaxWait: 20 * time.Millisecond, CallbackTimeout: 5 * time.Second, AllowPrivate: true,
		DeadMax: 100, DeadAge: time.Hour,
	}
}

func testCall(target, body, callback string) *Call {
	c := &Call{
		Ref: backend.Ref{Namespace: "openfaas-fn", Name: "iris"}, Name: "iris", Method: http.MethodPost, Target: target, Host: "x",
		Header: http.Header{}, Callback: callback, Accepted: time.Now(), Body: []byte(body),
	}
	c.Identify("")
	return c
}

func TestMain(m *testing.M) {
	if os.Getenv(crashDir) != "" {
		crash()
	}
	os.Exit(m.Run())
}

// receiver is a callback that counts.
type receiver struct {
	mu    sync.Mutex
	got   map[string]int
	wrong []string
	http.Handler
}

func newReceiver(t *testing.T) (*receiver, string) {
	r := &receiver{got: map[string]int{}}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got[req.Header.Get("X-Call-Id")]++
		ok := req.Header.Get("X-Function-Status") == "200" && strings.HasPrefix(string(body), "body ")
		failed := req.Header.Get("X-Function-Status") == "500"
		if !ok && !failed || req.Header.Get("X-Function-Name") != "iris" || req.Header.Get("X-Duration-Seconds") == "" {
			r.wrong = append(r.wrong, fmt.Sprintf("%v %s", req.Header, body))
		}
	}))
	t.Cleanup(server.Close)
	return r, server.URL
}

func (r *receiver) reports() (ids, reports int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.got {
		reports += n
	}
	return len(r.got), reports
}

func child(dir, at, callback string, accept int) (*exec.Cmd, *bytes.Buffer, io.WriteCloser) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashStep+"="+at, crashCallback+"="+callback, crashAccept+"="+strconv.Itoa(accept))
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	in, _ := cmd.StdinPipe()
	return cmd, out, in
}

func TestKillAtEveryStepLosesNoCallAndReportsOnce(t *testing.T) {
	for at, doubles := range map[string]int{
		"accepting": 0, "accepted": 0, "call fetched": 0, "executed": 0, "call dead": 0, "result stored": 0, "execute acknowledged": 0,
		"result fetched": 0, "reported": 1, "marked": 0, "report acknowledged": 0, "never": 0,
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			callback, url := newReceiver(t)
			first, said, in := child(dir, at, url, crashCalls)
			if err := first.Start(); err != nil {
				t.Fatal(err)
			}
			if at == "never" { // stopped in the midst of it
				time.Sleep(50 * time.Millisecond)
				in.Close()
			}
			err := first.Wait()
			if died := first.ProcessState.Sys().(syscall.WaitStatus).Signaled(); died != (at != "never") {
				t.Fatalf("killed: %v, %v", died, err)
			}
			accepted := strings.Fields(said.String())
			second, _, in := child(dir, "", url, 0)
			if err := second.Start(); err != nil {
				t.Fatal(err)
			}
			deadline := time.Now().Add(30 * time.Second)
			for {
				ids, _ := callback.reports()
				if ids >= len(accepted) || time.Now().After(deadline) {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(3 * 300 * time.Millisecond) // what is not acknowledged would come again within that
			in.Close()
			if err := second.Wait(); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(filepath.Join(dir, "executed"))
			if err != nil {
				t.Fatal(err)
			}
			executed := map[string]int{}
			for _, id := range strings.Fields(string(raw)) {
				executed[id]++
			}
			callback.mu.Lock()
			defer callback.mu.Unlock()
			lost, unreported, twice := 0, 0, 0
			for _, id := range accepted {
				if executed[id] == 0 {
					lost++
				}
				if callback.got[id] == 0 {
					unreported++
				}
			}
			for _, n := range callback.got {
				twice += n - 1
			}
			t.Logf("accepted %d, executed %d, reported %d", len(accepted), len(executed), len(callback.got))
			if lost != 0 || unreported != 0 || len(accepted) == 0 && at != "accepting" && at != "accepted" {
				t.Errorf("of %d accepted calls %d were not executed and %d not reported", len(accepted), lost, unreported)
			}
			if twice != doubles { // the one that was between the callback's answer and its marker
				t.Errorf("%d reports were made twice, want %d", twice, doubles)
			}
			if len(callback.wrong) > 0 {
				t.Errorf("wrong reports: %q", callback.wrong)
			}
		})
	}
}
