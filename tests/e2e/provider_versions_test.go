package e2e

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// versionModel answers with its coefficients, which name the version.
const versionModel = `def init():
    global VERSION
    VERSION = open("coefficients/version").read()
def predict(request):
    return VERSION
`

// pushVersion pushes a version whose label and answer are both its number, as 1_n.
func (p *provider) pushVersion(name string, n int) string {
	p.t.Helper()
	p.push(name, bundle(p.t, map[string]string{
		"main.py": versionModel, "coefficients/version": fmt.Sprintf("1_%d", n),
		"model.yml": fmt.Sprintf("code_version: '1'\ncoefficients_version: '%d'\n", n),
	}))
	return fmt.Sprintf("1_%d", n)
}

// system asks a /system route; out may be nil.
func (p *provider) system(method, path string, body, out any) int {
	p.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		p.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.url(path), strings.NewReader(string(raw)))
	if err != nil {
		p.t.Fatal(err)
	}
	req.SetBasicAuth("admin", p.password)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Error(err)
		return 0
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Error(err)
	}
	if out != nil && res.StatusCode < 300 {
		if err := json.Unmarshal(answer, out); err != nil {
			p.t.Errorf("%s %s: %v in %.200s", method, path, err, answer)
		}
	}
	if res.StatusCode >= 300 {
		p.t.Logf("%s %s: %d %s", method, path, res.StatusCode, answer)
	}
	return res.StatusCode
}

// inForce remembers when which versions could answer.
type inForce struct {
	mu    sync.Mutex
	spans []span
}

type span struct {
	from, to time.Time // to is zero while it lasts
	versions []string
}

// begin says that from now on these versions may answer too; the spans before end with end.
func (f *inForce) begin(versions ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spans = append(f.spans, span{from: time.Now(), versions: versions})
}

func (f *inForce) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.spans[:len(f.spans)-1] {
		if f.spans[i].to.IsZero() {
			f.spans[i].to = time.Now()
		}
	}
}

// allowed reports whether the version was in a split that held at any time of the call.
func (f *inForce) allowed(version string, from, to time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range slices.Backward(f.spans) {
		if !s.from.After(to) && (s.to.IsZero() || !s.to.Before(from)) && slices.Contains(s.versions, version) {
			return true
		}
	}
	return false
}

