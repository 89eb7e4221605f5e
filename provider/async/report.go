package async

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// report posts a result to the callback and stores that it did.
func (q *Queue) report(ctx context.Context, s *store, msg jetstream.Msg) outcome {
	step("result fetched")
	var r report
	body, err := decode(msg.Data(), &r)
	if err != nil {
		slog.Error("a stored result is dropped", "error", err)
		return outcome{what: finished}
	}
	r.Body = body
	if done, err := has(ctx, s.done, doneSubject(r.UID)); err != nil {
		return outcome{what: interrupted}
	} else if done {
		return outcome{what: finished}
	}
	answer := q.callback.post(ctx, &r)
	if ctx.Err() != nil && !answer.delivered() {
		return outcome{what: interrupted}
	}
	if answer.delivered() {
		// The one window: the call is reported again by a process that ends here, or by another one when NATS was
		// away until the message is given to somebody else. The callback can tell by X-Call-Id.
		step("reported")
		q.metrics.reported.Inc()
		mark := func(ctx context.Context) bool {
			return q.insist(ctx, "the marker of a report", func() error { return s.publish(ctx, doneSubject(r.UID), nil) })
		}
		if !mark(ctx) {
			// The queue closes. What was reported is worth some more seconds.
			ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
			defer cancel()
			if !mark(ending) {
				return outcome{what: interrupted}
			}
		}
		step("marked")
		return outcome{what: finished}
	}
	attempts := attempt(msg)
	if !answer.final && attempts < q.settings.MaxAttempts {
		return outcome{again, backoff(attempts, q.settings.RetryMaxWait, answer.header)}
	}
	letter := deadLetter{
		UID: r.UID, CallID: r.ID, Function: r.Ref.String(), Step: reporting, Status: answer.status,
		Reason: fmt.Sprintf("%s, at attempt %d", answer.reason, attempts), Attempts: attempts, Accepted: r.Accepted,
		Time: time.Now().UTC(), Subject: msg.Subject(),
	}
	if !q.bury(ctx, s, r.Ref, &letter, msg.Data()) {
		return outcome{what: interrupted}
	}
	step("result dead")
	return outcome{what: finished}
}
