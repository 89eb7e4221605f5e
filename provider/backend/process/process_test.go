package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/config"
)

func TestMain(m *testing.M) {
	if os.Getenv("socket_path") != "" {
		fakeFwatchdog()
	}
	if os.Getenv(crashDir) != "" {
		crash()
	}
	goleak.VerifyTestMain(m)
}

// folders are models whose versions are the folders NAME@VERSION of a directory. A name alone means
// version 1_1.
type folders struct {
	dir  string
	pins atomic.Int64
}

func (f *folders) path(name, version string) string { return filepath.Join(f.dir, name+"@"+version) }

func parseFolder(image string) (name, version string) {
	name, version, tagged := strings.Cut(image, ":")
	if !tagged {
		version = "1_1"
	}
	return name, version
}

func (f *folders) Resolve(_ context.Context, image string) (backend.Model, error) {
	m, err := f.Pin(parseFolder(image))
	if errors.Is(err, backend.ErrNotFound) {
		return m, fmt.Errorf("%w image %q: push it first", backend.ErrInvalid, image)
	}
	return m, err
}

func (f *folders) Pin(name, version string) (backend.Model, error) {
	dir := f.path(name, version)
	if _, err := os.Stat(dir); err != nil {
		return backend.Model{}, fmt.Errorf("version %s of %s %w", version, name, backend.ErrNotFound)
	}
	f.pins.Add(1)
	var released atomic.Bool
	return backend.Model{Name: name, Version: version, Dir: dir, Release: func() {
		if released.Swap(true) {
			panic("version " + version + " of " + name + " was released twice")
		}
		f.pins.Add(-1)
	}}, nil
}

func (f *folders) add(t *testing.T, image, words string) {
	t.Helper()
	dir := f.path(parseFolder(image))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "main.py"), []byte(words), 0o644); err != nil {
		t.Fatal(err)
	}
}

// bench is a backend on a directory of its own; open again to come back after a kill.
type bench struct {
	*Backend
	models *folders
	config *config.Config
	db     *bbolt.DB
}

// benchConfig is a configuration whose fwatchdog is the test binary.
func benchConfig(dir string) (*config.Config, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return config.Read(func(name string) string {
		return map[string]string{"data_dir": dir, "fwatchdog_path": self, "drain_timeout": "10s", "deploy_timeout": "20s"}[name]
	})
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "fp") // t.TempDir is closed to other users and too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg, err := benchConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{models: &folders{dir: filepath.Join(dir, "models")}, config: cfg}
	b.models.add(t, "iris", "answers")
	b.open(t)
	t.Cleanup(func() { b.shut(t) })
	return b
}

func (b *bench) open(t *testing.T) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(b.config.DataDir, "state.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	b.db = db
	if b.Backend, err = Open(t.Context(), b.config, db, b.models); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) shut(t *testing.T) {
	t.Helper()
	if b.Backend == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := errors.Join(b.Close(ctx), b.db.Close()); err != nil {
		t.Error(err)
	}
	b.Backend = nil
}

var iris = backend.Ref{Namespace: backend.DefaultNamespace, Name: "iris"}

func spec(image string) types.FunctionDeployment {
	return types.FunctionDeployment{Service: "iris", Image: image}
}

// call answers with the status, or the error's, and the body.
func (b *bench) call(t *testing.T, target, body string) (int, string, error) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/function/iris", strings.NewReader(body))
	w := httptest.NewRecorder()
	status, err := b.Forward(iris, w, r, target, "host", r.Header)
	return status, w.Body.String(), err
}

