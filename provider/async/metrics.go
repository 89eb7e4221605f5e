package async

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what happens to calls. None has a label of which there could be any number.
type metrics struct {
	accepted, reported      prometheus.Counter
	executed, retries, dead *prometheus.CounterVec
	delay                   prometheus.Histogram
}

func newMetrics(registry prometheus.Registerer, q *Queue) *metrics {
	m := &metrics{
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "provider_async_accepted_total", Help: "Asynchronous calls that were stored and answered with 202.",
		}),
		executed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provider_async_executed_total", Help: "Executions of asynchronous calls, by class of the function's status; one call may have several.",
		}, []string{"code"}),
		reported: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "provider_async_reported_total", Help: "Results that a callback answered with 2xx.",
		}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provider_async_retries_total", Help: "Attempts that failed and are made again, by step: execute or report.",
		}, []string{"step"}),
		dead: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provider_async_dead_total", Help: "Calls and results that were given up, by step: execute or report.",
		}, []string{"step"}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "provider_async_delay_seconds", Help: "Time from a call's acceptance to the beginning of its execution.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 12), // to half an hour
		}),
	}
	registry.MustRegister(m.accepted, m.executed, m.reported, m.retries, m.dead, m.delay, &stored{q})
	return m
}

// stored says how much the streams hold, when it is asked.
type stored struct{ queue *Queue }

var (
	messagesDesc = prometheus.NewDesc("provider_async_queue_messages", "What is stored: calls to be executed, results to be reported, dead letters.", []string{"queue"}, nil)
	bytesDesc    = prometheus.NewDesc("provider_async_queue_bytes", "How many bytes that takes.", []string{"queue"}, nil)
)

func (*stored) Describe(out chan<- *prometheus.Desc) {
	out <- messagesDesc
	out <- bytesDesc
}

func (c *stored) Collect(out chan<- prometheus.Metric) {
	s := c.queue.store.Load()
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for name, stream := range map[string]jetstream.Stream{"calls": s.calls, "results": s.results, "dead": s.dead} {
		info, err := stream.Info(ctx)
		if err != nil {
			continue // a gap in the series says it
		}
		out <- prometheus.MustNewConstMetric(messagesDesc, prometheus.GaugeValue, float64(info.State.Msgs), name)
		out <- prometheus.MustNewConstMetric(bytesDesc, prometheus.GaugeValue, float64(info.State.Bytes), name)
	}
}
