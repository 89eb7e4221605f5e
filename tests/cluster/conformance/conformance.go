// Package conformance holds every backend to the same: what clients see of deploying, calling, splitting,
// scaling and deleting functions, and of faults on the way. A backend's test says how to reach the provider
// and how to hurt it, and calls Run.
//
// Everything goes through the provider's HTTP routes, with go-sdk where it has them, as clients do.
package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"
)

// Harness is a provider with a backend, and what can be done to them.
type Harness interface {
	// URL is where the provider serves, and Password is its admin's. Both may change when it comes back, while
	// calls ask for them.
	URL() string
	Password() string
	// Image makes what image: names out of a bundle's files, main.py and model.yml among them, which is
	// version 1.VERSION_1 of a model of that name.
	Image(t *testing.T, model, version string, files map[string]string) string
	// KillProvider ends the provider without a word. StartProvider brings it back and returns when it
	// serves.
	KillProvider(t *testing.T)
	StartProvider(t *testing.T)
	// KillContainer kills one container of a function's version, or its watchdog, without a word. isAll is that the
	// version has no other, however many replicas it has.
	KillContainer(t *testing.T, function, version string) (isAll bool)
	// RestartAgent restarts what starts containers on a node, and returns when it works again, or at once where there
	// is no such thing. endsAll is that containers end with it, the provider's among them.
	RestartAgent(t *testing.T) (endsAll bool)
	// Left lists what there is of functions, secrets and namespaces outside the provider, by names that say
	// what it is: the engine's objects, processes, files.
	Left(t *testing.T) []string
}

// What tests wait for at most: on a busy machine a container takes its time.
const patience = 2 * time.Minute

// main is the model: it does what the request says.
const main = `
import os, time

def init():
    if %q == "broken":
        raise ValueError("these coefficients do not fit")

def predict(request):
    word, _, rest = request.partition(" ")
    if word == "crash":
        os._exit(3)
    if word == "sleep":
        time.sleep(float(rest))
    if word == "print":
        print(rest, flush=True)
    if word == "secret":
        folder = os.environ.get("secret_mount_path", "/var/openfaas/secrets")
        with open(os.path.join(folder, rest)) as f:
            return f.read()
    if word == "env":
        return os.environ.get(rest, "")
    return "version %s: " + request
`

// suite is one run.
type suite struct {
	Harness
	images map[string]string
}

// function is the one that most of the tests are about.
const function = "conform"

// Run holds a backend to everything. The tests follow on one another.
func Run(t *testing.T, h Harness) {
	s := &suite{Harness: h, images: map[string]string{}}
	before := h.Left(t)
	steps := []struct {
		name string
		test func(*testing.T)
	}{
		{"Deploy", s.deploys},
		{"AVersionThatFails", s.aVersionThatFails},
		{"SwitchUnderLoad", s.switchUnderLoad},
		{"Split", s.split},
		{"Rollback", s.rollback},
		{"Scale", s.scale},
		{"Secrets", s.secrets},
		{"Logs", s.logs},
		{"CrashOfAWorker", s.crashOfAWorker},
		{"CrashOfAContainer", s.crashOfAContainer},
		{"ProviderKilled", s.providerKilled},
		{"AgentRestarted", s.agentRestarted},
	}
	for _, step := range steps {
		if !t.Run(step.name, step.test) {
			t.Fatalf("what follows stands on %s", step.name)
		}
	}
	t.Run("DeleteLeavesNothing", func(t *testing.T) { s.deleteLeavesNothing(t, before) })
}

func (s *suite) image(t *testing.T, version string) string {
	t.Helper()
	if s.images[version] == "" {
		s.images[version] = s.Image(t, function, version, bundle(version))
	}
	return s.images[version]
}

func bundle(version string) map[string]string {
	return map[string]string{
		"main.py":   fmt.Sprintf(main, version, version),
		"model.yml": fmt.Sprintf("name: %s\ncode_version: \"1.%s\"\ncoefficients_version: \"1\"\n", function, version),
	}
}

// id is the version as the provider names it.
func id(version string) string { return "1." + version + "_1" }

