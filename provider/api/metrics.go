package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of the API itself. What functions do is counted by a gateway.Gateway.
type metrics struct {
	inFlight prometheus.Gauge
	api      *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "http_requests_in_flight",
			Help: "Calls of functions in progress.",
		}),
		api: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "provider_http_request_duration_seconds",
			Help: "Seconds spent serving API requests.",
		}, []string{"code", "method", "path"}),
	}
	r.MustRegister(m.inFlight, m.api)
	return m
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
