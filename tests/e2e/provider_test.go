package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/openfaas/faas-provider/types"
)

const talkativeModel = `
import os, time, json
INITS = 0
def init():
    global INITS
    INITS += 1
    print("init ran in", os.getpid(), flush=True)
def predict(request):
    word, _, rest = request.partition(" ")
    if word == "uid":
        return str(os.getuid())
    if word == "pid":
        return str(os.getpid())
    if word == "env":
        return os.environ.get(rest, "")
    if word == "secret":
        with open(os.path.join(os.environ["secret_mount_path"], rest)) as f:
            return f.read()
    if word == "sleep":
        time.sleep(float(rest))
    if word == "exit":
        os._exit(9)
    if word == "hog":
        return str(len(b"x" * int(rest)))
    if word == "read":
        try:
            with open(rest) as f:
                return f.read()
        except OSError as e:
            return type(e).__name__
    return request
`

func TestProviderServesEveryVerbOfTheSDK(t *testing.T) {
	p := startProvider(t)
	ctx := t.Context()
	p.model("echo", talkativeModel)

	info, err := p.GetInfo(ctx)
	if err != nil || info.Provider.Provider != "faas-predict" || info.Provider.Orchestration != "process" {
		t.Errorf("info %+v, %v", info, err)
	}
	if status, err := p.CreateSecret(ctx, types.Secret{Name: "key", Value: "one"}); err != nil || status != http.StatusCreated {
		t.Errorf("create secret: %d %v", status, err)
	}
	labels, annotations := map[string]string{"com.openfaas.scale.min": "2"}, map[string]string{"topic": "t"}
	want := types.FunctionDeployment{
		Service: "echo", Image: "echo:latest", Namespace: "openfaas-fn", EnvVars: map[string]string{"COLOUR": "blue"}, Secrets: []string{"key"},
		Labels: &labels, Annotations: &annotations, Limits: &types.FunctionResources{Memory: "256Mi", CPU: "1"},
	}
	p.deploy(want)
	p.wantCall("echo", "hello", "hello")
	p.wantCall("echo.openfaas-fn", "env COLOUR", "blue")
	p.wantCall("echo", "secret key", "one")
	p.wantCall("echo", "env PATH", os.Getenv("PATH"))

	list, err := p.GetFunctions(ctx, "openfaas-fn")
	if err != nil || len(list) != 1 {
		t.Fatalf("list %v, %v", list, err)
	}
	f := list[0]
	got := types.FunctionDeployment{Service: f.Name, Image: f.Image, Namespace: f.Namespace, EnvVars: f.EnvVars, Secrets: f.Secrets, Labels: f.Labels, Annotations: f.Annotations, Limits: f.Limits}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("listed differs from deployed: %s", diff)
	}
	if f.Replicas != 2 || f.AvailableReplicas != 2 || f.InvocationCount != 4 {
		t.Errorf("status %+v", f)
	}

	if status, err := p.UpdateSecret(ctx, types.Secret{Name: "key", Value: "two"}); err != nil || status != http.StatusOK {
		t.Errorf("update secret: %d %v", status, err)
	}
	p.wantCall("echo", "secret key", "two")
	if err := p.DeleteSecret(ctx, "key", ""); err == nil {
		t.Error("a secret in use was deleted")
	}
	if secrets, err := p.GetSecrets(ctx, ""); err != nil || len(secrets) != 1 || secrets[0].Value != "" {
		t.Errorf("secrets %+v, %v", secrets, err)
	}

	if status, err := p.CreateNamespace(ctx, types.FunctionNamespace{Name: "staging"}); err != nil {
		t.Errorf("create namespace: %d %v", status, err)
	}
	if names, err := p.GetNamespaces(ctx); err != nil || !cmp.Equal(names, []string{"openfaas-fn", "staging"}) {
		t.Errorf("namespaces %v, %v", names, err)
	}
	if _, err := p.UpdateNamespace(ctx, types.FunctionNamespace{Name: "staging", Labels: map[string]string{"a": "b"}}); err != nil {
		t.Error(err)
	}
	if n, err := p.GetNamespace(ctx, "staging"); err != nil || n.Labels["a"] != "b" {
		t.Errorf("namespace %+v, %v", n, err)
	}
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo", Namespace: "staging"})
	p.wantCall("echo.staging", "x", "x")
	if err := p.DeleteFunction(ctx, "echo", "staging"); err != nil {
		t.Error(err)
	}
	if err := p.DeleteNamespace(ctx, "staging"); err != nil {
		t.Error(err)
	}

	if err := p.DeleteFunction(ctx, "echo", "openfaas-fn"); err != nil {
		t.Error(err)
	}
	if status, _ := p.call("echo", "x"); status != http.StatusNotFound {
		t.Errorf("call of a deleted function: %d", status)
	}
	p.eventually("no process is left", func() bool { return len(p.children()) == 0 })
	if err := p.DeleteSecret(ctx, "key", ""); err != nil {
		t.Error(err)
	}
}

