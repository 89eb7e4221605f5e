package traffic

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

// NewRollouts counts ends of rollouts and of their steps.
func NewRollouts() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "faas_predict_rollouts_total", Help: "Steps and ends of guarded rollouts: step, complete, rolled_back.",
	}, []string{"function_name", "result"})
}

// Describe sends what Measured.Collect collects.
func Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{callsDesc, secondsDesc, weightDesc, mirroredDesc} {
		out <- d
	}
}

// Measured is a loaded version of a function as metrics show it.
type Measured struct {
	Function, Version string
	Weight            Weight
	Stats             *Stats
	Mirrored          *Mirrored // nil where there were no copies
}

// Collect sends the version's metrics.
func (m Measured) Collect(out chan<- prometheus.Metric) {
	code, coefficients, _ := strings.Cut(m.Version, "_")
	labels := []string{m.Function, m.Version, code, coefficients}
	counted := m.Stats.Read()
	for status, n := range counted.Codes {
		out <- prometheus.MustNewConstMetric(callsDesc, prometheus.CounterValue, float64(n), append(labels[:4:4], strconv.Itoa(status))...)
	}
	buckets, count := counted.Buckets()
	out <- prometheus.MustNewConstHistogram(secondsDesc, count, counted.Seconds, buckets, labels...)
	out <- prometheus.MustNewConstMetric(weightDesc, prometheus.GaugeValue, float64(m.Weight)/float64(Whole), labels...)
	if m.Mirrored == nil {
		return
	}
	for result, n := range map[string]uint64{"matched": m.Mirrored.Matched, "differed": m.Mirrored.Differed, "failed": m.Mirrored.Failed, "skipped": m.Mirrored.Skipped} {
		out <- prometheus.MustNewConstMetric(mirroredDesc, prometheus.CounterValue, float64(n), append(labels[:4:4], result)...)
	}
}
