package api

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// metrics are named as the OpenFaaS gateway and provider name theirs, so that existing dashboards
// and alerts read them.
type metrics struct {
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
	api      *prometheus.HistogramVec

	cache sync.Map // callKey to callMetrics: a look-up by labels costs more than the rest of counting
}

type callKey struct {
	ref  backend.Ref
	code int
}

type callMetrics struct {
	calls   prometheus.Counter
	seconds prometheus.Observer
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gateway_function_invocation_total",
			Help: "Calls of functions that were answered, by HTTP status.",
		}, []string{"function_name", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "gateway_functions_seconds",
			Help:    "Time from a call's arrival to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 12),
		}, []string{"function_name", "code"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "http_requests_in_flight",
			Help: "Calls of functions in progress.",
		}),
		api: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "provider_http_request_duration_seconds",
			Help: "Seconds spent serving API requests.",
		}, []string{"code", "method", "path"}),
	}
	r.MustRegister(m.calls, m.seconds, m.inFlight, m.api)
	return m
}

// called counts one call. Only functions that exist are counted by name: a caller must not be able
// to make series.
func (m *metrics) called(ref backend.Ref, code int, took time.Duration) {
	key := callKey{ref, code}
	cached, ok := m.cache.Load(key)
	if !ok {
		labels := prometheus.Labels{"function_name": ref.String(), "code": strconv.Itoa(code)}
		cached, _ = m.cache.LoadOrStore(key, callMetrics{m.calls.With(labels), m.seconds.With(labels)})
	}
	c := cached.(callMetrics)
	c.calls.Inc()
	c.seconds.Observe(took.Seconds())
}

// forget drops a deleted function's series.
func (m *metrics) forget(ref backend.Ref) {
	m.cache.Range(func(key, _ any) bool {
		if key.(callKey).ref == ref {
			m.cache.Delete(key)
		}
		return true
	})
	m.calls.DeletePartialMatch(prometheus.Labels{"function_name": ref.String()})
	m.seconds.DeletePartialMatch(prometheus.Labels{"function_name": ref.String()})
}

// observe times API requests by the route that took them.
func (m *metrics) observe(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, pattern := mux.Handler(r)
		if pattern == "" {
			pattern = "none"
		}
		start := time.Now()
		recorder := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		mux.ServeHTTP(recorder, r)
		m.api.WithLabelValues(strconv.Itoa(recorder.status), methodLabel(r.Method), pattern).Observe(time.Since(start).Seconds())
	})
}

// methodLabel keeps invented methods from making series.
func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodHead:
		return method
	}
	return "other"
}

type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (s *statusRecorder) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// Unwrap gives http.ResponseController what it looks for.
func (s *statusRecorder) Unwrap() http.ResponseWriter { return s.ResponseWriter }