func (b *bench) mustCall(t *testing.T, target, body string) string {
	t.Helper()
	status, answer, err := b.call(t, target, body)
	if err != nil || status != http.StatusOK {
		t.Fatalf("call %s: status %d, error %v", target, status, err)
	}
	return answer
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDeployedFunctionAnswers(t *testing.T) {
	b := newBench(t)
	must(t, b.Create(t.Context(), spec("iris")))
	if got := b.mustCall(t, "/", "5.1,3.5"); got != "5.1,3.5" {
		t.Errorf("got %q", got)
	}
	status, err := b.Get(t.Context(), iris, true)
	must(t, err)
	if status.AvailableReplicas != 1 || status.InvocationCount != 1 || status.Usage.TotalMemoryBytes == 0 {
		t.Errorf("status %+v, usage %+v", status, status.Usage)
	}
}

func TestListReturnsWhatWasDeployedAndNothingElse(t *testing.T) {
	b := newBench(t)
	labels, annotations := map[string]string{"team": "plants"}, map[string]string{"topic": "x"}
	want := types.FunctionDeployment{
		Service: "iris", Image: "iris", EnvProcess: "python", EnvVars: map[string]string{"A": "1"},
		Constraints: []string{"gpu"}, Labels: &labels, Annotations: &annotations, ReadOnlyRootFilesystem: true,
		Limits: &types.FunctionResources{Memory: "256Mi", CPU: "500m"}, Requests: &types.FunctionResources{Memory: "64Mi"},
	}
	must(t, b.Create(t.Context(), want))
	list, err := b.List(t.Context(), "")
	must(t, err)
	if len(list) != 1 {
		t.Fatalf("%d functions", len(list))
	}
	s := list[0]
	got := types.FunctionDeployment{
		Service: s.Name, Image: s.Image, EnvProcess: s.EnvProcess, EnvVars: s.EnvVars, Constraints: s.Constraints, Secrets: s.Secrets,
		Labels: s.Labels, Annotations: s.Annotations, ReadOnlyRootFilesystem: s.ReadOnlyRootFilesystem, Limits: s.Limits, Requests: s.Requests,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDeployRefuses(t *testing.T) {
	b := newBench(t)
	label := func(name, value string) *map[string]string { return &map[string]string{name: value} }
	for name, change := range map[string]func(*types.FunctionDeployment){
		"name":             func(s *types.FunctionDeployment) { s.Service = "Iris_1" },
		"unknown image":    func(s *types.FunctionDeployment) { s.Image = "rose" },
		"namespace":        func(s *types.FunctionDeployment) { s.Namespace = "nowhere" },
		"memory":           func(s *types.FunctionDeployment) { s.Limits = &types.FunctionResources{Memory: "12 Mb"} },
		"cpu":              func(s *types.FunctionDeployment) { s.Limits = &types.FunctionResources{CPU: "-1"} },
		"reserved env":     func(s *types.FunctionDeployment) { s.EnvVars = map[string]string{"socket_path": "/x"} },
		"env with =":       func(s *types.FunctionDeployment) { s.EnvVars = map[string]string{"A=B": ""} },
		"missing secret":   func(s *types.FunctionDeployment) { s.Secrets = []string{"key"} },
		"secret traversal": func(s *types.FunctionDeployment) { s.Secrets = []string{"../key"} },
		"scale label":      func(s *types.FunctionDeployment) { s.Labels = label(deployment.ScaleMinLabel, "many") },
		"too many at once": func(s *types.FunctionDeployment) { s.Labels = label(deployment.ScaleMinLabel, "257") },
		"too many later":   func(s *types.FunctionDeployment) { s.Labels = label(deployment.ScaleMaxLabel, "257") },
		"most below least": func(s *types.FunctionDeployment) {
			s.Labels = &map[string]string{deployment.ScaleMinLabel: "3", deployment.ScaleMaxLabel: "2"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec("iris")
			change(&s)
			if err := b.Create(t.Context(), s); !errors.Is(err, backend.ErrInvalid) {
				t.Errorf("got %v", err)
			}
		})
	}
	if list, _ := b.List(t.Context(), ""); len(list) != 0 {
		t.Errorf("refused deployments left %v", list)
	}
	if n := b.models.pins.Load(); n != 0 {
		t.Errorf("refused deployments hold %d models", n)
	}
}

func TestCreateOfExistingAndUpdateOfMissing(t *testing.T) {
	b := newBench(t)
	if err := b.Update(t.Context(), spec("iris")); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("update of missing: %v", err)
	}
	must(t, b.Create(t.Context(), spec("iris")))
	if err := b.Create(t.Context(), spec("iris")); !errors.Is(err, backend.ErrExists) {
		t.Errorf("create of existing: %v", err)
	}
}

func TestFailedInitIsTheDeploymentsAnswer(t *testing.T) {
	b := newBench(t)
	b.models.add(t, "broken", "# fail: Traceback: no module named plants")
	b.models.add(t, "dead", "# exit:")
	for image, want := range map[string]string{"broken": "no module named plants", "dead": "exit status 3"} {
		err := b.Create(t.Context(), spec(image))
		if !errors.Is(err, backend.ErrFailed) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", image, err)
		}
	}
	if _, err := b.Get(t.Context(), iris, false); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("a failed function exists: %v", err)
	}
	left, err := os.ReadDir(b.runDir)
	must(t, err)
	if len(left) != 0 || b.models.pins.Load() != 0 {
		t.Errorf("left behind: %v, %d pins", left, b.models.pins.Load())
	}
}

