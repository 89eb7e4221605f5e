package deployment

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// OpenFaaS's labels about the number of replicas.
const (
	ScaleMinLabel       = "com.openfaas.scale.min"
	ScaleMaxLabel       = "com.openfaas.scale.max"
	ScaleFactorLabel    = "com.openfaas.scale.factor"
	ScaleTypeLabel      = "com.openfaas.scale.type"
	ScaleTargetLabel    = "com.openfaas.scale.target"
	ScaleZeroLabel      = "com.openfaas.scale.zero"
	ScaleZeroAfterLabel = "com.openfaas.scale.zero-duration"
)

// What holds without a label. OpenFaaS documents the same numbers; its Community Edition caps the largest
// number of replicas at 5, which is a term of its licence and not of the labels.
const (
	defaultMost      = 20
	defaultFactor    = 20
	defaultRPS       = 50
	defaultZeroAfter = 15 * time.Minute
	leastZeroAfter   = time.Second
)

// The kinds of load that OpenFaaS knows by name.
const (
	ScaleByRPS      = "rps"      // calls a second
	ScaleByCapacity = "capacity" // calls in progress
)

// Scaling is what a function's labels say about its replicas.
type Scaling struct {
	Min uint64 // at least 1
	Max uint64 // of scaling by alerts; at least Min
	// Bounded is whether a label says Max, which then holds for whoever scales.
	Bounded bool
	// Factor is the size of a step in percent of Max; 0 turns scaling by alerts off.
	Factor uint64
	// Type is what load is: ScaleByRPS, ScaleByCapacity or the name of a rule of one's own.
	Type string
	// Target is the load that one replica should have.
	Target float64
	// Zero is whether the function goes to zero replicas after ZeroAfter without a call.
	Zero      bool
	ZeroAfter time.Duration
}

// ParseScaling reads the labels, nil for none, of a function that may have most replicas. An error wraps
// backend.ErrInvalid and names the label.
func ParseScaling(labels *map[string]string, most uint64) (Scaling, error) {
	s := Scaling{Min: 1, Max: min(defaultMost, most), Factor: defaultFactor, Type: ScaleByCapacity, Target: 1, ZeroAfter: defaultZeroAfter}
	if labels == nil {
		return s, nil
	}
	read := func(label string, into func(value string) error) error {
		value := (*labels)[label]
		if value == "" {
			return nil
		}
		if err := into(value); err != nil {
			return fmt.Errorf("%w label %s: %.40q is not %w", backend.ErrInvalid, label, value, err)
		}
		return nil
	}
	number := func(out *uint64, most uint64, why string) func(string) error {
		return func(value string) error {
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil || n > most {
				return fmt.Errorf("a number from 0 to %d%s", most, why)
			}
			*out = n
			return nil
		}
	}
	for _, label := range []struct {
		name string
		into func(string) error
	}{
		{ScaleMinLabel, number(&s.Min, most, ", which is max_replicas")},
		{ScaleMaxLabel, number(&s.Max, most, ", which is max_replicas")},
		{ScaleFactorLabel, number(&s.Factor, 100, ", percent of the largest number of replicas")},
		{ScaleTargetLabel, func(value string) (err error) {
			// OpenFaaS's meaning of a target without a type; the type's own label comes after.
			s.Type = ScaleByRPS
			if s.Target, err = strconv.ParseFloat(value, 64); err != nil || !(s.Target > 0) || math.IsInf(s.Target, 0) {
				return fmt.Errorf("a number above 0, the load of one replica")
			}
			return nil
		}},
		{ScaleTypeLabel, func(value string) error {
			if s.Type = value; !backend.ValidName(value) {
				return fmt.Errorf("%s, %s or the name of a rule of yours (a-z, 0-9 and -)", ScaleByRPS, ScaleByCapacity)
			}
			if value == ScaleByRPS && (*labels)[ScaleTargetLabel] == "" {
				s.Target = defaultRPS
			}
			return nil
		}},
		{ScaleZeroLabel, func(value string) error {
			if s.Zero = value == "true"; !s.Zero && value != "false" {
				return fmt.Errorf("true or false")
			}
			return nil
		}},
		{ScaleZeroAfterLabel, func(value string) (err error) {
			if s.ZeroAfter, err = time.ParseDuration(value); err != nil || s.ZeroAfter < leastZeroAfter {
				return fmt.Errorf("a time of at least %s, such as 15m", leastZeroAfter)
			}
			return nil
		}},
	} {
		if err := read(label.name, label.into); err != nil {
			return s, err
		}
	}
	s.Bounded = (*labels)[ScaleMaxLabel] != ""
	s.Min = max(1, s.Min)
	if s.Bounded && s.Max < s.Min {
		return s, fmt.Errorf("%w label %s: %d is less than %s, %d", backend.ErrInvalid, ScaleMaxLabel, s.Max, ScaleMinLabel, s.Min)
	}
	s.Max = max(s.Max, s.Min)
	return s, nil
}

// Step is how many replicas an alert adds: Factor percent of Max, rounded up.
func (s Scaling) Step() uint64 { return (s.Max*s.Factor + 99) / 100 }

// Within is the number nearest to n that scaling by alerts may set.
func (s Scaling) Within(n uint64) uint64 { return min(max(n, s.Min), s.Max) }
