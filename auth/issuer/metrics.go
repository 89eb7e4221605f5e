package issuer

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	issued, refused *prometheus.CounterVec
}

// newMetrics registers the metrics of an issuer, unless there is nowhere to.
func newMetrics(registry prometheus.Registerer, i *Issuer) *metrics {
	m := &metrics{
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faas_auth_tokens_issued_total", Help: "Access tokens issued, by grant type.",
		}, []string{"grant_type"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faas_auth_refusals_total", Help: "Requests refused, by error code.",
		}, []string{"error"}),
	}
	if registry == nil {
		return m
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	registry.MustRegister(m.issued, m.refused,
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "faas_auth_secret_hashes_total", Help: "Client secrets that argon2id was computed for.",
		}, func() float64 { return float64(i.secrets.hashes.Load()) }),
		gauge("faas_auth_revoked_tokens", "Entries of single tokens in the revocation list.", func() float64 {
			tokens, _ := i.revoked.sizes()
			return float64(tokens)
		}),
		gauge("faas_auth_revoked_clients", "Entries of clients in the revocation list.", func() float64 {
			_, clients := i.revoked.sizes()
			return float64(clients)
		}),
		gauge("faas_auth_signing_keys", "Published signing keys.", func() float64 { return float64(len(i.SigningKeys())) }),
		gauge("faas_auth_clients", "Registered clients.", func() float64 {
			i.mu.RLock()
			defer i.mu.RUnlock()
			return float64(len(i.clients))
		}))
	return m
}
