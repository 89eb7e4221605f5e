package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/faas-predict/faas-predict/provider/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stage is a backend of which only functions are real: their labels, their number of replicas, and that a
// call of one at zero gives backend.ErrScaledOff, while one that is replaced answers what it has accepted.
type stage struct {
	backend.Backend // what is not asked for here

	mu        sync.Mutex
	functions map[backend.Ref]*types.FunctionStatus
	scaled    []string // every Scale, as FUNCTION=N
	fail      error    // of Scale to more than zero
	start     chan struct{}
}

func (s *stage) ListNamespaces(context.Context) ([]types.FunctionNamespace, error) {
	return []types.FunctionNamespace{{Name: backend.DefaultNamespace}, {Name: "shop"}}, nil
}

func (s *stage) List(_ context.Context, namespace string) ([]types.FunctionStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []types.FunctionStatus
	for ref, f := range s.functions {
		if ref.Namespace == namespace {
			out = append(out, *f)
		}
	}
	return out, nil
}

func (s *stage) Get(_ context.Context, ref backend.Ref, _ bool) (types.FunctionStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.functions[ref]; f != nil {
		return *f, nil
	}
	return types.FunctionStatus{}, fmt.Errorf("function %s %w", ref, backend.ErrNotFound)
}

func (s *stage) Scale(_ context.Context, ref backend.Ref, replicas uint64) error {
	if replicas > 0 && s.start != nil {
		<-s.start
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scaled = append(s.scaled, fmt.Sprintf("%s=%d", ref, replicas))
	if s.fail != nil && replicas > 0 {
		return s.fail
	}
	s.functions[ref].Replicas = replicas
	return nil
}

// forward is a call as the backend takes it.
func (s *stage) forward(ref backend.Ref) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.functions[ref].Replicas == 0 {
		return fmt.Errorf("function %s is %w", ref, backend.ErrScaledOff)
	}
	return nil
}

// remove deletes a function.
func (s *stage) remove(ref backend.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.functions, ref)
}

func (s *stage) replicas(ref backend.Ref) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.functions[ref].Replicas
}

func (s *stage) scalings() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.scaled...)
}

var iris = backend.Ref{Namespace: backend.DefaultNamespace, Name: "iris"}

// add deploys a function with labels as pairs of name and value.
func (s *stage) add(ref backend.Ref, replicas uint64, labels ...string) {
	all := map[string]string{}
	for i := 0; i < len(labels); i += 2 {
		all[labels[i]] = labels[i+1]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.functions[ref] = &types.FunctionStatus{Name: ref.Name, Namespace: ref.Namespace, Replicas: replicas, AvailableReplicas: replicas, Labels: &all}
}

func open(t testing.TB, change ...func(*Options)) (*Gateway, *stage, *prometheus.Registry) {
	t.Helper()
	s := &stage{functions: map[backend.Ref]*types.FunctionStatus{}}
	metrics := prometheus.NewPedanticRegistry()
	o := Options{Backend: s, MaxReplicas: 256, HoldTimeout: 10 * time.Second, MaxHeld: 100, IdleInterval: time.Millisecond, Metrics: metrics}
	for _, f := range change {
		f(&o)
	}
	g := New(o)
	t.Cleanup(g.Close)
	return g, s, metrics
}

// call is what the API does with a call.
func call(ctx context.Context, g *Gateway, s *stage, ref backend.Ref, while func()) error {
	c := g.Begin(ref, time.Now())
	status := 200
	defer func() { c.End(status) }()
	err := c.Enter(ctx)
	for err == nil {
		if err = s.forward(ref); err == nil || !errors.Is(err, backend.ErrScaledOff) {
			break
		}
		err = c.Wake(ctx, err)
	}
	if err != nil {
		status = 503
		return err
	}
	while()
	return nil
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