func TestDeployWaitsForWorkersThatDiedAndAreTriedAgain(t *testing.T) {
	b := newBench(t)
	b.models.add(t, "unsteady", "# slow: 300\n# while: workers die before they are up: exit code 7, 2 in a row")
	must(t, b.Create(t.Context(), spec("unsteady")))
}

func TestFailedUpdateLeavesTheOldOneServing(t *testing.T) {
	b := newBench(t)
	b.models.add(t, "broken", "# fail: boom")
	must(t, b.Create(t.Context(), spec("iris")))
	pid := b.mustCall(t, "/pid", "")
	if err := b.Update(t.Context(), spec("broken")); !errors.Is(err, backend.ErrFailed) {
		t.Fatalf("got %v", err)
	}
	if now := b.mustCall(t, "/pid", ""); now != pid {
		t.Errorf("process changed from %s to %s", pid, now)
	}
	s, err := b.Get(t.Context(), iris, false)
	must(t, err)
	if s.Image != "iris" {
		t.Errorf("image is %s", s.Image)
	}
}

func TestNoCallIsLostDuringUpdates(t *testing.T) {
	b := newBench(t)
	must(t, b.Create(t.Context(), spec("iris")))
	stop := make(chan struct{})
	var calls, lost atomic.Int64
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				status, body, err := b.call(t, "/slow?ms=3", "")
				calls.Add(1)
				if err != nil || status != http.StatusOK || body != "done" {
					lost.Add(1)
					t.Logf("lost: %d %q %v", status, body, err)
				}
			}
		})
	}
	for range 5 {
		must(t, b.Update(t.Context(), spec("iris")))
	}
	close(stop)
	callers.Wait()
	t.Logf("%d calls over 5 updates, %d lost", calls.Load(), lost.Load())
	if lost.Load() > 0 {
		t.Errorf("%d of %d calls lost", lost.Load(), calls.Load())
	}
}