// A split is in force from when its change is asked for until the change after it is answered: in
// between, the provider alone knows the moment.
func TestProviderSwitchesAndRollsBackUnderLoadWithoutALostOrForbiddenAnswer(t *testing.T) {
	p := startProvider(t)
	one, two := p.pushVersion("iris", 1), p.pushVersion("iris", 2)
	p.deploy(types.FunctionDeployment{Service: "iris", Image: "iris:" + one})
	if status := p.system(http.MethodPut, "/system/models/iris/traffic", split(one, 1000, two, 0), nil); status != http.StatusOK {
		t.Fatal(status)
	}
	var force inForce
	force.begin(one)
	const rate, senders = 2000, 32
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: senders}}
	due := make(chan struct{}, 1<<20)
	var calls, failed, forbidden atomic.Int64
	var sending sync.WaitGroup
	for range senders {
		sending.Go(func() {
			for range due {
				from := time.Now()
				answer, err := func() (string, error) {
					res, err := client.Post(p.url("/function/iris"), "text/plain", strings.NewReader("x"))
					if err != nil {
						return "", err
					}
					defer res.Body.Close()
					body, err := io.ReadAll(res.Body)
					if err == nil && res.StatusCode != http.StatusOK {
						err = fmt.Errorf("%d %s", res.StatusCode, body)
					}
					return string(body), err
				}()
				calls.Add(1)
				if err != nil {
					failed.Add(1)
					t.Log(err)
				} else if !force.allowed(answer, from, time.Now()) {
					forbidden.Add(1)
				}
			}
		})
	}
	began := time.Now()
	stop := make(chan struct{})
	sent := 0
	var pacing sync.WaitGroup
	pacing.Go(func() { // an open load: calls are due whatever became of those before
		for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
			for ; float64(sent) < time.Since(began).Seconds()*rate; sent++ {
				due <- struct{}{}
			}
			select {
			case <-stop:
				tick.Stop()
				close(due)
				return
			default:
			}
		}
	})
	var times []time.Duration
	change := func(version string, do func() int) {
		at := time.Now()
		force.begin(version)
		if status := do(); status != http.StatusOK {
			t.Errorf("change to %s: %d", version, status)
		}
		force.end()
		times = append(times, time.Since(at))
		time.Sleep(20 * time.Millisecond)
	}
	for range 100 {
		change(two, func() int {
			return p.system(http.MethodPut, "/system/models/iris/traffic", split(two, 1000, one, 0), nil)
		})
		change(one, func() int { return p.system(http.MethodPost, "/system/models/iris/rollback", nil, nil) })
	}
	close(stop)
	pacing.Wait()
	sending.Wait()
	took := time.Since(began)
	slices.Sort(times)
	t.Logf("100 switches and 100 rollbacks, half of them answered within %s, all within %s, under %.0f calls/s: %d calls, %d failed, %d from a version that the split forbids",
		times[len(times)/2].Round(time.Millisecond), times[len(times)-1].Round(time.Millisecond), float64(calls.Load())/took.Seconds(), calls.Load(), failed.Load(), forbidden.Load())
	if failed.Load() > 0 || forbidden.Load() > 0 || calls.Load() < rate {
		t.Errorf("of %d calls %d failed and %d had a forbidden answer", calls.Load(), failed.Load(), forbidden.Load())
	}
}

func split(versions ...any) traffic.Split {
	var s traffic.Split
	for i := 0; i < len(versions); i += 2 {
		s.Targets = append(s.Targets, traffic.Target{Version: versions[i].(string), Weight: traffic.Weight(versions[i+1].(int))})
	}
	return s
}

// 6.63 is the 99th percentile of chi-square with one degree of freedom.
func TestProviderSplitsCallsByWeight(t *testing.T) {
	p := startProvider(t)
	one, two := p.pushVersion("iris", 1), p.pushVersion("iris", 2)
	p.deploy(types.FunctionDeployment{Service: "iris", Image: "iris:" + one})
	p.system(http.MethodPut, "/system/models/iris/traffic", split(one, 900, two, 100), nil)
	const n, senders = 100_000, 16
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: senders}}
	var second, failed atomic.Int64
	var sending sync.WaitGroup
	for range senders {
		sending.Go(func() {
			for range n / senders {
				res, err := client.Post(p.url("/function/iris"), "text/plain", strings.NewReader("x"))
				if err != nil {
					failed.Add(1)
					continue
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				switch {
				case err != nil || res.StatusCode != http.StatusOK || string(body) != res.Header.Get("X-Model-Version"):
					failed.Add(1)
				case string(body) == two:
					second.Add(1)
				}
			}
		})
	}
	sending.Wait()
	d := float64(second.Load()) - 0.1*n
	chi := d*d/(0.1*n) + d*d/(0.9*n)
	t.Logf("%d of %d calls, chi-square %.2f", second.Load(), n, chi)
	if chi > 6.63 || failed.Load() > 0 {
		t.Errorf("%d of %d calls went to the 10 %% (chi-square %.2f), %d failed", second.Load(), n, chi, failed.Load())
	}
}

