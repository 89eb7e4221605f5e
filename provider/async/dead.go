package async

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// deadLetter is a call or result that is not tried again, as it is stored. Its body is the message as it was.
type deadLetter struct {
	UID      string    `json:"uid"`
	CallID   string    `json:"call_id"`
	Function string    `json:"function"`
	Step     stage     `json:"step"`
	Status   int       `json:"status"`
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts"`
	Accepted time.Time `json:"accepted"`
	Time     time.Time `json:"time"`
	Subject  string    `json:"subject"`
}

// DeadLetter is a dead letter as it is listed.
type DeadLetter struct {
	ID       uint64    `json:"id"`
	CallID   string    `json:"call_id"`
	Function string    `json:"function"` // NAME.NAMESPACE
	Step     string    `json:"step"`     // execute or report: what did not succeed
	Status   int       `json:"status"`   // of the function or the callback; 0: none
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts"`
	Accepted time.Time `json:"accepted"`
	Time     time.Time `json:"time"`
}

// DeadPage is a part of the list of dead letters, the oldest first.
type DeadPage struct {
	Dead []DeadLetter `json:"dead"`
	// Next is what After is for the part behind this one; 0: there is none.
	Next uint64 `json:"next,omitempty"`
}

const maxReason = 512

// bury stores a dead letter. When the same is buried twice, one letter is kept.
func (q *Queue) bury(ctx context.Context, s *store, ref backend.Ref, letter *deadLetter, message []byte) bool {
	if len(letter.Reason) > maxReason {
		letter.Reason = strings.ToValidUTF8(letter.Reason[:maxReason], "") + "…"
	}
	payload, err := encode(letter, message)
	if err != nil {
		slog.Error("a dead letter is dropped", "call_id", letter.CallID, "error", err)
		return true
	}
	if !q.insist(ctx, "room for dead letters", func() error {
		_, err := s.js.Publish(ctx, deadSubject(ref, letter.UID), payload)
		return err
	}) {
		return false
	}
	q.metrics.dead.WithLabelValues(string(letter.Step)).Inc()
	slog.Warn("an asynchronous call is given up", "function", letter.Function, "call_id", letter.CallID, "step", letter.Step, "reason", letter.Reason)
	return true
}

// openDead is the store for a question about dead letters; nil where there cannot be any.
func (q *Queue) openDead() (*store, error) {
	if !q.stored() {
		return nil, nil
	}
	s, err := q.open()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return s, nil
}

// Dead lists at most limit dead letters with greater ids than after, of one function unless its Name is "".
func (q *Queue) Dead(ctx context.Context, ref backend.Ref, after uint64, limit int) (DeadPage, error) {
	page := DeadPage{Dead: []DeadLetter{}}
	s, err := q.openDead()
	if err != nil || s == nil {
		return page, err
	}
	subject := deadSubject(backend.Ref{Namespace: "*", Name: "*"}, "*")
	if ref.Name != "" {
		subject = deadSubject(ref, "*")
	}
	for len(page.Dead) < limit {
		msg, err := s.dead.GetMsg(ctx, after+1, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return page, nil
		}
		if err != nil {
			return page, fmt.Errorf("%w: list dead letters: %w", ErrUnavailable, err)
		}
		after = msg.Sequence
		var d deadLetter
		if _, err := decode(msg.Data, &d); err != nil {
			slog.Error("a dead letter cannot be read", "id", msg.Sequence, "error", err)
			continue
		}
		page.Dead = append(page.Dead, DeadLetter{
			ID: msg.Sequence, CallID: d.CallID, Function: d.Function, Step: string(d.Step), Status: d.Status, Reason: d.Reason,
			Attempts: d.Attempts, Accepted: d.Accepted, Time: d.Time,
		})
	}
	page.Next = after
	return page, nil
}

// Requeue has a dead letter tried again, as often as a new one, and deletes it. A call is executed again, by the
// version that restamp says; a result is reported again without that.
func (q *Queue) Requeue(ctx context.Context, id uint64, restamp func(*Call)) error {
	s, msg, err := q.letter(ctx, id)
	if err != nil {
		return err
	}
	var d deadLetter
	payload, err := decode(msg.Data, &d)
	if err != nil {
		return err
	}
	parts := strings.Split(d.Subject, ".")
	if len(parts) < 4 {
		return fmt.Errorf("dead letter %d has no function", id)
	}
	ref := backend.Ref{Namespace: parts[2], Name: parts[3]}
	// A call that is executed again has another result: the one before was reported as its failure. The id is
	// made of the letter's, so that requeueing twice, by whatever accident, makes one call.
	if d.Step == executing {
		var call Call
		body, err := decode(payload, &call)
		if err != nil {
			return err
		}
		base, _, _ := strings.Cut(call.UID, "_")
		call.UID = fmt.Sprintf("%s_%d", base, id)
		if call.Version != "" {
			restamp(&call)
		}
		if payload, err = encode(&call, body); err != nil {
			return err
		}
		err = s.publish(ctx, d.Subject, payload, jetstream.WithMsgID(call.UID))
		if err != nil {
			return err
		}
	} else if err := s.first(ctx, d.Subject, payload); err != nil {
		return err
	}
	step("requeued")
	if err := s.dead.DeleteMsg(ctx, id); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("%w: delete dead letter %d, which is queued again: %w", ErrUnavailable, id, err)
	}
	q.work(s, d.Step, ref)
	return nil
}

// Delete deletes a dead letter.
func (q *Queue) Delete(ctx context.Context, id uint64) error {
	s, _, err := q.letter(ctx, id)
	if err != nil {
		return err
	}
	if err := s.dead.DeleteMsg(ctx, id); err != nil {
		return fmt.Errorf("%w: delete dead letter %d: %w", ErrUnavailable, id, err)
	}
	return nil
}

func (q *Queue) letter(ctx context.Context, id uint64) (*store, *jetstream.RawStreamMsg, error) {
	s, err := q.openDead()
	if err != nil {
		return nil, nil, err
	}
	if s == nil || id == 0 {
		return nil, nil, fmt.Errorf("%w: %d", ErrNoDead, id)
	}
	msg, err := s.dead.GetMsg(ctx, id)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil, fmt.Errorf("%w: %d", ErrNoDead, id)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: read dead letter %d: %w", ErrUnavailable, id, err)
	}
	return s, msg, nil
}
