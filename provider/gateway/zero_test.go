package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// toZero are the labels of a function that goes to zero after a second, the least there is.
var toZero = []string{deployment.ScaleZeroLabel, "true", deployment.ScaleZeroAfterLabel, "1s"}

// rested makes a function's last call long ago.
func rested(g *Gateway, ref backend.Ref) {
	g.function(ref).lastUsed.Store(time.Now().Add(-time.Hour).UnixNano())
}

func TestAFunctionWithoutCallsGoesToZeroIfItMay(t *testing.T) {
	g, s, _ := open(t)
	busy, kept, new := backend.Ref{Namespace: "shop", Name: "busy"}, backend.Ref{Namespace: "shop", Name: "kept"}, backend.Ref{Namespace: "shop", Name: "new"}
	s.add(iris, 3, toZero...)
	s.add(busy, 1, toZero...)
	s.add(kept, 1)
	s.add(new, 1, toZero...)
	s.functions[new].CreatedAt = time.Now()
	c := g.Begin(busy, time.Now())
	for _, ref := range []backend.Ref{iris, busy, kept, new} {
		rested(g, ref)
	}
	g.idle(t.Context())
	if diff := cmp.Diff([]string{"iris.openfaas-fn=0"}, s.scalings()); diff != "" {
		t.Errorf("only iris is idle:\n%s", diff)
	}
	c.End(200)
	g.idle(t.Context())
	if s.replicas(busy) != 1 {
		t.Error("the time of a call that ends late is over at once")
	}
	rested(g, busy)
	g.idle(t.Context())
	if s.replicas(busy) != 0 {
		t.Error("busy stays after its last call")
	}
}

func TestTheTimeWithoutCallsBeginsWithTheProviderAndAfterZero(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g, s, _ := open(t)
	s.add(iris, 2, toZero...)
	began := time.Now()
	g.Start(ctx)
	eventually(t, "zero replicas", func() bool { return s.replicas(iris) == 0 })
	if took := time.Since(began); took < time.Second {
		t.Errorf("zero after %s of 1 s", took)
	}
	if err := g.Scale(t.Context(), iris, 1); err != nil { // by an administrator
		t.Fatal(err)
	}
	again := time.Now()
	eventually(t, "zero replicas again", func() bool { return s.replicas(iris) == 0 })
	if took := time.Since(again); took < 900*time.Millisecond {
		t.Errorf("zero after %s of 1 s", took)
	}
}

