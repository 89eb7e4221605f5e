// Package e2e runs the project's real programs and holds them to what design and documents promise.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// markVariable is in the environment of every watchdog a test starts, with a value of its own, and
// is inherited by whatever that watchdog starts. It finds what was left behind.
const markVariable = "FWATCHDOG_E2E_MARK"

var built struct {
	dir         string
	fwatchdog   string
	interpreter string
}

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fw-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	built.dir, built.fwatchdog = dir, filepath.Join(dir, "fwatchdog")
	build := exec.Command("go", "build", "-o", built.fwatchdog, "github.com/faas-predict/faas-predict/watchdog")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build fwatchdog: %v\n%s", err, out)
		return 1
	}
	// A version manager's wrapper costs more time than Python's own start.
	out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "python3 is needed:", err)
		return 1
	}
	built.interpreter = strings.TrimSpace(string(out))
	return m.Run()
}

// output keeps what a process printed.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// watchdog is a running fwatchdog and what a test knows about it.
type watchdog struct {
	t      *testing.T
	dir    string
	mark   string
	cmd    *exec.Cmd
	client *http.Client
	admin  *http.Client
	stdout output
	stderr output
	ended  chan struct{}
	err    error // of Wait, once ended is closed
}

// bundle writes files as a bundle and returns its directory.
func bundle(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// faults is the directory of the bundle that does what it is told.
func faults(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("testdata", "faults"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func unixClient(socket string) *http.Client {
	return &http.Client{
		Timeout: 60 * time.Second,
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 256,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}
}

// launch starts fwatchdog on a bundle and returns at once. Settings are NAME=value. When the test
// ends it is stopped, and must leave nothing.
func launch(t *testing.T, bundleDir string, settings ...string) *watchdog {
	t.Helper()
	return launchBy(t, nil, bundleDir, settings...)
}

// launchBy is launch by way of another program, whose arguments fwatchdog's path follows.
func launchBy(t *testing.T, by []string, bundleDir string, settings ...string) *watchdog {
	t.Helper()
	// Not t.TempDir: the path of a Unix socket must be short.
	dir, err := os.MkdirTemp("", "fwe")
	if err != nil {
		t.Fatal(err)
	}
	w := &watchdog{t: t, dir: dir, mark: filepath.Base(dir), ended: make(chan struct{})}
	w.client, w.admin = unixClient(w.path("s")), unixClient(w.path("a"))
	argv := append(by, built.fwatchdog)
	w.cmd = exec.Command(argv[0], argv[1:]...)
	w.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, markVariable + "=" + w.mark, "PYTHONDONTWRITEBYTECODE=1",
		"model_path=" + bundleDir, "interpreter=" + built.interpreter, "socket_path=" + w.path("s"), "admin_socket=" + w.path("a"),
		"workers=2", "healthcheck_interval=0s", "prefix_logs=false",
		"INIT_LOG=" + w.path("init.log"), "NOTES=" + w.path("notes"),
	}, settings...)
	w.cmd.Stdout, w.cmd.Stderr = &w.stdout, &w.stderr
	w.cmd.WaitDelay = 5 * time.Second
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		w.err = w.cmd.Wait()
		close(w.ended)
	}()
	t.Cleanup(w.cleanUp)
	return w
}

// start is launch, and waits until the model is ready.
func start(t *testing.T, bundleDir string, settings ...string) *watchdog {
	t.Helper()
	w := launch(t, bundleDir, settings...)
	w.awaitReady()
	return w
}

func (w *watchdog) path(name string) string { return filepath.Join(w.dir, name) }

func (w *watchdog) awaitReady() {
	w.t.Helper()
	w.eventually(30*time.Second, "ready", func() bool {
		resp, err := w.client.Get("http://f/_/ready")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode == http.StatusOK
	})
}

func (w *watchdog) eventually(within time.Duration, what string, is func() bool) {
	w.t.Helper()
	for end := time.Now().Add(within); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not %s within %s; the watchdog said:\n%s", what, within, tail(w.stderr.String()))
		}
	}
}

func tail(s string) string {
	if len(s) > 4000 {
		return "…" + s[len(s)-4000:]
	}
	return s
}

func (w *watchdog) cleanUp() {
	w.client.CloseIdleConnections()
	w.admin.CloseIdleConnections()
	select {
	case <-w.ended:
	default:
		_ = w.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-w.ended:
		case <-time.After(15 * time.Second):
			w.t.Errorf("fwatchdog did not leave within 15 s of SIGTERM:\n%s", tail(w.stderr.String()))
			_ = w.cmd.Process.Kill()
			<-w.ended
		}
	}
	if strings.Contains(w.stderr.String(), "panic:") || strings.Contains(w.stderr.String(), "DATA RACE") {
		w.t.Errorf("fwatchdog panicked:\n%s", tail(w.stderr.String()))
	}
	w.awaitGone(3 * time.Second)
	for _, pid := range w.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if w.t.Failed() {
		w.t.Logf("%s stderr:\n%s", w.mark, tail(w.stderr.String()))
	}
	_ = os.RemoveAll(w.dir)
}

