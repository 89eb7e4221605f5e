package server

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/pool"
)

// metrics are of-watchdog's three under their names, and ours, which carry the version.
type metrics struct {
	registry *prometheus.Registry
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	queue    prometheus.Observer
	predict  prometheus.Observer
	batch    prometheus.Observer
	deaths   *prometheus.CounterVec

	byOutcome sync.Map // outcome → *observed: label look-ups cost more than the counting
}

type outcome struct {
	code   int
	method string
}

type observed struct {
	total    prometheus.Counter
	duration prometheus.Observer
}

// secondsBuckets start where a small model answers.
var secondsBuckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

func newMetrics(v model.Version, name string, stats func() pool.Stats) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	labels := prometheus.Labels{"model": name, "version": v.ID, "code": v.Code, "coefficients": v.Coefficients}
	m.total = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "http_requests_total", Help: "total HTTP requests processed",
	}, []string{"code", "method"})
	m.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_request_duration_seconds", Help: "Seconds spent serving HTTP requests.", Buckets: prometheus.DefBuckets,
	}, []string{"code", "method"})
	m.inFlight = prometheus.NewGauge(prometheus.GaugeOpts{Name: "http_requests_in_flight", Help: "total HTTP requests in-flight"})
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets, ConstLabels: labels})
		m.registry.MustRegister(h)
		return h
	}
	m.queue = histogram("fwatchdog_queue_seconds", "Seconds a request waited outside predict.", secondsBuckets)
	m.predict = histogram("fwatchdog_predict_seconds", "Seconds that predict took.", secondsBuckets)
	m.batch = histogram("fwatchdog_batch_size", "Requests that went to predict_batch together.", []float64{1, 2, 4, 8, 16, 32, 64, 128})
	m.deaths = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fwatchdog_worker_deaths_total", Help: "Workers that died or were killed, by cause (crash, timeout).", ConstLabels: labels,
	}, []string{"cause"})
	m.registry.MustRegister(m.total, m.duration, m.inFlight, m.deaths, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, g := range []struct {
		name, help string
		value      func(pool.Stats) float64
	}{
		{"fwatchdog_workers", "Workers wanted.", func(s pool.Stats) float64 { return float64(s.Workers) }},
		{"fwatchdog_workers_ready", "Workers up.", func(s pool.Stats) float64 { return float64(s.Ready) }},
		{"fwatchdog_workers_busy", "Workers with a request.", func(s pool.Stats) float64 { return float64(s.Busy) }},
		{"fwatchdog_queue_length", "Requests that no worker has yet.", func(s pool.Stats) float64 { return float64(s.Queued) }},
		{"fwatchdog_worker_restarts", "Workers replaced since the start.", func(s pool.Stats) float64 { return float64(s.Restarts) }},
	} {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.name, Help: g.help, ConstLabels: labels},
			func() float64 { return g.value(stats()) }))
	}
	return m
}

// methods bounds the method label: a caller may send any word.
func methodLabel(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
		return method
	}
	return "other"
}

func (m *metrics) served(code int, method string, took time.Duration) {
	key := outcome{code, methodLabel(method)}
	o, ok := m.byOutcome.Load(key)
	if !ok {
		labels := []string{strconv.Itoa(code), key.method}
		o, _ = m.byOutcome.LoadOrStore(key, &observed{m.total.WithLabelValues(labels...), m.duration.WithLabelValues(labels...)})
	}
	o.(*observed).total.Inc()
	o.(*observed).duration.Observe(took.Seconds())
}
