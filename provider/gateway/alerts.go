package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"

	"github.com/openfaas/faas-provider/types"
	"golang.org/x/sync/errgroup"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// Alert is one alert as Alertmanager sends it.
type Alert struct {
	Status      string            `json:"status"` // firing or resolved
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// What alerts say beside their status.
const (
	functionLabel  = "function_name" // NAME or NAME.NAMESPACE
	namespaceLabel = "namespace"     // counts when functionLabel has none
	// replicasNote is how many replicas there should be: an annotation, or a label. Without it an alert
	// that fires adds a step.
	replicasNote = "replicas"

	firing   = "firing"
	resolved = "resolved"
)

// Outcome is what became of the alerts of one function.
type Outcome struct {
	Function      string // as the alert names it where it is no function's name
	Before, After uint64
	Err           error
}

// Again is whether the same alerts may do better later.
func (o Outcome) Again() bool {
	return o.Err != nil && !errors.Is(o.Err, backend.ErrInvalid) && !errors.Is(o.Err, backend.ErrNotFound)
}

// functionsAtOnce bounds how many functions are scaled together: each may start processes.
const functionsAtOnce = 8

// Alerts scales the functions that the alerts are about. One that fires adds OpenFaaS's step, which is
// factor percent of the largest number, or sets the number of replicas that it names, within the function's
// bounds. One that is resolved sets the least number. Of several about one function those that are resolved
// count only when none fires. What is wrong with one leaves the others alone.
//
// It returns when the replicas are there.
func (g *Gateway) Alerts(ctx context.Context, alerts []Alert) []Outcome {
	var outcomes []*Outcome
	var refs []backend.Ref
	byRef := map[backend.Ref][]Alert{}
	for _, a := range alerts {
		ref, err := a.ref()
		if err != nil {
			outcomes = append(outcomes, &Outcome{Function: a.Labels[functionLabel], Err: err})
			continue
		}
		if byRef[ref] == nil {
			refs = append(refs, ref)
		}
		byRef[ref] = append(byRef[ref], a)
	}
	var all errgroup.Group
	all.SetLimit(functionsAtOnce)
	for _, ref := range refs {
		o := &Outcome{Function: ref.String()}
		outcomes = append(outcomes, o)
		all.Go(func() error {
			o.Before, o.After, o.Err = g.rescale(ctx, ref, byAlert, func(f types.FunctionStatus, s deployment.Scaling) (uint64, error) {
				return decide(byRef[ref], f.Replicas, s)
			})
			return nil
		})
	}
	_ = all.Wait()
	out := make([]Outcome, 0, len(outcomes))
	for _, o := range outcomes {
		if o.Err != nil {
			slog.Warn("an alert did not scale its function", "function", fmt.Sprintf("%.160q", o.Function), "error", o.Err)
		}
		out = append(out, *o)
	}
	return out
}

// ref is the function that the alert is about. A namespace in its name counts more than the label, which
// Prometheus may have set to where the metrics came from.
func (a Alert) ref() (backend.Ref, error) {
	name := a.Labels[functionLabel]
	if name == "" {
		return backend.Ref{}, fmt.Errorf("%w alert %.80q: it has no label %s", backend.ErrInvalid, a.Labels["alertname"], functionLabel)
	}
	namespace := a.Labels[namespaceLabel]
	if strings.Contains(name, ".") {
		namespace = ""
	}
	return backend.ParseRef(name, namespace)
}

// decide is the number of replicas after the alerts of one function, which has now.
func decide(alerts []Alert, now uint64, s deployment.Scaling) (uint64, error) {
	if s.Factor == 0 {
		return now, nil
	}
	next, fires, over := now, false, false
	var wrong error
	for _, a := range alerts {
		switch a.Status {
		case firing:
			wanted, named, err := a.wanted()
			if err != nil {
				wrong = errors.Join(wrong, err)
				continue
			}
			if !named {
				wanted = next + s.Step()
			} else if fires {
				wanted = max(wanted, next) // of two that name a number the larger
			}
			next, fires = s.Within(wanted), true
		case resolved:
			over = true
		default:
			wrong = errors.Join(wrong, fmt.Errorf("%w alert: status %.40q is neither %s nor %s", backend.ErrInvalid, a.Status, firing, resolved))
		}
	}
	switch {
	case fires:
		return next, nil
	case over && now > 0: // it went to zero for want of calls, and the end of an alert is none
		return s.Min, nil
	}
	return now, wrong
}

// wanted is the number of replicas that an alert names, if it does.
func (a Alert) wanted() (replicas uint64, named bool, err error) {
	text, named := a.Annotations[replicasNote]
	if !named {
		text, named = a.Labels[replicasNote]
	}
	if !named {
		return 0, false, nil
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil || math.IsNaN(n) || n < 0 {
		return 0, true, fmt.Errorf("%w alert: %s %.40q is not a number of replicas", backend.ErrInvalid, replicasNote, text)
	}
	return uint64(math.Ceil(min(n, math.MaxUint32))), true, nil
}
