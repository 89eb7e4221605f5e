package process

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/traffic"
)

// Describe implements prometheus.Collector.
func (b *Backend) Describe(out chan<- *prometheus.Desc) {
	traffic.Describe(out)
	b.rollouts.Describe(out)
}

// Collect implements prometheus.Collector: the versions that are loaded, and no others, so that the
// series are as many as the models in memory.
func (b *Backend) Collect(out chan<- prometheus.Metric) {
	b.rollouts.Collect(out)
	for _, f := range b.all() { // without a lock: whoever reads the metrics may be slow
		rt := f.route.Load()
		if rt == nil {
			continue
		}
		for version, g := range rt.Loaded {
			traffic.Measured{
				Function: f.ref.String(), Version: version, Weight: rt.Split.Weight(version),
				Stats: g.stats, Mirrored: g.mirrored.Read(),
			}.Collect(out)
		}
	}
}
