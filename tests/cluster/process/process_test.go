// Package process holds the process backend to what every backend is held to.
package process

import (
	"archive/zip"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/faas-predict/faas-predict/tests/cluster/conformance"
)

func TestConformance(t *testing.T) { conformance.Run(t, start(t)) }

// provider is a faas-predict serve that runs functions as its children.
type provider struct {
	dir     string // programs and data
	cmd     *exec.Cmd
	output  bytes.Buffer
	ended   chan struct{}
	address atomic.Pointer[string]
}

func start(t *testing.T) *provider {
	t.Helper()
	dir, err := os.MkdirTemp("", "fp") // t.TempDir is closed to functions' users
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	p := &provider{dir: dir}
	t.Cleanup(func() {
		if p.cmd != nil {
			must(t, p.cmd.Process.Signal(syscall.SIGTERM))
			<-p.ended
		}
		if t.Failed() {
			t.Logf("the provider said:\n%s", p.output.String())
		}
		must(t, os.RemoveAll(dir))
	})
	build := exec.Command("go", "build", "-o", dir, "./watchdog", "./provider")
	build.Dir = "../../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	must(t, os.Rename(filepath.Join(dir, "watchdog"), filepath.Join(dir, "fwatchdog")))
	p.StartProvider(t)
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p *provider) data() string { return filepath.Join(p.dir, "data") }
func (p *provider) URL() string  { return "http://" + *p.address.Load() }

func (p *provider) Password() string {
	raw, _ := os.ReadFile(filepath.Join(p.data(), "admin", "basic-auth-password"))
	return string(raw)
}

func (p *provider) StartProvider(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(filepath.Join(p.dir, "provider"), "serve", "--drain-timeout", "20s")
	log := &address{buffer: &p.output, found: make(chan string, 1)}
	p.cmd.Env = append(os.Environ(), "data_dir="+p.data(), "listen_address=127.0.0.1", "port=0")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	must(t, p.cmd.Start())
	ended := make(chan struct{})
	p.ended = ended
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(ended)
	}(p.cmd)
	select {
	case at := <-log.found:
		p.address.Store(&at)
	case <-p.ended:
		t.Fatalf("the provider ended: %s", p.output.String())
	case <-time.After(time.Minute):
		t.Fatal("the provider does not serve")
	}
}

// address finds where the provider serves in its log.
type address struct {
	buffer *bytes.Buffer
	found  chan string
}

func (a *address) Write(b []byte) (int, error) {
	for _, word := range strings.Fields(string(b)) {
		if at, ok := strings.CutPrefix(word, "address="); ok && bytes.Contains(b, []byte("msg=serving")) {
			select {
			case a.found <- at:
			default:
			}
		}
	}
	return a.buffer.Write(b)
}

func (p *provider) KillProvider(t *testing.T) {
	t.Helper()
	must(t, p.cmd.Process.Kill())
	<-p.ended
}

func (p *provider) RestartAgent(*testing.T) bool { return false } // none

// Image pushes the bundle.
func (p *provider) Image(t *testing.T, model, _ string, files map[string]string) string {
	t.Helper()
	var raw bytes.Buffer
	zipped := zip.NewWriter(&raw)
	for name, content := range files {
		w, err := zipped.Create(name)
		must(t, err)
		_, err = w.Write([]byte(content))
		must(t, err)
	}
	must(t, zipped.Close())
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, p.URL()+"/system/models/"+model, &raw)
	must(t, err)
	r.SetBasicAuth("admin", p.Password())
	answer, err := http.DefaultClient.Do(r)
	must(t, err)
	answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		t.Fatalf("push: %d", answer.StatusCode)
	}
	version := ""
	for line := range strings.Lines(files["model.yml"]) {
		if _, label, ok := strings.Cut(strings.TrimSpace(line), "_version: "); ok {
			version += strings.Trim(label, `"`) + "_"
		}
	}
	return model + ":" + strings.TrimSuffix(version, "_")
}

// KillContainer kills the watchdog that gets the function's calls.
func (p *provider) KillContainer(t *testing.T, function, _ string) bool {
	t.Helper()
	killed := 0
	for pid, env := range p.watchdogs(t) {
		if strings.Contains(env, "OPENFAAS_NAME="+function+"\x00") {
			must(t, syscall.Kill(pid, syscall.SIGKILL))
			killed++
		}
	}
	if killed == 0 {
		t.Fatal("no watchdog runs")
	}
	return true
}

// watchdogs are the processes that run from this provider's directory, with their environments.
func (p *provider) watchdogs(t *testing.T) map[int]string {
	t.Helper()
	out := map[int]string{}
	found, err := filepath.Glob("/proc/[0-9]*/environ")
	must(t, err)
	for _, file := range found {
		env, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(env), "admin_socket="+p.data()) {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && strings.Contains(string(command), "fwatchdog") {
			out[pid] = string(env)
		}
	}
	return out
}

func (p *provider) Left(t *testing.T) []string {
	t.Helper()
	var out []string
	for pid := range p.watchdogs(t) {
		out = append(out, fmt.Sprintf("process %d", pid))
	}
	found, err := filepath.Glob(filepath.Join(p.data(), "run", "*"))
	must(t, err)
	return append(out, found...)
}