func TestProviderKeepsTheOldVersionWhenTheNewOneFails(t *testing.T) {
	p := startProvider(t, "deploy_timeout=5s")
	one := p.pushVersion("iris", 1)
	p.deploy(types.FunctionDeployment{Service: "iris", Image: "iris:" + one})
	small := &types.FunctionResources{Memory: "128Mi"}
	for name, c := range map[string]struct {
		init, manifest string
		limits         *types.FunctionResources
		wants          []string
	}{
		"example": {"pass", "examples: [{request: '5.1', response: setosa}]", nil, []string{"setosa", "virginica"}},
		"init":    {"raise KeyError('petals')", "", nil, []string{"Traceback", "petals"}},
		"slow":    {"import time; time.sleep(60)", "", nil, []string{"not ready within deploy_timeout"}},
		"memory": {"global X; X = b'x' * (1 << 30)", "", small, // Without control groups the allocation itself fails.
			[]string{"needs more memory than its limit of 128 MiB|MemoryError"}},
	} {
		version := "1." + name + "_" + name
		p.push("iris", bundle(t, map[string]string{
			"main.py":              "def init():\n    " + c.init + "\ndef predict(request):\n    return 'virginica'\n",
			"coefficients/version": name,
			"model.yml":            "code_version: '1." + name + "'\ncoefficients_version: " + name + "\n" + c.manifest + "\n",
		}))
		status, err := p.Update(t.Context(), types.FunctionDeployment{Service: "iris", Image: "iris:" + version, Limits: c.limits})
		if status != http.StatusUnprocessableEntity || err == nil {
			t.Errorf("%s: %d %v", name, status, err)
			continue
		}
		for _, want := range c.wants {
			if !slices.ContainsFunc(strings.Split(want, "|"), func(part string) bool { return strings.Contains(err.Error(), part) }) {
				t.Errorf("%s: no %q in %v", name, want, err)
			}
		}
		t.Logf("%s: %.300s", name, err)
		p.wantCall("iris", "x", one)
		var m struct{ Versions []backend.VersionStatus }
		p.system(http.MethodGet, "/system/models/iris", nil, &m)
		if at := slices.IndexFunc(m.Versions, func(v backend.VersionStatus) bool { return v.Version == version }); at < 0 ||
			m.Versions[at].State != backend.Failed || m.Versions[at].Reason == "" {
			t.Errorf("%s: versions %+v", name, m.Versions)
		}
	}
}

func TestProviderCommandsMoveTraffic(t *testing.T) {
	p := startProvider(t)
	one, two := p.pushVersion("iris", 1), p.pushVersion("iris", 2)
	p.deploy(types.FunctionDeployment{Service: "iris", Image: "iris:" + one, Annotations: &map[string]string{"owner": "botany"}})
	for _, step := range []struct {
		args  []string
		wants []string
	}{
		{[]string{"traffic", "iris"}, []string{one, "100", "active"}},
		{[]string{"traffic", "iris", one + "=0.1", two + "=99.9"}, []string{"0.1", "99.9"}},
		{[]string{"traffic", "iris", "-o", "json"}, []string{`"weight": 99.9`, `"function": "iris.openfaas-fn"`}},
		{[]string{"rollback", "iris"}, []string{one, "100", "active"}},
		{[]string{"traffic", "iris", one + "=100", "--mirror", two}, []string{"mirror"}},
		{[]string{"versions", "iris", "-o", "json"}, []string{`"state": "active"`, `"code_digest"`}},
	} {
		out, err := p.run(step.args...)
		for _, want := range step.wants {
			if err != nil || !strings.Contains(out, want) {
				t.Errorf("%v: %v, no %s in\n%s", step.args, err, want, out)
			}
		}
	}
	for _, bad := range [][]string{{"rollback", "nothing"}, {"traffic", "iris", one + "=50"}, {"traffic", "iris", "9_9=100"}, {"traffic", "iris", one}} {
		if out, err := p.run(bad...); err == nil {
			t.Errorf("%v was accepted:\n%s", bad, out)
		}
	}
	described, err := p.GetFunction(t.Context(), "iris", "")
	if err != nil || described.Annotations == nil || !strings.Contains((*described.Annotations)["faas-predict.status.split"], one+"=100") ||
		(*described.Annotations)["faas-predict.status.mirror"] != two || (*described.Annotations)["owner"] != "botany" {
		t.Errorf("%v, %v", described.Annotations, err)
	}
	list, err := p.GetFunctions(t.Context(), "")
	if err != nil || len(list) != 1 || len(*list[0].Annotations) != 1 || list[0].Image != "iris:"+one {
		t.Errorf("%+v, %v", list, err)
	}
	if status := p.system(http.MethodDelete, "/system/models/iris/versions/"+two, nil, nil); status != http.StatusConflict {
		t.Errorf("deleting the mirror: %d", status)
	}
	if out, err := p.run("traffic", "iris", one+"=100"); err != nil {
		t.Fatal(out)
	}
	if status := p.system(http.MethodDelete, "/system/models/iris/versions/"+two, nil, nil); status != http.StatusAccepted {
		t.Errorf("deleting a version without calls: %d", status)
	}
	var m struct{ Versions []backend.VersionStatus }
	if p.system(http.MethodGet, "/system/models/iris", nil, &m); len(m.Versions) != 1 {
		t.Errorf("left: %+v", m)
	}
	p.wantCall("iris", "x", one)
}

