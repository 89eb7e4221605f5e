package async

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// late is a stream whose first answers to the wish for a consumer do not come in time.
type late struct {
	jetstream.Stream
	left atomic.Int64
}

func (l *late) CreateOrUpdateConsumer(ctx context.Context, c jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	if l.left.Add(-1) >= 0 {
		return nil, context.DeadlineExceeded
	}
	return l.Stream.CreateOrUpdateConsumer(ctx, c)
}

func TestAStoreThatIsLateHoldsCallsUpAndLosesNone(t *testing.T) {
	var executed atomic.Int64
	q := open(t, testSettings(t.TempDir()), func(_ context.Context, call *Call) Result { executed.Add(1); return echo(t.Context(), call) })
	s, err := q.open()
	if err != nil {
		t.Fatal(err)
	}
	slow := &late{Stream: s.calls}
	slow.left.Store(2)
	s.calls = slow
	accept(t, q, testCall("/", "body", ""))
	eventually(t, "the call is executed", func() bool { return executed.Load() == 1 })
	if slow.left.Load() >= 0 {
		t.Error("the store was never late")
	}
}

// forgetful is a stream that cannot say what it has.
type forgetful struct {
	jetstream.Stream
	asked atomic.Int64
}

func (f *forgetful) GetLastMsgForSubject(context.Context, string) (*jetstream.RawStreamMsg, error) {
	f.asked.Add(1)
	return nil, jetstream.ErrStreamNotFound
}

func TestAStoreThatFailsIsNotAskedInACircle(t *testing.T) {
	q := open(t, testSettings(t.TempDir()), echo)
	s, err := q.open()
	if err != nil {
		t.Fatal(err)
	}
	broken := &forgetful{Stream: s.done}
	s.done = broken
	accept(t, q, testCall("/", "body", "http://127.0.0.1:1/"))
	eventually(t, "the store is asked again", func() bool { return broken.asked.Load() > 1 })
	time.Sleep(500 * time.Millisecond)
	if n := broken.asked.Load(); n > 3 {
		t.Errorf("asked %d times within two seconds", n)
	}
}

func TestDeadLettersAreListedBeforeCallsAreWorkedOn(t *testing.T) {
	s := testSettings(t.TempDir())
	s.MaxAttempts = 1
	q := New(s, prometheus.NewRegistry())
	q.Start(executor(func(context.Context, *Call) Result { return Result{Status: 503} }))
	accept(t, q, testCall("/", "body", ""))
	eventually(t, "the call is dead", func() bool { return len(dead(t, q)) == 1 })
	shut(t, q)
	again := New(s, prometheus.NewRegistry()) // as while a start goes on
	defer shut(t, again)
	if n := len(dead(t, again)); n != 1 {
		t.Errorf("%d dead letters are listed, want 1", n)
	}
}

func TestAFunctionWithoutCallsLeavesNoConsumerForEver(t *testing.T) {
	q := open(t, testSettings(t.TempDir()), echo)
	accept(t, q, testCall("/", "body", ""))
	s, err := q.open()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is a consumer", func() bool {
		info, some := <-s.calls.ListConsumers(t.Context()).Info()
		if some && info.Config.InactiveThreshold != consumerAge {
			t.Errorf("%s is kept for %s", info.Name, info.Config.InactiveThreshold)
		}
		return some
	})
}