// awaitGone fails the test when any process of this watchdog is left after a while.
func (w *watchdog) awaitGone(within time.Duration) {
	w.t.Helper()
	end := time.Now().Add(within)
	for len(w.processes()) > 0 {
		if time.Now().After(end) {
			w.t.Errorf("left behind after %s: %v", within, w.describe(w.processes()))
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// processes are the living ones that carry this watchdog's mark, itself included.
func (w *watchdog) processes() []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if bytes.Contains(environ, []byte(markVariable+"="+w.mark+"\x00")) && alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (w *watchdog) describe(pids []int) (lines []string) {
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		lines = append(lines, fmt.Sprintf("%d %s", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
	}
	return lines
}

// alive reports whether a process runs; one that only waits to be reaped does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	after := stat[bytes.LastIndexByte(stat, ')')+1:]
	return !bytes.HasPrefix(after, []byte(" Z")) && !bytes.HasPrefix(after, []byte(" X"))
}

// inits is how often init ran.
func (w *watchdog) inits() int { return len(w.lines("init.log")) }

func (w *watchdog) lines(name string) []string {
	content, err := os.ReadFile(w.path(name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Fatal(err)
	}
	return strings.Fields(strings.ReplaceAll(string(content), " ", "_"))
}

// answer is what came back for one request.
type answer struct {
	status int
	header http.Header
	body   string
	took   time.Duration
	err    error
}

func (a answer) String() string {
	return fmt.Sprintf("%d %.300q after %s (%v)", a.status, a.body, a.took.Round(time.Millisecond), a.err)
}

// problem decodes an RFC 9457 body.
func (a answer) problem(t *testing.T) (p struct {
	Type, Title, Detail string
	Status              int
	CallID              string `json:"call_id"`
}) {
	t.Helper()
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type is %q, not problem+json: %s", got, a)
	}
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Errorf("not a problem: %v in %s", err, a)
	}
	if p.Status != a.status || p.Title == "" || p.Type == "" {
		t.Errorf("problem does not agree with its status: %s", a)
	}
	return p
}

func (w *watchdog) do(req *http.Request) answer {
	began := time.Now()
	resp, err := w.client.Do(req)
	if err != nil {
		return answer{err: err, took: time.Since(began)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body), time.Since(began), err}
}

// post asks for a prediction. Headers are "Name: value".
func (w *watchdog) post(body string, headers ...string) answer {
	req, err := http.NewRequest(http.MethodPost, "http://f/", strings.NewReader(body))
	if err != nil {
		w.t.Error(err)
		return answer{err: err}
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	return w.do(req)
}

func (w *watchdog) get(path string) answer {
	req, _ := http.NewRequest(http.MethodGet, "http://f"+path, nil)
	return w.do(req)
}

func (w *watchdog) wantStatus(want int, a answer) answer {
	w.t.Helper()
	if a.err != nil || a.status != want {
		w.t.Errorf("expected %d, got %s", want, a)
	}
	return a
}

func (w *watchdog) wantBody(want string, a answer) {
	w.t.Helper()
	if a.err != nil || a.status != http.StatusOK || a.body != want {
		w.t.Errorf("expected 200 %.100q, got %s", want, a)
	}
}

// terminate sends SIGTERM and returns how fwatchdog left.
func (w *watchdog) terminate(within time.Duration) error {
	w.t.Helper()
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	return w.awaitEnd(within)
}

func (w *watchdog) awaitEnd(within time.Duration) error {
	w.t.Helper()
	select {
	case <-w.ended:
		return w.err
	case <-time.After(within):
		w.t.Fatalf("fwatchdog did not leave within %s:\n%s", within, tail(w.stderr.String()))
		return nil
	}
}

// load keeps clients asking for distinct echoes until stop, which returns how many were answered
// rightly; every other answer is in failures.
func (w *watchdog) load(clients int) (stop func() (right int, failures []answer)) {
	var (
		mu    sync.Mutex
		count int
		bad   []answer
		group sync.WaitGroup
		end   = make(chan struct{})
	)
	for c := range clients {
		group.Add(1)
		go func() {
			defer group.Done()
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
				}
				text := fmt.Sprintf("%d.%d", c, n)
				a := w.post("echo " + text)
				mu.Lock()
				if a.status == http.StatusOK && a.body == text {
					count++
				} else {
					bad = append(bad, a)
				}
				mu.Unlock()
			}
		}()
	}
	var once sync.Once
	stop = func() (int, []answer) {
		once.Do(func() { close(end) })
		group.Wait()
		return count, bad
	}
	w.t.Cleanup(func() { stop() })
	return stop
}

// unharmed ends a load that should have lost nothing.
func (w *watchdog) unharmed(stop func() (int, []answer)) {
	w.t.Helper()
	right, failures := stop()
	if len(failures) > 0 {
		w.t.Errorf("%d of %d other requests were not answered rightly, the first: %s", len(failures), right+len(failures), failures[0])
	}
	if right == 0 {
		w.t.Error("no other request was answered meanwhile")
	}
}
