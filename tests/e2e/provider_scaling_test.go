package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// slowModel takes long enough to start that calls of it at zero replicas are certain to wait, and long enough
// to answer that those are not all answered when others come.
const slowModel = `import time
def init():
    time.sleep(1)
def predict(request):
    time.sleep(0.01)
    return request
`

// restless are the labels of a function that goes to zero replicas as soon as any may.
func restless(more ...string) *map[string]string {
	labels := map[string]string{deployment.ScaleZeroLabel: "true", deployment.ScaleZeroAfterLabel: "1s"}
	for i := 0; i < len(more); i += 2 {
		labels[more[i]] = more[i+1]
	}
	return &labels
}

// startAtZero starts a provider whose function echo has been called and is at zero replicas since.
func startAtZero(t *testing.T, env ...string) *provider {
	t.Helper()
	p := startProvider(t, env...)
	p.model("echo", slowModel)
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo", Labels: restless()})
	p.wantCall("echo", "before", "before")
	p.awaitZero()
	return p
}

func (p *provider) awaitZero() {
	p.t.Helper()
	p.eventually("echo is at zero and its processes are gone", func() bool {
		wanted, ready := p.replicas("echo")
		return wanted == 0 && ready == 0 && len(p.children()) == 0
	})
}

// wantReplicas checks how many replicas a function wants and has.
func (p *provider) wantReplicas(name string, want int) {
	p.t.Helper()
	if wanted, ready := p.replicas(name); wanted != want || ready != want {
		p.t.Errorf("%s wants %d replicas and has %d, not %d", name, wanted, ready, want)
	}
}

// wantMetric checks a line of /metrics, its labels as Prometheus has them.
func (p *provider) wantMetric(series, want string) {
	p.t.Helper()
	if got := p.exposed(series); got != want {
		p.t.Errorf("%s is %q, not %q", series, got, want)
	}
}

