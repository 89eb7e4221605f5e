package process

import (
	"log/slog"
	"time"

	"github.com/faas-predict/faas-predict/provider/traffic"
)

// guard watches the step of a rollout that is in force until it passes, breaks a bound, or somebody
// moves the calls by other means. After a restart of the provider a step begins anew.
func (b *Backend) guard(f *function, rollout *traffic.Rollout) {
	const least, most = 20 * time.Millisecond, time.Second
	tick := time.NewTicker(min(max(rollout.Every/20, least), most))
	defer tick.Stop()
	began := time.Now()
	var stats *traffic.Stats
	var start traffic.Snapshot
	for {
		select {
		case <-b.alive.Done():
			return
		case <-tick.C:
		}
		r, g := f.record.Load(), f.route.Load().generation(rollout.Version)
		if r == nil || r.Rollout != rollout {
			return
		}
		if g == nil {
			continue // scaled to zero
		}
		if g.stats != stats {
			stats, start, began = g.stats, g.stats.Read(), time.Now()
		}
		verdict, why := rollout.Judge(stats.Read().Since(start), time.Since(began))
		f.progress.Store(&why)
		if verdict != traffic.Wait && b.endStep(f, rollout, verdict, why) {
			return
		}
	}
}

// endStep moves the calls as a verdict asks. It reports whether the step is over.
func (b *Backend) endStep(f *function, rollout *traffic.Rollout, verdict traffic.Verdict, why string) bool {
	f.change.Lock()
	defer f.change.Unlock()
	r := f.record.Load()
	if r == nil || r.Rollout != rollout {
		return true
	}
	next := r.clone()
	result := "step"
	switch last := rollout.Step == len(rollout.Steps)-1; {
	case verdict == traffic.Broken:
		result = "rolled_back"
		next.Rollout, next.Note = nil, "rolled back at "+rollout.Steps[rollout.Step].String()+" %: "+why
		next.Split = rollout.Base
		if len(next.Before) > 0 && next.Before[0].Equal(rollout.Base) {
			next.Before = next.Before[1:]
		}
	case last:
		result = "complete"
		next.Rollout, next.Note = nil, "version "+rollout.Version+" has passed every step"
	default:
		step := *rollout
		step.Step++
		next.Rollout, next.Split = &step, step.Split()
	}
	if err := b.apply(f, next, ""); err != nil {
		slog.Error("a rollout's step could not be ended; it is tried again", "function", f.ref.String(), "version", rollout.Version, "error", err)
		return false
	}
	b.rollouts.WithLabelValues(f.ref.String(), result).Inc()
	text := "rollout of version " + rollout.Version + ": " + next.Note
	if next.Rollout != nil {
		text = "rollout of version " + rollout.Version + " goes on to " + next.Rollout.Steps[next.Rollout.Step].String() + " %"
	}
	b.journal(f.ref).add(f.ref.Name, "provider: "+text)
	if verdict == traffic.Broken {
		slog.Warn(text, "function", f.ref.String())
	} else {
		slog.Info(text, "function", f.ref.String())
	}
	return true
}
