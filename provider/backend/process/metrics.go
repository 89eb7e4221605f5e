package process

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// versionLabels name a version in a metric: whole, and by its two halves, so that one can compare
// coefficients with the same code.
var versionLabels = []string{"function_name", "version", "model_code", "model_coefficients"}

var (
	callsDesc = prometheus.NewDesc("faas_predict_version_calls_total", "Calls that a version of a function had, by HTTP status; 0 is an answer that was cut off.",
		append(versionLabels[:4:4], "code"), nil)
	secondsDesc  = prometheus.NewDesc("faas_predict_version_seconds", "Time of the calls that a version of a function had.", versionLabels, nil)
	weightDesc   = prometheus.NewDesc("faas_predict_version_weight", "Share of the function's calls that the version gets, 0 to 1.", versionLabels, nil)
	mirroredDesc = prometheus.NewDesc("faas_predict_mirror_calls_total", "Copies of calls to a mirror: matched, differed, failed, skipped.",
		append(versionLabels[:4:4], "result"), nil)
)

// newRollouts counts ends of rollouts and of their steps.
func newRollouts() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "faas_predict_rollouts_total", Help: "Steps and ends of guarded rollouts: step, complete, rolled_back.",
	}, []string{"function_name", "result"})
}

// Describe implements prometheus.Collector.
func (b *Backend) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{callsDesc, secondsDesc, weightDesc, mirroredDesc} {
		out <- d
	}
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
		for version, g := range rt.loaded {
			code, coefficients, _ := strings.Cut(version, "_")
			labels := []string{f.ref.String(), version, code, coefficients}
			counted := g.stats.Read()
			for status, n := range counted.Codes {
				out <- prometheus.MustNewConstMetric(callsDesc, prometheus.CounterValue, float64(n), append(labels[:4:4], strconv.Itoa(status))...)
			}
			buckets, count := counted.Buckets()
			out <- prometheus.MustNewConstHistogram(secondsDesc, count, counted.Seconds, buckets, labels...)
			out <- prometheus.MustNewConstMetric(weightDesc, prometheus.GaugeValue, float64(rt.split.Weight(version))/1000, labels...)
			m := g.mirrored.read()
			if m == nil {
				continue
			}
			for result, n := range map[string]uint64{"matched": m.Matched, "differed": m.Differed, "failed": m.Failed, "skipped": m.Skipped} {
				out <- prometheus.MustNewConstMetric(mirroredDesc, prometheus.CounterValue, float64(n), append(labels[:4:4], result)...)
			}
		}
	}
}
