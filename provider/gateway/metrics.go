package gateway

import (
	"context"
	"log/slog"
	"time"

	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// metrics are named as OpenFaaS's gateway names its own, so that dashboards and rules for it read them.
// What it does not have begins with faas_predict_.
type metrics struct {
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	started  *prometheus.CounterVec
	shed     *prometheus.CounterVec
	scalings *prometheus.CounterVec
	starts   prometheus.Histogram
}

func newMetrics() *metrics {
	function := []string{"function_name"}
	return &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gateway_function_invocation_total",
			Help: "Calls of functions that were answered, by HTTP status.",
		}, []string{"function_name", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "gateway_functions_seconds",
			Help:    "Time from a call's arrival to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 12),
		}, []string{"function_name", "code"}),
		started: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gateway_function_invocation_started",
			Help: "Calls of functions that have arrived.",
		}, function),
		shed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faas_predict_calls_shed_total",
			Help: "Calls that were answered 429 or 503: there was no room for them, or no replica.",
		}, function),
		scalings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faas_predict_scalings_total",
			Help: "Changes of a function's number of replicas, by cause: alert, call (from zero), idle (to zero), request.",
		}, []string{"function_name", "cause"}),
		starts: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "faas_predict_scale_from_zero_seconds",
			Help:    "Time that functions took to come back from zero replicas for a call.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 12),
		}),
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.calls, m.seconds, m.started, m.shed, m.scalings, m.starts}
}

func (m *metrics) forget(function string) {
	name := prometheus.Labels{"function_name": function}
	m.calls.DeletePartialMatch(name)
	m.seconds.DeletePartialMatch(name)
	m.started.DeletePartialMatch(name)
	m.shed.DeletePartialMatch(name)
	m.scalings.DeletePartialMatch(name)
}

var (
	byFunction   = []string{"function_name"}
	inFlightDesc = prometheus.NewDesc("gateway_function_invocation_inflight", "Calls of a function in progress, those that wait as well.", byFunction, nil)
	queuedDesc   = prometheus.NewDesc("faas_predict_calls_queued", "Of the calls in progress, those that wait for the function to come back from zero replicas.", byFunction, nil)
	countDesc    = prometheus.NewDesc("gateway_service_count", "Replicas that a function is to have.", byFunction, nil)
	readyDesc    = prometheus.NewDesc("gateway_service_ready_count", "Replicas of a function that are ready.", byFunction, nil)
	minDesc      = prometheus.NewDesc("gateway_service_min", "Least replicas of a function, but for zero.", byFunction, nil)
	maxDesc      = prometheus.NewDesc("gateway_service_max", "Most replicas of a function by alerts.", byFunction, nil)
	targetDesc   = prometheus.NewDesc("gateway_service_target", "Load that one replica of a function should have, by what load is: its scale type.", []string{"function_name", "scaling_type"}, nil)
)

// Describe implements prometheus.Collector.
func (g *Gateway) Describe(out chan<- *prometheus.Desc) {
	for _, c := range g.metrics.collectors() {
		c.Describe(out)
	}
	for _, d := range []*prometheus.Desc{inFlightDesc, queuedDesc, countDesc, readyDesc, minDesc, maxDesc, targetDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector. It asks the backend which functions there are, and forgets those
// that are no longer there.
func (g *Gateway) Collect(out chan<- prometheus.Metric) {
	functions, err := g.listForMetrics()
	if err != nil {
		slog.Warn("the metrics lack the numbers of replicas", "error", err)
	}
	for _, s := range functions {
		name := refOf(s).String()
		gauge := func(d *prometheus.Desc, value float64, labels ...string) {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, append([]string{name}, labels...)...)
		}
		gauge(countDesc, float64(s.Replicas))
		gauge(readyDesc, float64(s.AvailableReplicas))
		if scaling, err := deployment.ParseScaling(s.Labels, g.options.MaxReplicas); err == nil {
			gauge(minDesc, float64(scaling.Min))
			gauge(maxDesc, float64(scaling.Max))
			gauge(targetDesc, scaling.Target, scaling.Type)
		}
	}
	g.mu.RLock()
	for _, f := range g.functions {
		out <- prometheus.MustNewConstMetric(inFlightDesc, prometheus.GaugeValue, float64(f.inFlight.Load()), f.name)
		out <- prometheus.MustNewConstMetric(queuedDesc, prometheus.GaugeValue, float64(f.held.Load()), f.name)
	}
	g.mu.RUnlock()
	for _, c := range g.metrics.collectors() {
		c.Collect(out)
	}
}

// listForMetrics lists functions at most once a second, however many read the metrics.
func (g *Gateway) listForMetrics() ([]types.FunctionStatus, error) {
	const fresh, patience = time.Second, 5 * time.Second
	g.listing.Lock()
	defer g.listing.Unlock()
	began := time.Now()
	if !g.outdated.Swap(false) && began.Sub(g.listedAt) < fresh {
		return g.listed, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	functions, err := g.all(ctx)
	if err != nil {
		return nil, err
	}
	g.listed, g.listedAt = functions, began
	g.sweep(functions, began)
	return functions, nil
}

// sweep forgets what is known of functions that were not there at that time: a call that came as its
// function was deleted makes it known again, and on an engine others delete as well.
func (g *Gateway) sweep(functions []types.FunctionStatus, at time.Time) {
	there := make(map[backend.Ref]bool, len(functions))
	for _, s := range functions {
		there[refOf(s)] = true
	}
	var gone []backend.Ref
	g.mu.RLock()
	for ref, f := range g.functions {
		if !there[ref] && f.since.Before(at) && f.inFlight.Load() == 0 {
			gone = append(gone, ref)
		}
	}
	g.mu.RUnlock()
	for _, ref := range gone {
		g.forget(ref)
	}
}