// exposed is the value that /metrics has for a series, "" for none.
func (p *provider) exposed(series string) string {
	p.t.Helper()
	res, err := p.http.Get(p.url("/metrics"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// held are calls of echo that were made together while it was at zero.
type held struct {
	all      sync.WaitGroup
	mu       sync.Mutex
	failures []string
}

// hold makes calls of echo and returns when all of them wait.
func (p *provider) hold(calls int) *held {
	p.t.Helper()
	h := &held{}
	for n := range calls {
		h.all.Go(func() {
			body := fmt.Sprintf("call %d", n)
			if status, got := p.call("echo", body); status != http.StatusOK || got != body {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.failures = append(h.failures, fmt.Sprintf("%q: %d %.200q", body, status, got))
			}
		})
	}
	queued := fmt.Sprint(calls)
	p.eventually(queued+" calls are held", func() bool {
		return p.exposed(`faas_predict_calls_queued{function_name="echo.openfaas-fn"}`) == queued
	})
	return h
}

// answered waits for the calls, each of which must have had its own answer.
func (h *held) answered(t *testing.T) {
	t.Helper()
	h.all.Wait()
	if len(h.failures) > 0 {
		t.Errorf("%d calls failed: %.2000q", len(h.failures), h.failures)
	}
}

func TestProviderHoldsTheFirstCallsOfAFunctionAtZeroAndStartsItOnce(t *testing.T) {
	p := startAtZero(t)
	p.wantMetric(`faas_predict_scalings_total{cause="idle",function_name="echo.openfaas-fn"}`, "1")
	p.wantMetric(`gateway_service_count{function_name="echo.openfaas-fn"}`, "0")
	p.hold(50).answered(t)
	p.wantReplicas("echo", 1)
	for series, want := range map[string]string{
		`faas_predict_scalings_total{cause="call",function_name="echo.openfaas-fn"}`:              "1",
		`faas_predict_scale_from_zero_seconds_count`:                                              "1",
		`faas_predict_calls_queued{function_name="echo.openfaas-fn"}`:                             "0",
		`faas_predict_calls_shed_total{function_name="echo.openfaas-fn"}`:                         "0",
		`gateway_function_invocation_total{code="200",function_name="echo.openfaas-fn"}`:          "51",
		`gateway_function_invocation_total{code="503",function_name="echo.openfaas-fn"}`:          "",
		`gateway_function_invocation_started{function_name="echo.openfaas-fn"}`:                   "51",
		`gateway_function_invocation_inflight{function_name="echo.openfaas-fn"}`:                  "0",
		`gateway_functions_seconds_count{code="200",function_name="echo.openfaas-fn"}`:            "51",
		`gateway_functions_seconds_bucket{code="200",function_name="echo.openfaas-fn",le="+Inf"}`: "51",
	} {
		p.wantMetric(series, want)
	}
}

// As many calls as may wait are let go at once, and more come at that moment: they find room in the
// function's own queue, which is longer.
func TestProviderLosesNoCallThatArrivesAsItsFunctionComesBack(t *testing.T) {
	p := startAtZero(t)
	h := p.hold(128)
	if status, answer := p.call("echo", "one more"); status != http.StatusTooManyRequests || !strings.Contains(answer, "too many calls wait") {
		t.Errorf("one more than may wait: %d %s", status, answer)
	}
	var late sync.WaitGroup
	p.eventually("it is back", func() bool { _, ready := p.replicas("echo"); return ready == 1 })
	for range 100 {
		late.Go(func() { p.wantCall("echo", "late", "late") })
	}
	h.answered(t)
	late.Wait()
	p.wantMetric(`gateway_function_invocation_total{code="429",function_name="echo.openfaas-fn"}`, "1")
	p.wantMetric(`gateway_function_invocation_total{code="200",function_name="echo.openfaas-fn"}`, "229")
}

func TestProviderKilledWhileAFunctionIsAtZeroComesBackAtZeroAndHoldsTheNextCall(t *testing.T) {
	p := startAtZero(t)
	p.kill()
	p.start()
	p.wantReplicas("echo", 0)
	if left := p.children(); len(left) > 0 {
		t.Errorf("a function at zero has the processes %v", left)
	}
	p.wantCall("echo", "after", "after")
	p.wantReplicas("echo", 1)

	// And in the middle of the way back: it is at zero or it starts, and either way answers.
	p.awaitZero()
	broken := make(chan struct{})
	go func() {
		defer close(broken)
		p.call("echo", "cut off")
	}()
	p.eventually("it starts", func() bool { return len(p.children()) > 0 })
	p.kill()
	<-broken
	p.start()
	p.eventually("it answers", func() bool {
		status, answer := p.call("echo", "again")
		return status == http.StatusOK && answer == "again"
	})
	p.awaitZero()
}

func TestProviderThatLeavesAnswersTheCallsItHolds(t *testing.T) {
	p := startAtZero(t)
	h := p.hold(20)
	p.cmd.Process.Signal(syscall.SIGTERM)
	h.answered(t)
	p.awaitEnd()
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left := p.children(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// notification is what Alertmanager 0.25 sends, with these alerts.
func notification(alerts ...string) string {
	return `{"receiver":"faas-predict","status":"firing","alerts":[` + strings.Join(alerts, ",") + `],
"groupLabels":{"alertname":"APIHighInvocationRate"},"commonLabels":{"alertname":"APIHighInvocationRate"},"commonAnnotations":{},
"externalURL":"http://127.0.0.1:9093","version":"4","groupKey":"{}:{alertname=\"APIHighInvocationRate\"}","truncatedAlerts":0}`
}

// alert is one of them about a function; namespace and replicas may be empty.
func alert(status, function, namespace, replicas string) string {
	labels := map[string]string{"alertname": "APIHighInvocationRate", "function_name": function, "monitor": "faas-monitor", "severity": "major"}
	if namespace != "" {
		labels["namespace"] = namespace
	}
	annotations := map[string]string{"description": "High invocation total", "summary": "High invocation total"}
	if replicas != "" {
		annotations["replicas"] = replicas
	}
	ends := "0001-01-01T00:00:00Z"
	if status == "resolved" {
		ends = "2026-11-24T10:05:00.000Z"
	}
	raw, _ := json.Marshal(map[string]any{
		"status": status, "labels": labels, "annotations": annotations, "startsAt": "2026-11-24T10:00:00.000Z", "endsAt": ends,
		"generatorURL": "http://127.0.0.1:9090/graph?g0.expr=sum&g0.tab=1", "fingerprint": "c2c1cb33ac0d3a3e",
	})
	return string(raw)
}

// alerted sends a notification as a user and returns the answer.
func (p *provider) alerted(user, password, body string) (int, string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.url("/system/alert"), strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "Alertmanager/0.25.0")
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	res, err := p.http.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return res.StatusCode, string(answer)
}

func TestProviderScalesByAlertsOfSeveralFunctionsAndNamespaces(t *testing.T) {
	p := startProvider(t)
	if status, err := p.CreateNamespace(t.Context(), types.FunctionNamespace{Name: "shop"}); err != nil || status >= 300 {
		t.Fatal(status, err)
	}
	p.model("echo", "def predict(request):\n    return request\n")
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"}) // at most 20, in steps of 4
	p.deploy(types.FunctionDeployment{Service: "cart", Image: "echo", Namespace: "shop", Labels: &map[string]string{
		deployment.ScaleMinLabel: "2", deployment.ScaleMaxLabel: "12",
	}})
	p.wantReplicas("echo", 1)
	p.wantReplicas("cart?namespace=shop", 2)

	attack := notification(alert("firing", "echo.openfaas-fn", "", ""))
	for _, who := range [][2]string{{"", ""}, {"admin", "guess"}, {"root", p.password}} {
		if status, _ := p.alerted(who[0], who[1], attack); status != http.StatusUnauthorized {
			t.Errorf("as %q: %d", who, status)
		}
	}
	p.wantReplicas("echo", 1)

	for _, step := range []struct {
		what, body string
		status     int
		echo, cart int
		says       string
	}{
		{
			"a step for one, a number for the other, and a function that nobody deployed", notification(
				alert("firing", "ghost", "", ""), alert("firing", "echo.openfaas-fn", "monitoring", ""), alert("firing", "cart", "shop", "7")),
			200, 5, 7, "function ghost.openfaas-fn not found",
		},
		{
			"beyond 5, and not beyond the function's own largest number", notification(
				alert("firing", "echo.openfaas-fn", "", ""), alert("firing", "cart.shop", "", "100")),
			200, 9, 12, "cart.shop: 7 to 12 replicas",
		},
		{
			"what is resolved does not count beside what fires, and a number may be lower", notification(
				alert("resolved", "echo.openfaas-fn", "", ""), alert("firing", "echo.openfaas-fn", "", "6"), alert("firing", "cart", "shop", "nonsense")),
			200, 6, 12, `"nonsense" is not a number of replicas`,
		},
		{
			"the end of one leaves the other", notification(alert("resolved", "cart.shop", "", ""), alert("firing", "echo", "", "3.2")),
			200, 4, 2, "cart.shop: 12 to 2 replicas",
		},
		{"the end of all", notification(alert("resolved", "echo.openfaas-fn", "", "9")), 200, 1, 2, "echo.openfaas-fn: 4 to 1 replicas"},
		{"the same again", notification(alert("resolved", "echo.openfaas-fn", "", "9")), 200, 1, 2, "echo.openfaas-fn: 1 to 1 replicas"},
		{"nothing but an unknown function", notification(alert("firing", "ghost", "shop", "")), 200, 1, 2, "function ghost.shop not found"},
		{"no alerts", `{"version":"4"}`, 400, 1, 2, "alerts is missing"},
		{"no JSON", `alerts`, 400, 1, 2, ""},
	} {
		status, answer := p.alerted("admin", p.password, step.body)
		if status != step.status || !strings.Contains(answer, step.says) {
			t.Errorf("%s: %d %s, want %d with %q", step.what, status, answer, step.status, step.says)
		}
		for name, want := range map[string]int{"echo": step.echo, "cart?namespace=shop": step.cart} {
			if wanted, ready := p.replicas(name); wanted != want || ready != want {
				t.Errorf("%s: %s wants %d replicas and has %d, not %d", step.what, name, wanted, ready, want)
			}
		}
		p.wantCall("echo", step.what, step.what)
		p.wantCall("cart.shop", step.what, step.what)
	}
	time.Sleep(1100 * time.Millisecond) // the metrics list functions once a second
	for series, want := range map[string]string{
		`gateway_service_count{function_name="echo.openfaas-fn"}`:                      "1",
		`gateway_service_count{function_name="cart.shop"}`:                             "2",
		`gateway_service_min{function_name="cart.shop"}`:                               "2",
		`gateway_service_max{function_name="cart.shop"}`:                               "12",
		`gateway_function_invocation_total{code="200",function_name="cart.shop"}`:      "9",
		`gateway_function_invocation_started{function_name="cart.shop"}`:               "9",
		`gateway_functions_seconds_count{code="200",function_name="cart.shop"}`:        "9",
		`faas_predict_scalings_total{cause="alert",function_name="echo.openfaas-fn"}`:  "5",
		`faas_predict_scalings_total{cause="alert",function_name="cart.shop"}`:         "3",
		`gateway_service_count{function_name="ghost.openfaas-fn"}`:                     "",
		`gateway_function_invocation_started{function_name="ghost.openfaas-fn"}`:       "",
		`faas_predict_scalings_total{cause="alert",function_name="ghost.openfaas-fn"}`: "",
	} {
		p.wantMetric(series, want)
	}
}

func TestProviderStartsAFunctionWithItsLeastReplicas(t *testing.T) {
	p := startProvider(t)
	p.model("echo", "def predict(request):\n    return request\n")
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo", Labels: restless(deployment.ScaleMinLabel, "3")})
	p.wantReplicas("echo", 3)
	p.awaitZero()
	p.wantCall("echo", "back", "back") // with as many again
	p.wantReplicas("echo", 3)

	fixed := types.FunctionDeployment{Service: "fixed", Image: "echo", Labels: &map[string]string{deployment.ScaleMinLabel: "4"}}
	p.deploy(fixed)
	p.wantReplicas("fixed", 4)
	if err := p.ScaleFunction(t.Context(), "fixed", "", 6); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Update(t.Context(), fixed); err != nil || status >= 300 {
		t.Fatal(status, err)
	}
	p.wantReplicas("fixed", 6) // an update keeps a larger number
}
