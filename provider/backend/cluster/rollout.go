package cluster

import (
	"errors"
	"log/slog"
	"time"

	"github.com/faas-predict/faas-predict/provider/traffic"
)

// guardKey tells steps of rollouts apart: a record that is read again has the same rollout elsewhere in
// memory.
type guardKey struct {
	deployed time.Time
	version  string
	step     int
}

func keyOf(r *record) guardKey {
	if r == nil || r.Rollout == nil {
		return guardKey{}
	}
	return guardKey{r.CreatedAt, r.Rollout.Version, r.Rollout.Step}
}

// guard watches the step of a rollout that is in force, if any. Each provider judges by the calls that
// went through it, and what the first one finds counts. The caller holds f.mu.
func (f *function) guard(r *record) {
	key := keyOf(r)
	if key == f.guarding {
		return
	}
	f.guarding = key
	f.progress.Store(nil)
	if r.Rollout != nil {
		f.b.background.Go(func() { f.watchStep(key, r.Rollout) })
	}
}

// watchStep watches a step until it passes, breaks a bound, or somebody moves the calls by other means.
// After a restart of the provider a step begins anew.
func (f *function) watchStep(key guardKey, rollout *traffic.Rollout) {
	const least, most, longest = 20 * time.Millisecond, time.Second, 30 * time.Second
	wait := min(max(time.Duration(rollout.Every)/20, least), most)
	began := time.Now()
	var c *counts
	var start traffic.Snapshot
	for keyOf(f.record.Load()) == key {
		v := f.route.Load().Version(rollout.Version)
		if v != nil && v.counts != c {
			c, start, began = v.counts, v.stats.Read(), time.Now()
		}
		if !pause(f.b.alive, wait) {
			return
		}
		if v == nil {
			continue // scaled to zero, or being started
		}
		verdict, why := rollout.Judge(c.stats.Read().Since(start), time.Since(began))
		f.progress.Store(&why)
		if verdict == traffic.Wait {
			continue
		}
		if f.endStep(key, verdict, why) {
			return
		}
		wait = min(wait*2, longest)
	}
}

// errOver means that somebody else has ended a rollout.
var errOver = errors.New("the rollout is over")

// endStep moves the calls as a verdict asks. It reports whether the step is over.
func (f *function) endStep(key guardKey, verdict traffic.Verdict, why string) bool {
	result, text := "", ""
	err := f.b.revise(f.ref, func(old *record) (*record, error) {
		if keyOf(old) != key {
			return nil, errOver
		}
		next := old.clone()
		result, text = next.EndStep(verdict, why)
		return next, nil
	})
	switch {
	case errors.Is(err, errOver) || f.b.alive.Err() != nil:
		return true
	case err != nil:
		logError("a rollout's step could not be ended; it is tried again", f.ref, err)
		return false
	}
	f.b.rollouts.WithLabelValues(f.ref.String(), result).Inc()
	text = "rollout of version " + key.version + ": " + text
	if verdict == traffic.Broken {
		slog.Warn(text, "function", f.ref.String())
	} else {
		slog.Info(text, "function", f.ref.String())
	}
	return true
}
