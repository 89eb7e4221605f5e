package async

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// stage is one of the two things that are done for a call.
type stage string

const (
	executing stage = "execute"
	reporting stage = "report"
)

func (s stage) prefix() string {
	if s == reporting {
		return "faas.results."
	}
	return "faas.calls."
}

type laneKey struct {
	step stage
	ref  backend.Ref
}

// lane works on one step of one function's calls. Every function has lanes of its own, so that none waits for
// another: not for its slow answers, and not for its slow callbacks.
type lane struct{ wanted uint64 } // how often work was asked for

// idle is how long a lane waits for a message before it asks whether it is needed.
const idle = 30 * time.Second

// work makes sure that the function's messages are worked on.
func (q *Queue) work(s *store, step stage, ref backend.Ref) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	key := laneKey{step, ref}
	if l := q.lanes[key]; l != nil {
		l.wanted++
		return
	}
	l := &lane{}
	q.lanes[key] = l
	q.tasks.Go(func() { q.drive(s, key, l) })
}

func (q *Queue) drive(s *store, key laneKey, l *lane) {
	slots := make(chan struct{}, q.settings.Concurrency)
	var consumer jetstream.Consumer
	for {
		select { // first a place, then a message: one that was fetched should not wait
		case slots <- struct{}{}:
		case <-q.pulling.Done():
			return
		}
		var err error
		if consumer == nil {
			ctx, cancel := context.WithTimeout(q.pulling, storeTimeout)
			consumer, err = s.consumer(ctx, key)
			cancel()
		}
		var msg jetstream.Msg
		wanted := q.wanted(l)
		if err == nil {
			ctx, cancel := context.WithTimeout(q.pulling, idle)
			msg, err = consumer.Next(jetstream.FetchContext(ctx))
			cancel()
		}
		if err == nil {
			q.tasks.Go(func() {
				defer func() { <-slots }()
				q.handle(s, key, msg)
			})
			continue
		}
		<-slots
		switch {
		case q.pulling.Err() != nil:
			return
		case consumer != nil && (errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, jetstream.ErrNoMessages)):
			if q.leave(consumer, key, l, wanted) {
				return
			}
		default:
			consumer = nil
			slog.Warn("asynchronous calls of a function have to wait", "function", key.ref.String(), "step", key.step, "error", err)
			if !q.pause(time.Second) {
				return
			}
		}
	}
}

func (q *Queue) wanted(l *lane) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return l.wanted
}

// leave ends a lane that has nothing to wait for, not even messages that are to be tried again later.
func (q *Queue) leave(consumer jetstream.Consumer, key laneKey, l *lane, wanted uint64) bool {
	ctx, cancel := context.WithTimeout(q.pulling, storeTimeout)
	defer cancel()
	info, err := consumer.Info(ctx)
	if err != nil || info.NumPending > 0 || info.NumAckPending > 0 {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if l.wanted != wanted {
		return false
	}
	delete(q.lanes, key)
	return true
}

// handle does one step for one message, and says meanwhile that it does.
func (q *Queue) handle(s *store, key laneKey, msg jetstream.Msg) {
	ctx, cancel := context.WithCancel(q.working)
	beating := make(chan struct{})
	go func() {
		defer close(beating)
		beat := time.NewTicker(ackWait / 3)
		defer beat.Stop()
		for {
			select {
			case <-beat.C:
				_ = msg.InProgress()
			case <-ctx.Done():
				return
			}
		}
	}()
	var end outcome
	if key.step == reporting {
		end = q.report(ctx, s, msg)
	} else {
		end = q.execute(ctx, s, msg)
	}
	cancel()
	<-beating // it must not say "in progress" after what follows
	var err error
	switch end.what {
	case finished:
		ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
		err = msg.DoubleAck(ctx)
		cancel()
	case again:
		q.metrics.retries.WithLabelValues(string(key.step)).Inc()
		err = msg.NakWithDelay(end.wait)
	case interrupted:
		if q.working.Err() != nil {
			err = msg.Nak() // somebody else may take it
		} else {
			err = msg.NakWithDelay(time.Second) // the store failed, and is not to be asked in a circle
		}
	}
	if err != nil && q.pulling.Err() == nil {
		slog.Warn("an asynchronous call will be looked at again", "function", key.ref.String(), "step", key.step, "error", err)
	}
	if end.what == finished {
		step(string(key.step) + " acknowledged")
	}
}

// outcome says how a step ended.
type outcome struct {
	what ending
	wait time.Duration
}

type ending int

const (
	interrupted ending = iota // nothing is known; again, soon
	again                     // after a while
	finished                  // what follows is stored
)

// attempt is how often the message was given to somebody, this time included.
func attempt(msg jetstream.Msg) int {
	meta, err := msg.Metadata()
	if err != nil {
		return 1
	}
	return int(min(meta.NumDelivered, 1<<30)) // bounded
}

// insist stores something that must not be lost, however long that takes; it reports false when interrupted.
// The place in the lane stays taken: a function whose results cannot be stored gets no more calls.
func (q *Queue) insist(ctx context.Context, what string, store func() error) bool {
	for logged := false; ; {
		err := store()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if !logged {
			slog.Warn("asynchronous calls have to wait", "for", what, "error", err)
			logged = true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Second):
		}
	}
}