func TestCrashedFunctionComesBackAndOnlyItsCallFails(t *testing.T) {
	b := newBench(t)
	must(t, b.Create(t.Context(), spec("iris")))
	pid := b.mustCall(t, "/pid", "")
	if _, _, err := b.call(t, "/crash", ""); err == nil {
		t.Fatal("a call that crashed the function was answered")
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		status, now, err := b.call(t, "/pid", "")
		if err == nil && status == http.StatusOK && now != pid {
			return
		}
		if err != nil && !errors.Is(err, backend.ErrNotReady) && !strings.Contains(err.Error(), "not reached") && !strings.Contains(err.Error(), "went away") {
			t.Fatalf("unexpected error %v", err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("not back: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestScaleKeepsTheProcessAndZeroStopsIt(t *testing.T) {
	b := newBench(t)
	must(t, b.Create(t.Context(), spec("iris")))
	pid := b.mustCall(t, "/pid", "")
	must(t, b.Scale(t.Context(), iris, 8))
	s, err := b.Get(t.Context(), iris, false)
	must(t, err)
	if s.Replicas != 8 || s.AvailableReplicas != 8 || b.mustCall(t, "/pid", "") != pid {
		t.Errorf("after scale to 8: %+v", s)
	}
	must(t, b.Scale(t.Context(), iris, 0))
	if _, _, err := b.call(t, "/", ""); !errors.Is(err, backend.ErrScaledOff) {
		t.Errorf("call at 0 replicas: %v", err)
	}
	must(t, b.Scale(t.Context(), iris, 2))
	b.mustCall(t, "/", "")
	for _, n := range []uint64{257, 1 << 40} {
		if err := b.Scale(t.Context(), iris, n); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "max_replicas is 256") {
			t.Errorf("scale to %d: %v", n, err)
		}
	}
}

func TestUpdateObeysALowerMaxReplicas(t *testing.T) {
	b := newBench(t)
	must(t, b.Create(t.Context(), spec("iris")))
	must(t, b.Scale(t.Context(), iris, 8))
	b.config.MaxReplicas = 4
	must(t, b.Update(t.Context(), spec("iris")))
	s, err := b.Get(t.Context(), iris, false)
	must(t, err)
	if s.Replicas != 4 || s.AvailableReplicas != 4 {
		t.Errorf("%+v", s)
	}
}

func TestSecretsReachTheFunctionAndNothingElseDoes(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "leak")
	b := newBench(t)
	must(t, b.CreateSecret(t.Context(), types.Secret{Name: "key", Value: "one"}))
	s := spec("iris")
	s.Secrets = []string{"key"}
	s.EnvVars = map[string]string{"COLOUR": "blue"}
	must(t, b.Create(t.Context(), s))
	if got := b.mustCall(t, "/secret?name=key", ""); got != "one" {
		t.Errorf("secret is %q", got)
	}
	must(t, b.UpdateSecret(t.Context(), types.Secret{Name: "key", RawValue: []byte("two")}))
	if got := b.mustCall(t, "/secret?name=key", ""); got != "two" {
		t.Errorf("updated secret is %q", got)
	}
	if err := b.DeleteSecret(t.Context(), "key", ""); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("delete of a secret in use: %v", err)
	}
	var env []string
	must(t, json.Unmarshal([]byte(b.mustCall(t, "/env", "")), &env))
	got := map[string]bool{}
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		got[name] = true
		if value == "leak" || name == "COLOUR" && value != "blue" {
			t.Errorf("environment has %s", variable)
		}
	}
	want := []string{"COLOUR", "GOMAXPROCS", "HOME", "OPENFAAS_NAME", "OPENFAAS_NAMESPACE", "PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR", "admin_socket", "healthcheck_interval", "interpreter", "model_path", "secret_mount_path", "socket_path", "suppress_lock", "workers"}
	for _, optional := range []string{"LANG", "LC_ALL", "LC_CTYPE", "TZ"} {
		delete(got, optional)
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Error(diff)
	}
	list, err := b.ListSecrets(t.Context(), "")
	must(t, err)
	if diff := cmp.Diff([]types.Secret{{Name: "key", Namespace: backend.DefaultNamespace}}, list); diff != "" {
		t.Error(diff)
	}
}

func TestFunctionsDoNotRunAsRoot(t *testing.T) {
	b := newBench(t)
	must(t, b.Create(t.Context(), spec("iris")))
	uid := b.mustCall(t, "/whoami", "")
	if os.Geteuid() == 0 && uid != "50001" || os.Geteuid() != 0 && uid != fmt.Sprint(os.Geteuid()) {
		t.Errorf("provider is user %d, the function %s", os.Geteuid(), uid)
	}
}

