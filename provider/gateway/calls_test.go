package gateway

import (
	"bytes"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// gathered is the registry as text.
func gathered(t testing.TB, metrics *prometheus.Registry) string {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

func TestEveryCallIsCountedAsTheGatewayCounts(t *testing.T) {
	g, s, metrics := open(t)
	s.add(iris, 3, deployment.ScaleMinLabel, "2", deployment.ScaleMaxLabel, "9", deployment.ScaleTypeLabel, "rps", deployment.ScaleTargetLabel, "75")
	for _, status := range []int{200, 200, 429, 503, 500} {
		g.Begin(iris, time.Now()).End(status)
	}
	open := g.Begin(iris, time.Now())
	text := gathered(t, metrics)
	for _, want := range []string{
		`gateway_function_invocation_total{code="200",function_name="iris.openfaas-fn"} 2`,
		`gateway_function_invocation_total{code="500",function_name="iris.openfaas-fn"} 1`,
		`gateway_functions_seconds_count{code="429",function_name="iris.openfaas-fn"} 1`,
		`gateway_function_invocation_started{function_name="iris.openfaas-fn"} 6`,
		`gateway_function_invocation_inflight{function_name="iris.openfaas-fn"} 1`,
		`gateway_service_count{function_name="iris.openfaas-fn"} 3`,
		`gateway_service_ready_count{function_name="iris.openfaas-fn"} 3`,
		`gateway_service_min{function_name="iris.openfaas-fn"} 2`,
		`gateway_service_max{function_name="iris.openfaas-fn"} 9`,
		`gateway_service_target{function_name="iris.openfaas-fn",scaling_type="rps"} 75`,
		`faas_predict_calls_queued{function_name="iris.openfaas-fn"} 0`,
		`faas_predict_calls_shed_total{function_name="iris.openfaas-fn"} 2`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	open.End(200)
	if text := gathered(t, metrics); !strings.Contains(text, `gateway_function_invocation_inflight{function_name="iris.openfaas-fn"} 0`) {
		t.Error("a call that ended is in flight")
	}
}

func TestADeletedFunctionsSeriesGoAndStayAway(t *testing.T) {
	g, s, metrics := open(t)
	s.add(iris, 1)
	late := g.Begin(iris, time.Now())
	g.Begin(iris, time.Now()).End(200)
	s.remove(iris)
	g.Forget(iris)
	late.End(500)
	if text := gathered(t, metrics); strings.Contains(text, "iris") {
		t.Errorf("series of a deleted function:\n%s", text)
	}
	// A call that came as the function was deleted makes it known again; the next look at the backend ends that.
	g.Begin(iris, time.Now()).End(404)
	time.Sleep(2 * time.Millisecond)
	g.outdated.Store(true)
	gathered(t, metrics)
	if text := gathered(t, metrics); strings.Contains(text, "iris") {
		t.Errorf("series of a deleted function:\n%s", text)
	}
}

func TestAFunctionCannotMakeSeriesWithoutEnd(t *testing.T) {
	g, s, metrics := open(t)
	s.add(iris, 1)
	for status := 100; status < 1000; status++ {
		g.Begin(iris, time.Now()).End(status)
	}
	text := gathered(t, metrics)
	if n := strings.Count(text, "gateway_function_invocation_total{"); n != maxCodes+1 || !strings.Contains(text, `gateway_function_invocation_total{code="other",function_name="iris.openfaas-fn"} 836`) {
		t.Errorf("%d series of statuses", n)
	}
}

func TestCountingByManyAtOnceLosesNothing(t *testing.T) {
	g, s, metrics := open(t)
	s.add(iris, 1)
	const workers, calls = 8, 500
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := range calls {
				g.Begin(iris, time.Now()).End(http.StatusOK + i%5)
			}
		})
	}
	all.Wait()
	text := gathered(t, metrics)
	for _, want := range []string{
		`gateway_function_invocation_started{function_name="iris.openfaas-fn"} 4000`,
		`gateway_function_invocation_total{code="204",function_name="iris.openfaas-fn"} 800`,
		`gateway_function_invocation_inflight{function_name="iris.openfaas-fn"} 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

// A call takes some 25 µs in all; to count it may not take 300 ns of them, nor leave anything behind.
func BenchmarkCountingACall(b *testing.B) {
	g, s, _ := open(b)
	s.add(iris, 1)
	for _, ref := range []backend.Ref{iris, {Namespace: "shop", Name: "cars"}} {
		g.Begin(ref, time.Now()).End(200)
	}
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		c := g.Begin(iris, time.Now())
		_ = c.Enter(ctx)
		c.End(200)
	}
}
