package process

import (
	"errors"
	"log/slog"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// guard watches the step of a rollout that is in force until it passes, breaks a bound, or somebody
// moves the calls by other means. After a restart of the provider a step begins anew.
func (b *Backend) guard(f *function, rollout *traffic.Rollout) {
	const least, most = 20 * time.Millisecond, time.Second
	every := min(max(time.Duration(rollout.Every)/20, least), most)
	began := time.Now()
	var stats *traffic.Stats
	var start traffic.Snapshot
	for wait := every; ; {
		r, g := f.record.Load(), f.route.Load().Version(rollout.Version)
		if r == nil || r.Rollout != rollout {
			return
		}
		if g != nil && g.stats != stats {
			stats, start, began = g.stats, g.stats.Read(), time.Now()
		}
		if !pause(b.alive, wait) {
			return
		}
		if g == nil {
			continue // scaled to zero, or being started
		}
		verdict, why := rollout.Judge(stats.Read().Since(start), time.Since(began))
		f.progress.Store(&why)
		if verdict == traffic.Wait {
			continue
		}
		if b.endStep(f, rollout, verdict, why) {
			return
		}
		wait = min(wait*2, lastBackoff)
	}
}

// errOver means that somebody else has ended a rollout.
var errOver = errors.New("the rollout is over")

// endStep moves the calls as a verdict asks. It reports whether the step is over.
func (b *Backend) endStep(f *function, rollout *traffic.Rollout, verdict traffic.Verdict, why string) bool {
	result, text := "", ""
	err := b.revise(f, "", func(old *deployment.Record) (*deployment.Record, error) {
		if old == nil || old.Rollout != rollout {
			return nil, errOver
		}
		next := old.Clone()
		result, text = next.EndStep(verdict, why)
		return next, nil
	})
	switch {
	case errors.Is(err, errOver) || b.alive.Err() != nil:
		return true
	case err != nil:
		slog.Error("a rollout's step could not be ended; it is tried again", "function", f.ref.String(), "version", rollout.Version, "error", err)
		return false
	}
	b.rollouts.WithLabelValues(f.ref.String(), result).Inc()
	text = "rollout of version " + rollout.Version + ": " + text
	b.journal(f.ref).add(f.ref.Name, "provider: "+text)
	if verdict == traffic.Broken {
		slog.Warn(text, "function", f.ref.String())
	} else {
		slog.Info(text, "function", f.ref.String())
	}
	return true
}