func (s *suite) client(t *testing.T) *sdk.Client {
	t.Helper()
	u, err := url.Parse(s.URL())
	must(t, err)
	return sdk.NewClient(u, &sdk.BasicAuth{Username: "admin", Password: s.Password()}, http.DefaultClient)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *suite) spec(t *testing.T, version string) types.FunctionDeployment {
	t.Helper()
	return types.FunctionDeployment{
		Service: function, Image: s.image(t, version),
		EnvVars:  map[string]string{"COLOUR": "blue"},
		Limits:   &types.FunctionResources{Memory: "256Mi", CPU: "1000m"},
		Requests: &types.FunctionResources{Memory: "64Mi", CPU: "20m"},
	}
}

// update replaces the function, or with a status that is wanted does not.
func (s *suite) update(t *testing.T, spec types.FunctionDeployment) {
	t.Helper()
	if status, err := s.client(t).Update(t.Context(), spec); err != nil || status != http.StatusOK {
		t.Fatalf("update to %s: %d %v", spec.Image, status, err)
	}
}

// caller gives up on an answer that nobody is left to give, as when an engine takes a provider's network away.
var caller = http.Client{Timeout: 30 * time.Second}

// call returns the answer's status, or 0 and the error, with the version that answered. header is a name and
// a value, or nothing.
func (s *suite) call(ctx context.Context, body string, header ...string) (status int, said, version string) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL()+"/function/"+function, strings.NewReader(body))
	if err != nil {
		return 0, err.Error(), ""
	}
	if len(header) == 2 {
		r.Header.Set(header[0], header[1])
	}
	answer, err := caller.Do(r)
	if err != nil {
		return 0, err.Error(), ""
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error(), ""
	}
	return answer.StatusCode, string(raw), answer.Header.Get("X-Model-Version")
}

func (s *suite) wantCall(t *testing.T, body, want, version string) {
	t.Helper()
	status, said, answered := s.call(t.Context(), body)
	if status != http.StatusOK || said != want || answered != id(version) {
		t.Fatalf("%q is answered %d %q by %q; want %q by %s", body, status, said, answered, want, id(version))
	}
}

// api is a plain request to a route of the provider that go-sdk does not have.
func (s *suite) api(t *testing.T, method, path string, body, answer any) int {
	t.Helper()
	raw, err := json.Marshal(body)
	must(t, err)
	r, err := http.NewRequestWithContext(t.Context(), method, s.URL()+path, strings.NewReader(string(raw)))
	must(t, err)
	r.SetBasicAuth("admin", s.Password())
	res, err := http.DefaultClient.Do(r)
	must(t, err)
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	must(t, err)
	if answer != nil && res.StatusCode == http.StatusOK {
		must(t, json.Unmarshal(said, answer))
	} else if res.StatusCode >= 300 {
		t.Logf("%s %s: %d %s", method, path, res.StatusCode, said)
	}
	return res.StatusCode
}

// loadClients is how many calls of a load are in progress at most.
const loadClients = 6

// load is calls from several clients at once, without a pause, until stop.
type load struct {
	mu    sync.Mutex
	calls int
	lost  []string // those that were not answered with 200
	by    map[string]int
	stop  func()
}

func (s *suite) startLoad(t *testing.T) *load {
	l := &load{by: map[string]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for range loadClients {
		clients.Go(func() {
			for ctx.Err() == nil {
				status, said, version := s.call(context.WithoutCancel(ctx), "load")
				l.mu.Lock()
				l.calls++
				l.by[version]++
				if status != http.StatusOK {
					l.lost = append(l.lost, fmt.Sprintf("%s: %d %s", time.Now().Format("05.000"), status, said))
				}
				l.mu.Unlock()
				if status == 0 { // nobody is there
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
	l.stop = sync.OnceFunc(func() {
		cancel()
		clients.Wait()
	})
	t.Cleanup(l.stop)
	return l
}

// end stops the load, of which nothing may be lost.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	if len(l.lost) > 0 {
		t.Errorf("%d of %d calls failed, first and last:\n%s\n%s", len(l.lost), l.calls, l.lost[0], l.lost[len(l.lost)-1])
	}
	t.Logf("%d calls, %d failed, by version %v", l.calls, len(l.lost), l.by)
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("it does not come to this: %s", what)
}