func TestManyCallsOfAFunctionAtZeroShareOneStartAndAllAreAnswered(t *testing.T) {
	g, s, metrics := open(t)
	s.start = make(chan struct{})
	s.add(iris, 0, append([]string{deployment.ScaleMinLabel, "2"}, toZero...)...)
	const calls = 100
	var all sync.WaitGroup
	var answered atomic.Int64
	for range calls {
		all.Go(func() {
			if err := call(t.Context(), g, s, iris, func() { answered.Add(1) }); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all are held", func() bool { return g.function(iris).held.Load() == calls })
	if text := gathered(t, metrics); !strings.Contains(text, `faas_predict_calls_queued{function_name="iris.openfaas-fn"} 100`) {
		t.Error("held calls are not counted as queued")
	}
	if err := call(t.Context(), g, s, iris, func() {}); !errors.Is(err, ErrHeldTooMany) {
		t.Errorf("one more than may wait: %v", err)
	}
	close(s.start)
	all.Wait()
	if answered.Load() != calls {
		t.Errorf("%d of %d calls were answered", answered.Load(), calls)
	}
	if diff := cmp.Diff([]string{"iris.openfaas-fn=2"}, s.scalings()); diff != "" {
		t.Errorf("starts:\n%s", diff)
	}
	text := gathered(t, metrics)
	for _, want := range []string{
		`faas_predict_scalings_total{cause="call",function_name="iris.openfaas-fn"} 1`, `faas_predict_scale_from_zero_seconds_count 1`,
		`faas_predict_calls_queued{function_name="iris.openfaas-fn"} 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

func TestAStartThatFailsGivesCallersTheReasonAndIsNotTriedByEach(t *testing.T) {
	g, s, _ := open(t)
	s.fail = fmt.Errorf("%w: init failed: Traceback (most recent call last):\n  File \"main.py\", line 3, in init\nRuntimeError: no weights", backend.ErrFailed)
	s.add(iris, 0, toZero...)
	for range 50 {
		err := call(t.Context(), g, s, iris, func() { t.Error("called") })
		if !errors.Is(err, ErrNotStarted) || !strings.Contains(err.Error(), "init failed: RuntimeError: no weights") || strings.Contains(err.Error(), "line 3") {
			t.Fatal(err)
		}
	}
	if n := len(s.scalings()); n != 1 {
		t.Errorf("started %d times", n)
	}
	s.mu.Lock()
	s.fail = nil
	s.mu.Unlock()
	f := g.function(iris)
	f.mu.Lock()
	f.wake.again = time.Now() // as if its time had come
	f.mu.Unlock()
	if err := call(t.Context(), g, s, iris, func() {}); err != nil {
		t.Errorf("once it starts again: %v", err)
	}
}

func TestAHeldCallEndsWithItsCallerAndWithItsTime(t *testing.T) {
	g, s, _ := open(t, func(o *Options) { o.HoldTimeout = 50 * time.Millisecond })
	s.start = make(chan struct{})
	defer close(s.start)
	s.add(iris, 0, toZero...)
	if err := call(t.Context(), g, s, iris, func() {}); !errors.Is(err, ErrNotStarted) {
		t.Errorf("after its time: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := call(ctx, g, s, iris, func() {}); !errors.Is(err, ErrLeft) {
		t.Errorf("without its caller: %v", err)
	}
	if f := g.function(iris); f.held.Load() != 0 || f.inFlight.Load() != 0 {
		t.Errorf("%d held, %d in flight", f.held.Load(), f.inFlight.Load())
	}
}

func TestACallWaitsForItsFunctionToGoToZeroLikeOneThatWaitsForItToComeBack(t *testing.T) {
	g, s, _ := open(t, func(o *Options) { o.HoldTimeout, o.MaxHeld = 50*time.Millisecond, 1 })
	s.add(iris, 1, toZero...)
	stuck := make(chan struct{}) // an engine that does not answer
	f := g.function(iris)
	f.closing.Store(&stuck)
	if err := call(t.Context(), g, s, iris, func() {}); !errors.Is(err, ErrNotStarted) {
		t.Errorf("after its time: %v", err)
	}
	f.held.Add(1) // another one
	if err := call(t.Context(), g, s, iris, func() {}); !errors.Is(err, ErrHeldTooMany) {
		t.Errorf("without room: %v", err)
	}
	f.held.Add(-1)
	close(stuck)
	if err := call(t.Context(), g, s, iris, func() {}); err != nil || f.held.Load() != 0 {
		t.Errorf("once it is over: %v, %d held", err, f.held.Load())
	}
}

func TestAFunctionThatIsBroughtBackFromZeroAtOnceStays(t *testing.T) {
	g, s, _ := open(t)
	s.add(iris, 1, toZero...)
	rested(g, iris)
	g.idle(t.Context())
	if s.replicas(iris) != 0 {
		t.Fatal("it did not go")
	}
	if err := g.Scale(t.Context(), iris, 1); err != nil {
		t.Fatal(err)
	}
	if g.idle(t.Context()); s.replicas(iris) != 1 {
		t.Error("it went again before its time without calls had begun")
	}
}

func TestCloseEndsWhatStartBegan(t *testing.T) {
	g, _, _ := open(t)
	g.Start(context.Background())
	ended := make(chan struct{})
	go func() { g.Close(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for a context that nobody ends")
	}
}

func TestAFunctionThatSomebodyTurnedOffStaysOff(t *testing.T) {
	g, s, _ := open(t)
	s.add(iris, 0)
	if err := call(t.Context(), g, s, iris, func() {}); !errors.Is(err, backend.ErrScaledOff) {
		t.Error(err)
	}
	never, s, _ := open(t, func(o *Options) { o.HoldTimeout = 0 })
	s.add(iris, 0, toZero...)
	if err := call(t.Context(), never, s, iris, func() {}); !errors.Is(err, backend.ErrScaledOff) {
		t.Error(err)
	}
	if len(s.scalings()) > 0 {
		t.Error(s.scalings())
	}
}

// Calls come while the function is scaled to zero again and again: none may fail, and it may not be
// scaled to zero under a call.
func TestNoCallIsLostWhileFunctionsGoToZero(t *testing.T) {
	g, s, _ := open(t)
	s.add(iris, 1, toZero...)
	ctx, cancel := context.WithCancel(t.Context())
	var idling, calls sync.WaitGroup
	var zeroes int
	idling.Go(func() {
		for ctx.Err() == nil {
			rested(g, iris)
			g.idle(ctx)
			if s.replicas(iris) == 0 {
				zeroes++
			}
		}
	})
	const workers, each = 4, 300
	for range workers {
		calls.Go(func() {
			for range each {
				err := call(t.Context(), g, s, iris, func() {
					time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
					if s.replicas(iris) == 0 {
						t.Error("scaled to zero under a call")
					}
				})
				if err != nil {
					t.Errorf("lost: %v", err)
				}
				time.Sleep(time.Duration(rand.IntN(400)) * time.Microsecond)
			}
		})
	}
	calls.Wait()
	cancel()
	idling.Wait()
	if zeroes < 10 {
		t.Errorf("only %d times at zero: the test shows nothing", zeroes)
	}
	t.Logf("%d calls, %d times at zero, none lost", workers*each, zeroes)
}