func TestEverythingComesBackFromTheState(t *testing.T) {
	b := newBench(t)
	must(t, b.CreateNamespace(t.Context(), types.FunctionNamespace{Name: "staging"}))
	must(t, b.CreateSecret(t.Context(), types.Secret{Name: "key", Value: "v"}))
	s := spec("iris")
	s.Secrets = []string{"key"}
	must(t, b.Create(t.Context(), s))
	must(t, b.Scale(t.Context(), iris, 3))
	before, err := b.Get(t.Context(), iris, false)
	must(t, err)
	b.shut(t)
	b.open(t)
	deadline := time.Now().Add(10 * time.Second)
	for {
		after, err := b.Get(t.Context(), iris, false)
		must(t, err)
		if after.AvailableReplicas == 3 {
			if diff := cmp.Diff(before, after); diff != "" {
				t.Error(diff)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not back: %+v", after)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if got := b.mustCall(t, "/secret?name=key", ""); got != "v" {
		t.Errorf("secret is %q", got)
	}
	if err := b.CreateNamespace(t.Context(), types.FunctionNamespace{Name: "staging"}); !errors.Is(err, backend.ErrExists) {
		t.Errorf("namespace is gone: %v", err)
	}
}

func TestDeleteAnswersWhatWasAcceptedAndLeavesNothing(t *testing.T) {
	b := newBench(t)
	must(t, b.Create(t.Context(), spec("iris")))
	answered := make(chan string, 1)
	go func() {
		_, body, err := b.call(t, "/slow?ms=300", "")
		answered <- fmt.Sprint(body, err)
	}()
	time.Sleep(100 * time.Millisecond)
	must(t, b.Delete(t.Context(), iris))
	if _, _, err := b.call(t, "/", ""); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("call of a deleted function: %v", err)
	}
	if got := <-answered; got != "done<nil>" {
		t.Errorf("call in progress: %s", got)
	}
	b.background.Wait()
	left, err := os.ReadDir(b.runDir)
	must(t, err)
	if len(left) != 0 || b.models.pins.Load() != 0 || len(b.functions) != 0 || len(b.uids) != 0 {
		t.Errorf("left behind: %v, %d pins, %v, %v", left, b.models.pins.Load(), b.functions, b.uids)
	}
}

func TestNamespacesKeepFunctionsApart(t *testing.T) {
	b := newBench(t)
	must(t, b.CreateNamespace(t.Context(), types.FunctionNamespace{Name: "staging", Labels: map[string]string{"a": "b"}}))
	must(t, b.CreateSecret(t.Context(), types.Secret{Name: "key", Namespace: "staging", Value: "v"}))
	s := spec("iris")
	s.Namespace = "staging"
	must(t, b.Create(t.Context(), s))
	must(t, b.Create(t.Context(), spec("iris")))
	if list, _ := b.List(t.Context(), "staging"); len(list) != 1 {
		t.Errorf("staging has %v", list)
	}
	if err := b.DeleteNamespace(t.Context(), "staging"); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("delete of a namespace in use: %v", err)
	}
	must(t, b.Delete(t.Context(), backend.Ref{Namespace: "staging", Name: "iris"}))
	must(t, b.DeleteNamespace(t.Context(), "staging"))
	must(t, b.CreateNamespace(t.Context(), types.FunctionNamespace{Name: "staging"}))
	if secrets, _ := b.ListSecrets(t.Context(), "staging"); len(secrets) != 0 {
		t.Errorf("secrets outlived their namespace: %v", secrets)
	}
	if err := b.DeleteNamespace(t.Context(), backend.DefaultNamespace); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("delete of the default namespace: %v", err)
	}
}

func TestLogsTailFollowAndEnd(t *testing.T) {
	b := newBench(t)
	must(t, b.Create(t.Context(), spec("iris")))
	for i := range 5 {
		b.mustCall(t, fmt.Sprintf("/print?text=line-%d", i), "")
	}
	deadline := time.Now().Add(5 * time.Second)
	var last []string
	for len(last) < 2 || last[1] != "line-4" {
		if time.Now().After(deadline) {
			t.Fatalf("tail is %v", last)
		}
		messages, err := b.Logs(t.Context(), logs.Request{Name: "iris", Tail: 2})
		must(t, err)
		last = nil
		for m := range messages {
			last = append(last, m.Text)
		}
	}
	follow, err := b.Logs(t.Context(), logs.Request{Name: "iris", Tail: 1, Follow: true})
	must(t, err)
	if m := <-follow; m.Text != "line-4" || m.Name != "iris" || m.Instance == "" {
		t.Errorf("first followed message: %+v", m)
	}
	b.mustCall(t, "/print?text=later", "")
	if m := <-follow; m.Text != "later" {
		t.Errorf("followed message: %+v", m)
	}
	must(t, b.Delete(t.Context(), iris))
	for range follow { // ends with the function
	}
	if _, err := b.Logs(t.Context(), logs.Request{Name: "iris"}); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("logs of a deleted function: %v", err)
	}
}