func TestProviderScalesByForks(t *testing.T) {
	p := startProvider(t)
	p.model("echo", talkativeModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
	start := time.Now()
	if err := p.ScaleFunction(t.Context(), "echo", "", 8); err != nil {
		t.Fatal(err)
	}
	t.Logf("1 to 8 replicas took %s", time.Since(start))
	if wanted, ready := p.replicas("echo"); wanted != 8 || ready != 8 {
		t.Errorf("%d of %d replicas", ready, wanted)
	}
	inits := 0
	messages, err := p.GetLogs(t.Context(), "echo", "", false, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for m := range messages {
		if strings.Contains(m.Text, "init ran in") {
			inits++
		}
	}
	if inits != 1 {
		t.Errorf("init ran %d times", inits)
	}
	if err := p.ScaleFunction(t.Context(), "echo", "", 0); err != nil {
		t.Fatal(err)
	}
	if status, _ := p.call("echo", "x"); status != http.StatusServiceUnavailable {
		t.Errorf("call at 0 replicas: %d", status)
	}
	if err := p.ScaleFunction(t.Context(), "echo", "", 1); err != nil {
		t.Fatal(err)
	}
	p.wantCall("echo", "x", "x")
}

func TestProviderAnswersADeploymentWithTheTraceback(t *testing.T) {
	p := startProvider(t)
	p.model("echo", talkativeModel)
	p.model("broken", "def init():\n    raise KeyError('petals')\ndef predict(request):\n    return request\n")
	status, err := p.Deploy(t.Context(), types.FunctionDeployment{Service: "broken", Image: "broken"})
	if status != http.StatusUnprocessableEntity || err == nil || !strings.Contains(err.Error(), "Traceback") || !strings.Contains(err.Error(), "petals") {
		t.Errorf("%d %v", status, err)
	}
	if status, _ := p.call("broken", "x"); status != http.StatusNotFound {
		t.Errorf("call of a function that never was: %d", status)
	}
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
	if status, err := p.Update(t.Context(), types.FunctionDeployment{Service: "echo", Image: "broken"}); status != http.StatusUnprocessableEntity {
		t.Errorf("%d %v", status, err)
	}
	p.wantCall("echo", "still", "still")
	p.eventually("the failed one is gone", func() bool {
		left, err := os.ReadDir(filepath.Join(p.data(), "run"))
		return err == nil && len(left) == 1
	})
}

func TestProviderLosesNoCallWhenAFunctionIsUpdated(t *testing.T) {
	p := startProvider(t)
	p.model("echo", talkativeModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
	stop := make(chan struct{})
	var callers sync.WaitGroup
	var calls, lost atomic.Int64
	for range 8 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if status, body := p.call("echo", "sleep 0.002"); status != http.StatusOK {
					lost.Add(1)
					t.Logf("lost: %d %s", status, body)
				}
				calls.Add(1)
			}
		})
	}
	for i := range 4 {
		if status, err := p.Update(t.Context(), types.FunctionDeployment{Service: "echo", Image: "echo", EnvVars: map[string]string{"N": fmt.Sprint(i)}}); err != nil || status != http.StatusOK {
			t.Errorf("update: %d %v", status, err)
		}
	}
	close(stop)
	callers.Wait()
	t.Logf("%d calls during 4 updates, %d lost", calls.Load(), lost.Load())
	if lost.Load() > 0 || calls.Load() == 0 {
		t.Errorf("%d of %d calls lost", lost.Load(), calls.Load())
	}
}

