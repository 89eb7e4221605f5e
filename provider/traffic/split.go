// Package traffic decides which version of a function answers a call, and counts how each does.
//
// It knows versions by their names only: no process, no HTTP and no storage may enter here.
package traffic

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ErrInvalid is wrapped by every error about a split that breaks a rule.
var ErrInvalid = errors.New("invalid split")

// Headers by which a caller chooses a version, in the form that net/http stores them.
const (
	PinHeader     = "X-Model-Version"
	SessionHeader = "X-Session-Id"
)

// Whole is the weight of all calls.
const Whole Weight = 1000

// MaxTargets bounds the versions of one split: each is a loaded model.
const MaxTargets = 16

// Weight is a share of the calls in tenths of a percent, 0 to Whole. In JSON it is the percentage, a
// number with at most one decimal.
type Weight uint16

// ParseWeight reads a percentage such as "10" or "0.1".
func ParseWeight(s string) (Weight, error) {
	whole, tenth, pointed := strings.Cut(s, ".")
	n, err := strconv.ParseUint(whole, 10, 8)
	d := uint64(0)
	if err == nil && pointed {
		d, err = strconv.ParseUint(tenth, 10, 8)
	}
	if w := Weight(n*10 + d); err == nil && len(tenth) <= 1 && w <= Whole {
		return w, nil
	}
	return 0, fmt.Errorf("%w: weight %.20q is not a percentage from 0 to 100 with at most one decimal", ErrInvalid, s)
}

// String is the percentage.
func (w Weight) String() string {
	if w%10 == 0 {
		return strconv.Itoa(int(w / 10))
	}
	return fmt.Sprintf("%d.%d", w/10, w%10)
}

// MarshalJSON implements json.Marshaler.
func (w Weight) MarshalJSON() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalJSON implements json.Unmarshaler.
func (w *Weight) UnmarshalJSON(raw []byte) error {
	var number json.Number
	if err := json.Unmarshal(raw, &number); err != nil {
		return fmt.Errorf("%w: weight %.20s is not a number", ErrInvalid, raw)
	}
	parsed, err := ParseWeight(number.String())
	*w = parsed
	return err
}

// Target is a version and its share. A version with weight 0 is loaded and gets only calls that name
// it.
type Target struct {
	Version string `json:"version"`
	Weight  Weight `json:"weight"`
}

// Split says which versions get which share of a function's calls. Mirror, if any, is a version that
// gets a copy of each call and whose answers nobody sees.
type Split struct {
	Targets []Target `json:"split"`
	Mirror  string   `json:"mirror,omitempty"`
}

// All is the split that gives every call to one version.
func All(version string) Split { return Split{Targets: []Target{{version, Whole}}} }

var versionPattern = regexp.MustCompile(`^[A-Za-z0-9.-]{1,64}_[A-Za-z0-9.-]{1,64}$`)

// Check holds the split to the rules: 1 to MaxTargets different versions whose weights add up to 100.
func (s Split) Check() error {
	if len(s.Targets) == 0 || len(s.Targets) > MaxTargets {
		return fmt.Errorf("%w: it names %d versions; 1 to %d are allowed", ErrInvalid, len(s.Targets), MaxTargets)
	}
	sum := 0
	seen := map[string]bool{}
	for _, t := range s.Targets {
		switch {
		case !versionPattern.MatchString(t.Version):
			return fmt.Errorf("%w: %.80q is not a version, which reads CODE_COEFFICIENTS", ErrInvalid, t.Version)
		case seen[t.Version]:
			return fmt.Errorf("%w: version %s is named twice", ErrInvalid, t.Version)
		case t.Weight > Whole:
			return fmt.Errorf("%w: the weight of %s is over 100", ErrInvalid, t.Version)
		}
		seen[t.Version] = true
		sum += int(t.Weight)
	}
	if sum != int(Whole) {
		return fmt.Errorf("%w: the weights add up to %s, not 100", ErrInvalid, Weight(min(sum, 65535)))
	}
	if s.Mirror != "" && !versionPattern.MatchString(s.Mirror) {
		return fmt.Errorf("%w: mirror %.80q is not a version, which reads CODE_COEFFICIENTS", ErrInvalid, s.Mirror)
	}
	if s.Weight(s.Mirror) > 0 {
		return fmt.Errorf("%w: version %s is the mirror and has calls of its own", ErrInvalid, s.Mirror)
	}
	return nil
}