func TestJournalStaysWithinItsBytes(t *testing.T) {
	j := newJournal("f", "n", 10_000)
	w := &lineWriter{journal: j, instance: "i"}
	for i := range 2000 {
		fmt.Fprintf(w, "line %d\n", i)
	}
	io.WriteString(w, strings.Repeat("x", 3*maxLineBytes))
	w.flush(false)
	if j.bytes > 10_000+maxLineBytes+lineOverhead || len(j.lines) == 0 {
		t.Errorf("%d bytes in %d lines", j.bytes, len(j.lines))
	}
}

// memoryGroup reads which memory group a process is in.
func memoryGroup(t *testing.T, pid string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	must(t, err)
	for line := range strings.Lines(string(raw)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && (parts[1] == "memory" || parts[0] == "0" && strings.Contains(parts[2], "faas-predict")) {
			return parts[2]
		}
	}
	return ""
}

func TestLimitsHoldFromTheFirstInstruction(t *testing.T) {
	b := newBench(t)
	if b.cgroups.memory == "" {
		t.Log("no control groups here: limits fall back, see TestMemoryLimitWithoutControlGroups")
		return
	}
	s := spec("iris")
	s.Limits = &types.FunctionResources{Memory: "256Mi", CPU: "500m"}
	must(t, b.Create(t.Context(), s))
	i := b.functions[iris].route.Load().Only.current.Load()
	group := memoryGroup(t, b.mustCall(t, "/pid", ""))
	if filepath.Base(group) != i.id {
		t.Errorf("the function is in group %q", group)
	}
	if own := memoryGroup(t, "self"); strings.Contains(own, i.id) {
		t.Errorf("the provider stayed in group %q", own)
	}
	want := map[string]string{"memory.limit_in_bytes": "268435456", "memory.max": "268435456", "cpu.cfs_quota_us": "50000", "cpu.max": "50000 100000"}
	checked := 0
	for _, dir := range b.cgroups.dirs() {
		for file, value := range want {
			if raw, err := os.ReadFile(filepath.Join(dir, i.id, file)); err == nil {
				checked++
				if got := strings.TrimSpace(string(raw)); got != value {
					t.Errorf("%s is %s, want %s", file, got, value)
				}
			}
		}
	}
	if checked != 2 {
		t.Errorf("%d limits found", checked)
	}
	must(t, b.Delete(t.Context(), iris))
	b.background.Wait()
	for _, dir := range b.cgroups.dirs() {
		if _, err := os.Stat(filepath.Join(dir, i.id)); err == nil {
			t.Errorf("group of a deleted function stays in %s", dir)
		}
	}
}

func TestMemoryLimitWithoutControlGroups(t *testing.T) {
	b := newBench(t)
	b.cgroups = &cgroups{}
	s := spec("iris")
	s.Limits = &types.FunctionResources{Memory: "512Mi", CPU: "500m"}
	must(t, b.Create(t.Context(), s))
	raw, err := os.ReadFile(filepath.Join("/proc", b.mustCall(t, "/pid", ""), "limits"))
	must(t, err)
	if !strings.Contains(string(raw), "Max data size             536870912") {
		t.Errorf("limits:\n%s", raw)
	}
	messages, err := b.Logs(t.Context(), logs.Request{Name: "iris"})
	must(t, err)
	var said string
	for m := range messages {
		said += m.Text
	}
	if !strings.Contains(said, "the cpu limit is not enforced") {
		t.Errorf("the log does not warn: %s", said)
	}
}