func TestProviderLetsOneDeathCostOneCall(t *testing.T) {
	p := startProvider(t)
	p.model("echo", talkativeModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo", Labels: &map[string]string{"com.openfaas.scale.min": "2"}})
	for range 3 {
		if status, body := p.call("echo", "exit"); status != http.StatusBadGateway || !strings.Contains(body, "call_id") {
			t.Errorf("the call that killed its worker: %d %s", status, body)
		}
		p.wantCall("echo", "next", "next")
	}
	for _, pid := range p.children() {
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.TrimSpace(string(name)) == "fwatchdog" {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	p.eventually("the function is back", func() bool {
		status, _ := p.call("echo", "x")
		return status == http.StatusOK
	})
}

func TestProviderStreamsLinesBothWays(t *testing.T) {
	p := startProvider(t)
	p.model("echo", talkativeModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
	body, write := io.Pipe()
	req, _ := http.NewRequest(http.MethodPost, p.url("/function/echo"), body)
	req.Header.Set("Content-Type", "application/x-ndjson")
	go fmt.Fprintln(write, `"row 0"`)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for i := range 50 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf(`"row %d"`, i) {
			t.Fatalf("line %d: %q %v", i, lines.Text(), lines.Err())
		}
		if i < 49 {
			fmt.Fprintf(write, "\"row %d\"\n", i+1)
		}
	}
	write.Close()
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("after the end: %q %v", lines.Text(), lines.Err())
	}
	p.wantCall("echo", strings.Repeat("long ", 1<<20), strings.Repeat("long ", 1<<20))
}

func TestProviderFollowsLogs(t *testing.T) {
	p := startProvider(t)
	p.model("talk", "def predict(request):\n    print(request, flush=True)\n    return ''\n")
	p.deploy(types.FunctionDeployment{Service: "talk", Image: "talk"})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	follow, err := p.GetLogs(ctx, "talk", "", true, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		p.wantCall("talk", fmt.Sprintf("message-%d", i), "")
		for m := range follow {
			if strings.Contains(m.Text, fmt.Sprintf("message-%d", i)) {
				break
			}
		}
	}
	if ctx.Err() != nil {
		t.Error("the stream ended or stalled")
	}
	if err := p.DeleteFunction(t.Context(), "talk", ""); err != nil {
		t.Fatal(err)
	}
	for range follow { // ends with its function
	}
	if ctx.Err() != nil {
		t.Error("the stream outlived its function")
	}
}

func TestProviderKeepsItsOwnFromTheModel(t *testing.T) {
	p := startProvider(t, "PROVIDERS_OWN=leak")
	p.model("echo", talkativeModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
	p.wantCall("echo", "env PROVIDERS_OWN", "")
	if os.Geteuid() != 0 {
		return // below is what only root can arrange
	}
	if status, uid := p.call("echo", "uid"); status != http.StatusOK || uid == "0" {
		t.Errorf("the model runs as user %s", uid)
	}
	p.wantCall("echo", "read "+filepath.Join(p.data(), "admin", "basic-auth-password"), "PermissionError")
	p.wantCall("echo", "read "+filepath.Join(p.data(), "state.db"), "PermissionError")
}

func TestProviderHoldsAFunctionToItsMemory(t *testing.T) {
	p := startProvider(t)
	p.model("echo", talkativeModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo", Limits: &types.FunctionResources{Memory: "256Mi"}})
	p.wantCall("echo", "hog 1000000", "1000000")
	// Killed by its control group, or, where there are none, MemoryError by its address space.
	if status, body := p.call("echo", "hog 1000000000"); status != http.StatusBadGateway && status != http.StatusInternalServerError {
		t.Errorf("1 GB within 256Mi: %d %s", status, body)
	}
	p.eventually("the function serves on", func() bool {
		status, _ := p.call("echo", "x")
		return status == http.StatusOK
	})
}

func TestProviderGivesABundleItsPackages(t *testing.T) {
	without := pathWithout(t, "uv")
	for builder, path := range map[string]string{"pip": without, "uv": filepath.Dir(installUV(t)) + ":" + without} {
		t.Run(builder, func(t *testing.T) { givesABundleItsPackages(t, builder, path) })
	}
}

func givesABundleItsPackages(t *testing.T, builder, path string) {
	wheels, err := os.MkdirTemp("", "wheels")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(wheels)
	os.Chmod(wheels, 0o755)
	wheel(t, wheels, "plants", "NAME = 'setosa'\n")
	p := startProvider(t, "PATH="+path, "PIP_NO_INDEX=1", "UV_NO_INDEX=1", "PIP_FIND_LINKS="+wheels, "UV_FIND_LINKS="+wheels)
	code := "import plants\ndef predict(request):\n    return plants.NAME + request\n"
	p.push("a", bundle(t, map[string]string{"main.py": code, "requirements.txt": "# one\nplants==1.0\n"}))
	p.push("b", bundle(t, map[string]string{"main.py": code + "# b\n", "requirements.txt": "# one\nplants==1.0\n"}))
	p.push("none", bundle(t, map[string]string{"main.py": code, "requirements.txt": "# nothing\n\n"}))
	p.push("missing", bundle(t, map[string]string{"main.py": code, "requirements.txt": "animals==7\n"}))

	start := time.Now()
	p.deploy(types.FunctionDeployment{Service: "a", Image: "a"})
	first := time.Since(start)
	p.wantCall("a", "!", "setosa!")
	start = time.Now()
	p.deploy(types.FunctionDeployment{Service: "b", Image: "b"})
	t.Logf("first deployment %s, the second with the same packages %s", first, time.Since(start))
	p.wantCall("b", "!", "setosa!")
	envs, _ := filepath.Glob(filepath.Join(p.data(), "envs", "*", ".complete"))
	if len(envs) != 1 {
		t.Fatalf("environments: %v", envs)
	}
	settings, err := os.ReadFile(filepath.Join(filepath.Dir(envs[0]), "pyvenv.cfg"))
	if byUV := strings.Contains(string(settings), "\nuv = "); err != nil || byUV != (builder == "uv") {
		t.Errorf("built by something else than %s: %v\n%s", builder, err, settings)
	}
	for _, file := range []string{"bin/python3", "lib"} {
		if info, err := os.Lstat(filepath.Join(filepath.Dir(envs[0]), file)); err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
			t.Errorf("%s belongs to its builder: %v", file, err)
		}
	}
	if status, err := p.Deploy(t.Context(), types.FunctionDeployment{Service: "none", Image: "none"}); status != http.StatusUnprocessableEntity || !strings.Contains(err.Error(), "plants") {
		t.Errorf("without the package: %d %v", status, err)
	}
	if status, err := p.Deploy(t.Context(), types.FunctionDeployment{Service: "missing", Image: "missing"}); status != http.StatusUnprocessableEntity || !strings.Contains(err.Error(), "animals==7") {
		t.Errorf("a package that does not exist: %d %v", status, err)
	}
}

func TestProviderLeavesAfterAnsweringEverything(t *testing.T) {
	for name, leave := range map[string]func(*provider){
		"SIGTERM": func(p *provider) { p.cmd.Process.Signal(syscall.SIGTERM) },
		// As a terminal sends it: to all that share the provider's process group.
		"SIGINT": func(p *provider) { syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t)
			p.attr = &syscall.SysProcAttr{Setpgid: true}
			p.start()
			p.model("echo", talkativeModel)
			p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo", Labels: &map[string]string{"com.openfaas.scale.min": "4"}})
			var callers sync.WaitGroup
			var answered atomic.Int64
			for range 4 {
				callers.Go(func() {
					if status, body := p.call("echo", "sleep 1"); status == http.StatusOK {
						answered.Add(1)
					} else {
						t.Logf("%d %s", status, body)
					}
				})
			}
			time.Sleep(300 * time.Millisecond)
			leave(p)
			p.awaitEnd()
			callers.Wait()
			if answered.Load() != 4 {
				t.Errorf("%d of 4 accepted calls were answered", answered.Load())
			}
			if code := p.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if left := p.children(); len(left) != 0 {
				t.Errorf("processes left: %v", left)
			}
		})
	}
}

func TestProviderThatIsNotRootServesAndSaysWhatItCannot(t *testing.T) {
	p := newProvider(t)
	uid := os.Geteuid()
	if uid == 0 {
		uid = 65534
		p.runAs(uid)
	}
	p.start()
	p.model("echo", talkativeModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo", Limits: &types.FunctionResources{Memory: "256Mi", CPU: "1"}})
	p.wantCall("echo", "uid", fmt.Sprint(uid))
	for _, want := range []string{"functions run as the provider's own user and are not kept apart", "control groups cannot be used fully"} {
		if !strings.Contains(p.output.String(), want) {
			t.Errorf("the provider does not say %q", want)
		}
	}
	messages, err := p.GetLogs(t.Context(), "echo", "", false, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for m := range messages {
		said.WriteString(m.Text)
	}
	if !strings.Contains(said.String(), "the cpu limit is not enforced") {
		t.Errorf("the function's log does not say what is not enforced: %s", said.String())
	}
	if status, body := p.call("echo", "hog 1000000000"); status != http.StatusInternalServerError || !strings.Contains(body, "MemoryError") {
		t.Errorf("1 GB within 256Mi: %d %s", status, body)
	}
	p.wantCall("echo", "still", "still")
	if err := p.ScaleFunction(t.Context(), "echo", "", 3); err != nil {
		t.Error(err)
	}
	p.kill()
	p.start()
	p.eventually("the function is back", func() bool {
		status, _ := p.call("echo", "x")
		return status == http.StatusOK
	})
}

func TestSecondProviderOnTheSameDirectoryIsRefused(t *testing.T) {
	p := startProvider(t)
	out, err := exec.Command(p.program, "serve", "--data-dir", p.data(), "--port", "0").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "in use by another faas-predict serve") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestProviderCommandsDeployAStack(t *testing.T) {
	p := startProvider(t)
	dir := bundle(t, map[string]string{"main.py": talkativeModel, "model.yml": "code_version: '1'\ncoefficients_version: 'a'\n"})
	stack := filepath.Join(filepath.Dir(dir), "stack.yml")
	text := "version: 1.0\nprovider: {name: openfaas, gateway: 'http://127.0.0.1:1'}\nfunctions:\n  echo:\n    lang: python3-predict\n    handler: ./model\n    image: registry.example/me/echo:latest\n    environment: {COLOUR: red}\n"
	if err := os.WriteFile(stack, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pushed 1_a", "unchanged 1_a"} {
		if out, err := p.run("deploy", "-f", stack); err != nil || !strings.Contains(out, want) {
			t.Fatalf("deploy: %v\n%s", err, out)
		}
	}
	p.wantCall("echo", "env COLOUR", "red")
	out, err := p.run("versions", "echo")
	if err != nil || !strings.Contains(out, "1_a") || !strings.Contains(out, "active") {
		t.Errorf("versions: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "main.py"), []byte(talkativeModel+"# changed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := p.run("push", dir, "--name", "echo"); err == nil || !strings.Contains(out, "409") || !strings.Contains(out, "main.py changed") {
		t.Errorf("push of other content under the same label: %v\n%s", err, out)
	}
}
