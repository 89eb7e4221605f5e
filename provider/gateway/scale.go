package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// Causes of a change of the number of replicas, as the metric has them.
const (
	byAlert   = "alert"
	byCall    = "call"
	byIdling  = "idle"
	byRequest = "request"
)

// Scale sets the number of replicas for an administrator. A number above the function's own
// com.openfaas.scale.max is refused with backend.ErrInvalid.
func (g *Gateway) Scale(ctx context.Context, ref backend.Ref, replicas uint64) error {
	_, _, err := g.rescale(ctx, ref, byRequest, func(_ types.FunctionStatus, s deployment.Scaling) (uint64, error) {
		if s.Bounded && replicas > s.Max {
			return 0, fmt.Errorf("%w number of replicas %d: label %s is %d", backend.ErrInvalid, replicas, deployment.ScaleMaxLabel, s.Max)
		}
		return replicas, nil
	})
	return err
}

// rescale changes a function's number of replicas to what decide makes of its status and labels. One
// change of a function comes after the other, so that none decides by a number that is about to change.
func (g *Gateway) rescale(ctx context.Context, ref backend.Ref, cause string, decide func(types.FunctionStatus, deployment.Scaling) (uint64, error)) (before, after uint64, err error) {
	if _, err := g.options.Backend.Get(ctx, ref, false); err != nil {
		return 0, 0, err // a name that nobody deployed must leave no trace here
	}
	f := g.function(ref)
	select {
	case f.scaling <- struct{}{}:
		defer func() { <-f.scaling }()
	case <-ctx.Done():
		return 0, 0, fmt.Errorf("function %s: another change of its replicas is under way: %w", ref, ctx.Err())
	}
	status, err := g.options.Backend.Get(ctx, ref, false)
	if err != nil {
		return 0, 0, err
	}
	scaling, err := deployment.ParseScaling(status.Labels, g.options.MaxReplicas)
	if err != nil {
		return status.Replicas, status.Replicas, fmt.Errorf("function %s: %w", ref, err)
	}
	wanted, err := decide(status, scaling)
	if err != nil || wanted == status.Replicas && cause != byRequest {
		return status.Replicas, status.Replicas, err
	}
	if err := g.options.Backend.Scale(ctx, ref, wanted); err != nil {
		return status.Replicas, status.Replicas, err
	}
	if status.Replicas == 0 {
		f.lastUsed.Store(time.Now().UnixNano()) // its time without calls begins now
	}
	if wanted != status.Replicas {
		f.counted(cause)
		slog.Info("function scaled", "function", ref.String(), "from", status.Replicas, "to", wanted, "cause", cause)
	}
	return status.Replicas, wanted, nil
}

func (f *function) counted(cause string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.gone {
		f.gateway.metrics.scalings.WithLabelValues(f.name, cause).Inc()
	}
}
