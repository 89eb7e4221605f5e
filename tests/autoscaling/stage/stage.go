// Package stage starts what autoscaling needs, as users do: the provider with a function, Prometheus and
// Alertmanager with the files of docs/autoscaling. Each may be killed and started again.
package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// Function is the name of the function, whose predict takes 20 ms without using a core.
const Function = "twenty-ms"

const model = `import time

def predict(request):
    time.sleep(0.02)
    return "done"
`

// MaxReplicas is the function's com.openfaas.scale.max.
const MaxReplicas = 8

// Stage is one of each program. Use Open.
type Stage struct {
	Provider, Prometheus, Alertmanager *Program

	url      string
	password string
	dir      string
}

// Build builds fwatchdog and faas-predict into dir.
func Build(dir string) error {
	for name, pkg := range map[string]string{"fwatchdog": "watchdog", "faas-predict": "provider"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(dir, name), "github.com/faas-predict/faas-predict/"+pkg).CombinedOutput()
		if err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return nil
}

// Open starts all three, with the programs of Build in bin and the configuration in files. faster divides
// the times in the configuration; 1 leaves them as they are shipped. dir is made and belongs to the stage.
func Open(ctx context.Context, bin, files string, faster int) (s *Stage, err error) {
	dir, err := os.MkdirTemp("", "autoscaling")
	if err != nil {
		return nil, err
	}
	s = &Stage{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := os.Chmod(dir, 0o755); err != nil { // functions have users of their own
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	provider, prometheus, alertmanager := loopback(ports[0]), loopback(ports[1]), loopback(ports[2])
	s.url = "http://" + provider
	data := filepath.Join(dir, "data")
	if s.Provider, err = start(ctx, s.url+"/healthz", []string{filepath.Join(bin, "faas-predict"), "serve", "--port", strconv.Itoa(ports[0]),
		"--listen-address", "127.0.0.1", "--data-dir", data}); err != nil {
		return nil, err
	}
	if err := s.deploy(ctx, bin, data); err != nil {
		return nil, err
	}
	replace := strings.NewReplacer("127.0.0.1:8080", provider, "127.0.0.1:9093", alertmanager)
	for _, name := range []string{"prometheus.yml", "alert.rules.yml", "alertmanager.yml"} {
		raw, err := os.ReadFile(filepath.Join(files, name))
		if err != nil {
			return nil, err
		}
		text := replace.Replace(hurry(string(raw), faster))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "basic-auth-password"), []byte(s.password), 0o600); err != nil {
		return nil, err
	}
	if s.Alertmanager, err = start(ctx, "http://"+alertmanager+"/-/ready", []string{"prometheus-alertmanager",
		"--config.file", filepath.Join(dir, "alertmanager.yml"), "--storage.path", filepath.Join(dir, "alertmanager"),
		"--web.listen-address", alertmanager, "--cluster.listen-address="}); err != nil {
		return nil, err
	}
	s.Prometheus, err = start(ctx, "http://"+prometheus+"/-/ready", []string{"prometheus",
		"--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(dir, "prometheus"),
		"--web.listen-address", prometheus, "--rules.alert.resend-delay", fmt.Sprint(5000/faster, "ms")})
	return s, err
}

// hurry divides the times that the shipped files have. What they are is written out here, so that a file
// with another is not left at its own pace unnoticed.
func hurry(text string, faster int) string {
	if faster == 1 {
		return text
	}
	var pairs []string
	for _, seconds := range []int{300, 30, 15, 5, 4} {
		written := fmt.Sprintf("%ds", seconds)
		if seconds == 300 {
			written = "5m"
		}
		for _, around := range [][2]string{{"[", "]"}, {": ", "\n"}, {"offset ", "\n"}} {
			pairs = append(pairs, around[0]+written+around[1], fmt.Sprintf("%s%dms%s", around[0], seconds*1000/faster, around[1]))
		}
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

func (s *Stage) deploy(ctx context.Context, bin, data string) error {
	bundle := filepath.Join(s.dir, Function)
	if err := os.Mkdir(bundle, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "main.py"), []byte(model), 0o644); err != nil {
		return err
	}
	push := exec.CommandContext(ctx, filepath.Join(bin, "faas-predict"), "push", bundle, "--name", Function)
	push.Env = append(os.Environ(), "data_dir="+data, "OPENFAAS_URL="+s.url)
	if out, err := push.CombinedOutput(); err != nil {
		return fmt.Errorf("push: %w\n%s", err, out)
	}
	password, err := os.ReadFile(filepath.Join(data, "admin", "basic-auth-password"))
	if err != nil {
		return err
	}
	s.password = string(password)
	spec, err := json.Marshal(types.FunctionDeployment{
		Service: Function, Image: Function,
		// Room for what arrives while replicas are few: nothing is to be turned away.
		EnvVars: map[string]string{"queue_depth": "20000"},
		Labels: &map[string]string{
			"com.openfaas.scale.max": strconv.Itoa(MaxReplicas), "com.openfaas.scale.type": "capacity", "com.openfaas.scale.target": "1",
		},
	})
	if err != nil {
		return err
	}
	status, body, err := s.ask(ctx, http.MethodPost, "/system/functions", spec)
	if err == nil && status != http.StatusAccepted {
		err = fmt.Errorf("deploy: %d %s", status, body)
	}
	return err
}

func (s *Stage) ask(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.SetBasicAuth("admin", s.password)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	var answer bytes.Buffer
	_, err = answer.ReadFrom(res.Body)
	return res.StatusCode, answer.Bytes(), err
}

// URL is where the function is called.
func (s *Stage) URL() string { return s.url + "/function/" + Function }

// Replicas is how many replicas the function has that can answer.
func (s *Stage) Replicas(ctx context.Context) (int, error) {
	status, body, err := s.ask(ctx, http.MethodGet, "/system/function/"+Function, nil)
	if err != nil {
		return 0, err
	}
	var f types.FunctionStatus
	if status != http.StatusOK {
		return 0, fmt.Errorf("replicas: %d %s", status, body)
	}
	if err := json.Unmarshal(body, &f); err != nil {
		return 0, err
	}
	return int(f.AvailableReplicas), nil
}

// Close ends every program and removes what they wrote.
func (s *Stage) Close() error {
	var errs []error
	for _, p := range []*Program{s.Prometheus, s.Alertmanager, s.Provider} {
		if p != nil {
			errs = append(errs, p.end(syscall.SIGTERM))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// Program is a process that can be killed and started again with the same files.
type Program struct {
	ready  string // a URL that answers 200 when it is
	args   []string
	cmd    *exec.Cmd
	output bytes.Buffer
	ended  chan struct{}
}

func start(ctx context.Context, ready string, args []string) (*Program, error) {
	p := &Program{ready: ready, args: args}
	return p, p.Start(ctx)
}

// Start blocks until the program is ready, or for 30 seconds.
func (p *Program) Start(ctx context.Context) error {
	p.output.Reset()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	if err := p.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	p.ended = ended
	go func() {
		_ = p.cmd.Wait()
		close(ended)
	}()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.ready, nil)
		if err != nil {
			return err
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ended:
			return fmt.Errorf("%s ended: %s", p.args[0], p.output.String())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", p.args[0], ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill is SIGKILL. It returns when the program has ended.
func (p *Program) Kill() error { return p.end(syscall.SIGKILL) }

// Output is what the program said since its last start. It must have ended.
func (p *Program) Output() string { return p.output.String() }

func (p *Program) end(signal os.Signal) error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(signal); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(40 * time.Second):
		return errors.Join(fmt.Errorf("%s does not leave", p.args[0]), p.cmd.Process.Kill())
	}
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
