package async

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// execute calls the function and stores what it answers.
func (q *Queue) execute(ctx context.Context, s *store, msg jetstream.Msg) outcome {
	step("call fetched")
	var call Call
	body, err := decode(msg.Data(), &call)
	if err != nil {
		slog.Error("a stored call is dropped", "error", err)
		return outcome{what: finished}
	}
	call.Body = body
	if done, err := executed(ctx, s, &call); err != nil {
		return outcome{what: interrupted}
	} else if done {
		q.work(s, reporting, call.Ref)
		return outcome{what: finished}
	}
	began := time.Now()
	q.metrics.delay.Observe(began.Sub(call.Accepted).Seconds())
	result := q.executor.Execute(ctx, &call)
	took := time.Since(began)
	if ctx.Err() != nil {
		return outcome{what: interrupted}
	}
	step("executed")
	q.metrics.executed.WithLabelValues(statusClass(result.Status)).Inc()
	failed := retryable(result.Status)
	attempts := attempt(msg)
	if failed && !result.Gone && !result.Final && attempts < q.settings.MaxAttempts {
		return outcome{again, backoff(attempts, q.settings.RetryMaxWait, result.Header)}
	}
	if failed || result.Gone {
		reason := fmt.Sprintf("the function answered %d %s, at attempt %d", result.Status, http.StatusText(result.Status), attempts)
		if result.Gone {
			reason = "the function was deleted"
		}
		letter := deadLetter{
			UID: call.UID, CallID: call.ID, Function: call.Ref.String(), Step: executing, Status: result.Status, Reason: reason,
			Attempts: attempts, Accepted: call.Accepted, Time: time.Now().UTC(), Subject: msg.Subject(),
		}
		if !q.bury(ctx, s, call.Ref, &letter, msg.Data()) {
			return outcome{what: interrupted}
		}
		step("call dead")
	}
	if call.Callback == "" {
		return outcome{what: finished}
	}
	r := report{
		UID: call.UID, ID: call.ID, Ref: call.Ref, Name: call.Name, Callback: call.Callback, Accepted: call.Accepted,
		Seconds: took.Seconds(), Result: result,
	}
	if !q.insist(ctx, "room for results", func() error { return storeResult(ctx, s, &r) }) {
		return outcome{what: interrupted}
	}
	step("result stored")
	q.work(s, reporting, call.Ref)
	return outcome{what: finished}
}

// executed reports whether the call has a result, or had one that was reported: then it is here for the second
// time, since nobody could say that the first was done.
func executed(ctx context.Context, s *store, call *Call) (bool, error) {
	if call.Callback == "" {
		return false, nil
	}
	if done, err := has(ctx, s.done, doneSubject(call.UID)); done || err != nil {
		return done, err
	}
	return has(ctx, s.results, resultSubject(call.Ref, call.UID))
}

// storeResult stores the result unless there is one; one that is too large becomes a sentence that says so.
func storeResult(ctx context.Context, s *store, r *report) error {
	payload, err := encode(r, r.Body)
	if err != nil {
		return err
	}
	err = s.first(ctx, resultSubject(r.Ref, r.UID), payload)
	if errors.Is(err, ErrTooLarge) {
		r.Result = Result{Status: http.StatusBadGateway, Header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}}, Body: []byte("the function's answer is " + err.Error())}
		if payload, err = encode(r, r.Body); err == nil {
			err = s.first(ctx, resultSubject(r.Ref, r.UID), payload)
		}
	}
	return err
}

// retryable: 429 and 5xx may be otherwise next time; any other answer is the function's last word.
func retryable(status int) bool {
	return status == http.StatusTooManyRequests || status >= http.StatusInternalServerError
}

func statusClass(status int) string { return fmt.Sprintf("%dxx", status/100) }
