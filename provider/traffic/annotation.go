package traffic

import (
	"fmt"
	"strings"
)

// Annotations through which a stack.yml says how a deployment gets its calls, because gateways pass
// on the standard routes only.
const (
	// SplitAnnotation: "canary=10", or versions and weights such as "1.0_may=90,canary=10".
	SplitAnnotation = "faas-predict.traffic"
	// MirrorAnnotation: "canary", or a version.
	MirrorAnnotation = "faas-predict.mirror"
)

// This names, in an annotation, the version that the deployment brings.
const This = "canary"

// Deploy is what deploying version asks for by its annotations, current being the split before, empty
// for a new function: the split, and the rollout that the split is the first step of, or nil. Without
// annotations every call goes to version.
func Deploy(annotations map[string]string, current Split, version string) (Split, *Rollout, error) {
	text, mirror := annotations[SplitAnnotation], annotations[MirrorAnnotation]
	if steps := annotations[RolloutAnnotation]; steps != "" {
		if text != "" || mirror != "" {
			return Split{}, nil, fmt.Errorf("%w: annotation %s goes without %s and %s: it sets the split by itself", ErrInvalid, RolloutAnnotation, SplitAnnotation, MirrorAnnotation)
		}
		return deployRollout(steps, current, version)
	}
	if mirror == This {
		mirror = version
	}
	out := All(version)
	switch {
	case text != "":
		targets, err := parseTargets(text, version)
		if err != nil {
			return Split{}, nil, fmt.Errorf("annotation %s: %w", SplitAnnotation, err)
		}
		out = Split{Targets: targets}
		if len(targets) == 1 && targets[0].Version == version {
			out = current.Canary(version, targets[0].Weight)
		}
	case mirror == version && len(current.Without(version).Targets) > 0:
		out = current.Canary(version, 0) // a mirror gets copies and no calls of its own
	}
	out.Mirror = mirror
	if len(out.Targets) == 1 && mirror == version {
		out.Mirror = "" // there is nothing to mirror yet
	}
	if err := out.Check(); err != nil {
		return Split{}, nil, fmt.Errorf("annotations %s and %s: %w", SplitAnnotation, MirrorAnnotation, err)
	}
	return out, nil, nil
}

// deployRollout is Deploy for a guarded rollout. A function that has no other version to go back to
// gets all calls at once.
func deployRollout(steps string, current Split, version string) (Split, *Rollout, error) {
	r, err := ParseRollout(steps, version, current.Without(version))
	if err != nil {
		return Split{}, nil, err
	}
	if len(r.Base.Targets) == 0 {
		return All(version), nil, nil
	}
	if err := r.Split().Check(); err != nil {
		return Split{}, nil, fmt.Errorf("annotation %s: %w", RolloutAnnotation, err)
	}
	return r.Split(), r, nil
}

func parseTargets(text, version string) ([]Target, error) {
	var out []Target
	for part := range strings.SplitSeq(text, ",") {
		name, weight, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return nil, fmt.Errorf("%w: %.80q is not VERSION=WEIGHT or %s=WEIGHT", ErrInvalid, part, This)
		}
		w, err := ParseWeight(weight)
		if err != nil {
			return nil, err
		}
		if name == This {
			name = version
		}
		out = append(out, Target{name, w})
	}
	return out, nil
}
