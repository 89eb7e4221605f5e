package traffic

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// RolloutAnnotation asks for a guarded rollout, as "steps=1,10,50,100 every=5m errors=1 p99=200ms
// calls=100". Only steps and one bound must be given.
const RolloutAnnotation = "faas-predict.rollout"

// Defaults of a rollout.
const (
	rolloutEvery = 5 * time.Minute
	rolloutCalls = 100
)

// maxSteps bounds a rollout's steps.
const maxSteps = 32

// Rollout gives a version its calls in steps, each of which must hold the bounds.
type Rollout struct {
	Version string   `json:"version"`
	Steps   []Weight `json:"steps"`
	// Step is the index of the step that is in force.
	Step int `json:"step"`
	// Every is how long a step lasts at least; it also lasts until the version had Calls calls.
	Every Duration `json:"every"`
	Calls uint64   `json:"calls"`
	// Errors bounds the share of calls that fail (status 500 and above), unless NoErrorBound.
	Errors       Weight `json:"errors"`
	NoErrorBound bool   `json:"no_error_bound,omitempty"`
	// P99 bounds the time that 99 of 100 calls stay within; 0 is no bound.
	P99 Duration `json:"p99,omitempty"`
	// Base is the split that a broken bound leads back to.
	Base Split `json:"base"`
}

// ParseRollout reads the annotation.
func ParseRollout(text, version string, base Split) (*Rollout, error) {
	r := &Rollout{Version: version, Every: Duration(rolloutEvery), Calls: rolloutCalls, NoErrorBound: true, Base: base}
	seen := map[string]bool{}
	for _, word := range strings.Fields(text) {
		name, value, _ := strings.Cut(word, "=")
		var err error
		if seen[name] {
			name = "twice"
		}
		seen[name] = true
		switch name {
		case "twice":
			err = errors.New("it is given twice")
		case "steps":
			err = r.parseSteps(value)
		case "every":
			r.Every, err = positive(value)
		case "calls":
			r.Calls, err = strconv.ParseUint(value, 10, 32)
		case "errors":
			r.NoErrorBound = false
			r.Errors, err = ParseWeight(strings.TrimSuffix(value, "%"))
		case "p99":
			r.P99, err = positive(value)
		default:
			err = errors.New("there is no such word; use steps, every, calls, errors and p99")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: annotation %s: %.80q: %w", ErrInvalid, RolloutAnnotation, word, err)
		}
	}
	switch {
	case len(r.Steps) == 0:
		return nil, fmt.Errorf("%w: annotation %s: steps are missing, such as steps=1,10,50,100", ErrInvalid, RolloutAnnotation)
	case r.NoErrorBound && r.P99 == 0:
		return nil, fmt.Errorf("%w: annotation %s: a bound is missing, such as errors=1 or p99=200ms", ErrInvalid, RolloutAnnotation)
	}
	return r, nil
}

func (r *Rollout) parseSteps(value string) error {
	for part := range strings.SplitSeq(value, ",") {
		w, err := ParseWeight(part)
		if err != nil {
			return err
		}
		if n := len(r.Steps); w == 0 || (n > 0 && w <= r.Steps[n-1]) {
			return errors.New("each step must be larger than the one before")
		}
		r.Steps = append(r.Steps, w)
	}
	if len(r.Steps) > maxSteps {
		return fmt.Errorf("%d steps are allowed", maxSteps)
	}
	if r.Steps[len(r.Steps)-1] != Whole {
		return errors.New("the last step must be 100")
	}
	return nil
}

func positive(value string) (Duration, error) {
	d, err := time.ParseDuration(value)
	if err == nil && d <= 0 {
		err = errors.New("must be more than 0")
	}
	return Duration(d), err
}

// Split is the split of the step that is in force.
func (r *Rollout) Split() Split { return r.Base.Canary(r.Version, r.Steps[r.Step]) }

// Duration is a time.Duration that JSON writes as people do, such as "1m30s".
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(raw []byte) error {
	parsed, err := time.ParseDuration(string(raw))
	*d = Duration(parsed)
	return err
}

// Verdict says what becomes of a step.
type Verdict int

// The verdicts.
const (
	Wait   Verdict = iota // it goes on
	Passed                // the next step may begin
	Broken                // a bound does not hold
)

// How many calls it takes to judge a bound as broken: one failed call of two is no rate, and of less
// than a hundred calls the slowest alone would decide what 99 of 100 stay within. Where calls= asks
// for fewer, those are enough.
const (
	fewestForErrors = 20
	fewestForP99    = 100
)

// Judge says what to do with the step that is in force, after so long, with what the version's calls
// were since the step began. The reason is for people. Where only time is bound, a call that failed
// counts as one that did not stay within it, however fast it failed.
func (r *Rollout) Judge(since Snapshot, elapsed time.Duration) (Verdict, string) {
	enough := func(fewest uint64) bool { return since.Calls >= min(fewest, max(r.Calls, 1)) }
	share := float64(since.Errors) / float64(max(since.Calls, 1))
	failures := fmt.Sprintf("%d of %d calls failed (%.1f %%)", since.Errors, since.Calls, share*100)
	switch {
	case !r.NoErrorBound && enough(fewestForErrors) && share > float64(r.Errors)/float64(Whole):
		return Broken, fmt.Sprintf("%s, the bound is %s %%", failures, r.Errors)
	case r.P99 > 0 && r.NoErrorBound && enough(fewestForP99) && share > 0.01:
		return Broken, fmt.Sprintf("%s, and 99 of 100 must be answered within %s", failures, r.P99)
	case r.P99 > 0 && enough(fewestForP99) && !within(since, time.Duration(r.P99)):
		return Broken, fmt.Sprintf("99 of 100 of %d calls took up to %s, the bound is %s", since.Calls, since.Quantile(0.99).Round(time.Microsecond), r.P99)
	case elapsed >= time.Duration(r.Every) && since.Calls >= r.Calls:
		return Passed, ""
	}
	return Wait, fmt.Sprintf("step %d of %d: %s %% since %s, %d of %d calls", r.Step+1, len(r.Steps), r.Steps[r.Step],
		elapsed.Round(time.Second), since.Calls, r.Calls)
}

// within gives the bound the benefit of its bucket: a call in the bucket that holds the bound may have
// stayed within it.
func within(s Snapshot, limit time.Duration) bool {
	total, over := uint64(0), uint64(0)
	at := bucket(limit)
	for i, n := range s.buckets {
		total += n
		if i > at {
			over += n
		}
	}
	return float64(over) <= float64(total)/100
}