// Weight is the version's share.
func (s Split) Weight(version string) Weight {
	for _, t := range s.Targets {
		if t.Version == version {
			return t.Weight
		}
	}
	return 0
}

// Versions lists the versions that the split needs loaded, its mirror included.
func (s Split) Versions() []string {
	out := make([]string, 0, len(s.Targets)+1)
	for _, t := range s.Targets {
		out = append(out, t.Version)
	}
	if s.Mirror != "" && !slices.Contains(out, s.Mirror) {
		out = append(out, s.Mirror)
	}
	return out
}

// Has reports whether the split needs the version loaded.
func (s Split) Has(version string) bool { return slices.Contains(s.Versions(), version) }

// Equal reports whether both send every call to the same place.
func (s Split) Equal(other Split) bool {
	if s.Mirror != other.Mirror || len(s.Targets) != len(other.Targets) {
		return false
	}
	for i, t := range s.Targets {
		if other.Targets[i] != t {
			return false
		}
	}
	return true
}

// String is the split as an annotation writes it.
func (s Split) String() string {
	parts := make([]string, 0, len(s.Targets)+1)
	for _, t := range s.Targets {
		parts = append(parts, t.Version+"="+t.Weight.String())
	}
	return strings.Join(parts, ",")
}

// Pick returns the version for one call: always the same for calls of one session, at random by
// weight for calls without one.
func (s Split) Pick(session string) string {
	if len(s.Targets) == 1 {
		return s.Targets[0].Version
	}
	var at Weight
	if session == "" {
		at = Weight(rand.Uint32N(uint32(Whole)))
	} else {
		// A hash whose every bit counts, and the same after a restart.
		sum := sha256.Sum256([]byte(session))
		at = Weight(binary.LittleEndian.Uint64(sum[:]) % uint64(Whole))
	}
	for _, t := range s.Targets {
		if at < t.Weight {
			return t.Version
		}
		at -= t.Weight
	}
	return "" // no split that passed Check comes here
}

// Canary gives the version a share and lets the others of the split have the rest in the proportion
// they had; with all calls, the version stands alone. The mirror stays unless it is that version.
func (s Split) Canary(version string, share Weight) Split {
	out := s.others(version)
	if len(out.Targets) == 0 || share == Whole {
		return Split{Targets: All(version).Targets, Mirror: out.Mirror}
	}
	out.scale(Whole - share)
	out.Targets = append(out.Targets, Target{version, share})
	return out
}

// Without gives the version's share to the others that have calls, in their proportion. It has no
// targets when there are none.
func (s Split) Without(version string) Split {
	out := s.others(version)
	out.scale(Whole)
	return out
}

// others is the split less a version and those without calls; its weights do not add up to Whole.
func (s Split) others(version string) Split {
	out := Split{Mirror: s.Mirror}
	if out.Mirror == version {
		out.Mirror = ""
	}
	for _, t := range s.Targets {
		if t.Version != version && t.Weight > 0 {
			out.Targets = append(out.Targets, t)
		}
	}
	return out
}

// scale makes the weights add up to total. What rounding leaves goes to the last.
func (s *Split) scale(total Weight) {
	before := 0
	for _, t := range s.Targets {
		before += int(t.Weight)
	}
	rest := int(total)
	for i := range s.Targets {
		part := rest
		if i < len(s.Targets)-1 {
			part = int(total) * int(s.Targets[i].Weight) / before
		}
		rest -= part
		s.Targets[i].Weight = Weight(part)
	}
}