// switchTimes moves all calls to and fro and returns the median time of a move.
func (p *provider) switchTimes(one, two string) time.Duration {
	p.t.Helper()
	var times []time.Duration
	for range 20 {
		for _, s := range []traffic.Split{split(two, 1000, one, 0), split(one, 1000, two, 0)} {
			at := time.Now()
			if status := p.system(http.MethodPut, "/system/models/iris/traffic", s, nil); status != http.StatusOK {
				p.t.Fatal(status)
			}
			times = append(times, time.Since(at))
		}
	}
	slices.Sort(times)
	return times[len(times)/2]
}

func TestProviderListsAndSwitchesAmongAThousandVersions(t *testing.T) {
	p := startProvider(t)
	one, two := p.pushVersion("iris", 1), p.pushVersion("iris", 2)
	p.deploy(types.FunctionDeployment{Service: "iris", Image: "iris:" + one})
	few := p.switchTimes(one, two)
	const versions = 1000
	numbers := make(chan int)
	var pushing sync.WaitGroup
	for range 4 {
		pushing.Go(func() {
			for n := range numbers {
				var body bytes.Buffer
				z := zip.NewWriter(&body)
				for name, content := range map[string]string{
					"main.py": versionModel, "coefficients/version": fmt.Sprintf("1_%d", n),
					"model.yml": fmt.Sprintf("code_version: '1'\ncoefficients_version: '%d'\n", n),
				} {
					w, err := z.Create(name)
					if err == nil {
						_, err = io.WriteString(w, content)
					}
					if err != nil {
						t.Error(err)
					}
				}
				if err := z.Close(); err != nil {
					t.Error(err)
				}
				if err := p.putModel(t.Context(), "iris", body.Bytes()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := 3; n <= versions; n++ {
		numbers <- n
	}
	close(numbers)
	pushing.Wait()
	var m struct{ Versions []backend.VersionStatus }
	var lists []time.Duration
	p.system(http.MethodGet, "/system/models/iris", nil, &m)
	for range 5 {
		at := time.Now()
		p.system(http.MethodGet, "/system/models/iris", nil, nil) // decoding it is not the provider's
		lists = append(lists, time.Since(at))
	}
	slices.Sort(lists)
	if len(m.Versions) != versions {
		t.Errorf("%d versions are listed", len(m.Versions))
	}
	many := p.switchTimes(one, two)
	t.Logf("with %d versions: a list takes %s, a switch %s; with 2 versions a switch takes %s", versions,
		lists[2].Round(time.Millisecond), many.Round(100*time.Microsecond), few.Round(100*time.Microsecond))
	if lists[2] > 100*time.Millisecond {
		t.Errorf("listing %d versions takes %s", versions, lists[2])
	}
	if many > 2*few+5*time.Millisecond {
		t.Errorf("a switch takes %s with %d versions, and %s with 2", many, versions, few)
	}
}
