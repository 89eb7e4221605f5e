package e2e

import (
	"archive/zip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"
)

// faasPredict builds the provider beside fwatchdog, where it looks for it.
var faasPredict = sync.OnceValues(func() (string, error) {
	program := filepath.Join(built.dir, "faas-predict")
	out, err := exec.Command("go", "build", "-o", program, "github.com/faas-predict/faas-predict/provider").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build faas-predict: %w\n%s", err, out)
	}
	return program, nil
})

// provider is a faas-predict serve that can be killed and started again on the same directory.
type provider struct {
	t       *testing.T
	program string
	dir     string
	port    int
	env     []string
	attr    *syscall.SysProcAttr // of its process, nil as usual
	cmd     *exec.Cmd
	output  *output
	ended   chan struct{}
	scheme  string
	http    *http.Client
	*sdk.Client
	password string
}

func startProvider(t *testing.T, env ...string) *provider {
	t.Helper()
	p := newProvider(t, env...)
	p.start()
	return p
}

// newProvider returns a provider that is yet to be started.
func newProvider(t *testing.T, env ...string) *provider {
	t.Helper()
	program, err := faasPredict()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "fp") // t.TempDir is closed to functions' users
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &provider{t: t, program: program, dir: dir, port: freeTCPPort(t), env: env, scheme: "http", http: http.DefaultClient}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("the provider said:\n%s", p.output)
		}
		os.RemoveAll(dir)
	})
	return p
}

// runAs makes the provider a user's: the programs too, which are in a directory of this one's.
func (p *provider) runAs(uid int) {
	p.t.Helper()
	for _, program := range []string{p.program, built.fwatchdog} {
		raw, err := os.ReadFile(program)
		if err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.dir, filepath.Base(program)), raw, 0o755); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := os.Chown(p.dir, uid, uid); err != nil {
		p.t.Fatal(err)
	}
	p.program = filepath.Join(p.dir, filepath.Base(p.program))
	p.attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
}

func freeTCPPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start returns when the provider answers.
func (p *provider) start() {
	p.t.Helper()
	p.output = new(output)
	p.cmd = exec.Command(p.program, "serve", "--drain-timeout", "20s")
	p.cmd.Env = append(os.Environ(), "data_dir="+p.data(), "listen_address=127.0.0.1", "port="+strconv.Itoa(p.port))
	p.cmd.Env = append(p.cmd.Env, p.env...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.SysProcAttr = p.attr
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.ended = make(chan struct{})
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	deadline := time.Now().Add(20 * time.Second)
	for {
		res, err := p.http.Get(p.url("/healthz"))
		if err == nil {
			res.Body.Close()
			break
		}
		select {
		case <-p.ended:
			p.t.Fatalf("the provider ended: %s", p.output)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the provider does not answer: %s", p.output)
		}
	}
	password, err := os.ReadFile(filepath.Join(p.data(), "admin", "basic-auth-password"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.password = string(password)
	u, _ := url.Parse(p.url(""))
	p.Client = sdk.NewClient(u, &sdk.BasicAuth{Username: "admin", Password: p.password}, p.http)
}

func (p *provider) data() string { return filepath.Join(p.dir, "data") }

func (p *provider) url(path string) string {
	return fmt.Sprintf("%s://127.0.0.1:%d%s", p.scheme, p.port, path)
}

// kill ends the provider as a power cut would, but for the disk.
func (p *provider) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// stop asks it to leave and returns when it has.
func (p *provider) stop() {
	if p.cmd == nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.awaitEnd()
}

func (p *provider) awaitEnd() {
	select {
	case <-p.ended:
	case <-time.After(40 * time.Second):
		p.t.Error("the provider does not leave")
		p.kill()
	}
}

// run runs faas-predict as a client.
func (p *provider) run(args ...string) (string, error) {
	cmd := exec.Command(p.program, args...)
	cmd.Env = append(os.Environ(), "data_dir="+p.data(), "OPENFAAS_URL="+p.url(""), "HOME="+p.dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (p *provider) push(name, dir string) {
	p.t.Helper()
	if out, err := p.run("push", dir, "--name", name); err != nil {
		p.t.Fatalf("push %s: %v\n%s", name, err, out)
	}
}

// model pushes a bundle with that main.py.
func (p *provider) model(name, code string) {
	p.t.Helper()
	p.push(name, bundle(p.t, map[string]string{"main.py": code}))
}

func (p *provider) deploy(spec types.FunctionDeployment) {
	p.t.Helper()
	if status, err := p.Deploy(p.t.Context(), spec); err != nil || status != http.StatusAccepted {
		p.t.Fatalf("deploy %s: %d %v", spec.Service, status, err)
	}
}

// call answers with status and body.
func (p *provider) call(name, body string) (int, string) {
	p.t.Helper()
	res, err := p.http.Post(p.url("/function/"+name), "text/plain", strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(answer)
}

func (p *provider) wantCall(name, body, want string) {
	p.t.Helper()
	if status, got := p.call(name, body); status != http.StatusOK || got != want {
		p.t.Errorf("call %s with %.40q: %d %.400q, want %.40q", name, body, status, got, want)
	}
}

// eventually repeats check until it holds.
func (p *provider) eventually(what string, check func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !check(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("not in time: %s", what)
		}
	}
}

// children lists the provider's processes that run now: fwatchdogs and all below them.
func (p *provider) children() []int {
	entries, _ := os.ReadDir("/proc")
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && strings.Contains(string(env), "\x00model_path="+p.data()) {
			out = append(out, pid)
		}
	}
	return out
}

// wheel writes a Python package that a requirements.txt can name without any network.
func wheel(t *testing.T, dir, name, code string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name+"-1.0-py3-none-any.whl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := zip.NewWriter(f)
	info := name + "-1.0.dist-info/"
	for _, file := range [][2]string{
		{name + ".py", code},
		{info + "METADATA", "Metadata-Version: 2.1\nName: " + name + "\nVersion: 1.0\n"},
		{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{info + "RECORD", name + ".py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n"},
	} {
		w, err := z.Create(file[0])
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, file[1])
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
}

// uvRelease is the uv that environments are built with where there is one.
const uvRelease = "0.13.9"

// installUV returns a uv that every user may run, alone in its directory.
func installUV(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "uv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, venv := filepath.Join(dir, "bin", "uv"), filepath.Join(dir, "venv")
	for _, step := range [][]string{
		{"chmod", "0755", dir},
		{"mkdir", filepath.Dir(program)},
		{built.interpreter, "-m", "venv", venv},
		{filepath.Join(venv, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "uv==" + uvRelease},
		{"ln", "-s", filepath.Join(venv, "bin", "uv"), program},
	} {
		if out, err := exec.Command(step[0], step[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("install uv: %s: %v\n%s", step[0], err, out)
		}
	}
	return program
}

// pathWithout is PATH less the directories that have the program.
func pathWithout(t *testing.T, program string) string {
	t.Helper()
	var kept []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
			kept = append(kept, dir)
		}
	}
	return strings.Join(kept, ":")
}

// replicas is how many replicas a function wants and has, or -1 when there is none.
func (p *provider) replicas(name string) (wanted, ready int) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, p.url("/system/function/"+name), nil)
	req.SetBasicAuth("admin", p.password)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return -1, -1
	}
	defer res.Body.Close()
	var s types.FunctionStatus
	if res.StatusCode != http.StatusOK || json.NewDecoder(res.Body).Decode(&s) != nil {
		return -1, -1
	}
	return int(s.Replicas), int(s.AvailableReplicas)
}
