package pool

import (
	"errors"
	"fmt"
	"time"
)

// Why a call got no answer. Each is the caller's to map to a status.
var (
	// ErrFull: the queue has no room; nothing was begun, and the call may be tried again.
	ErrFull = errors.New("the queue is full")
	// ErrDraining: the pool finishes what it has and takes nothing new.
	ErrDraining = errors.New("the function is shutting down")
	// ErrTimeout: the call's deadline passed, in the queue or in predict.
	ErrTimeout = errors.New("the deadline passed")
)

// NotReadyError says that there is no model to ask yet, or no more. Reason is for people.
type NotReadyError struct{ Reason string }

func (e *NotReadyError) Error() string { return e.Reason }

// GrowError says that workers were wanted and did not come up. Kept is how many there are to be instead.
type GrowError struct {
	Workers, Kept int
	Detail        string // how the last one ended
}

func (e *GrowError) Error() string {
	return fmt.Sprintf("no %d workers can be had, and %d are kept: %d in a row did not come up, the last: %s", e.Workers, e.Kept, growTries, e.Detail)
}

// CrashError says that the worker died while it answered this call.
type CrashError struct{ Reason string }

func (e *CrashError) Error() string {
	return "the worker died on this request: " + e.Reason
}

// RaisedError says that predict raised.
type RaisedError struct{ Type, Message, Traceback string }

func (e *RaisedError) Error() string { return e.Type + ": " + e.Message }

// NotStringError says that predict returned something that is not a string.
type NotStringError struct{ Returned string }

func (e *NotStringError) Error() string {
	return "predict must return a string; it returned " + e.Returned
}

// Call is one request under way.
type Call struct {
	id       uint64 // on the wire; 0 while queued
	body     []byte
	tag      string
	arrived  time.Time
	deadline time.Time // zero: none
	done     chan struct{}
	bulk     bool // one of many whose answers are wanted together

	// Guarded by the pool's lock until done is signalled.
	prev, next *Call // neighbours in the queue
	queued     bool
	grouped    bool // sent with others to one predict_batch
	alone      bool // must not be sent with others again: such a batch died
	answered   bool

	answer  []byte
	err     error
	predict time.Duration
	total   time.Duration
}

// Answer is what predict gave.
type Answer struct {
	Body []byte
	// Queue and Predict are how long the call waited and how long predict took.
	Queue, Predict time.Duration
}

func (c *Call) finish(answer []byte, err error, predict time.Duration) {
	c.answered = true
	c.answer, c.err, c.predict = answer, err, predict
	c.total = time.Since(c.arrived)
	c.done <- struct{}{}
}

func (c *Call) result() (Answer, error) {
	if c.err != nil {
		return Answer{Queue: max(0, c.total-c.predict), Predict: c.predict}, c.err
	}
	return Answer{Body: c.answer, Queue: max(0, c.total-c.predict), Predict: c.predict}, nil
}

func (c *Call) expired(now time.Time) bool {
	return !c.deadline.IsZero() && now.After(c.deadline)
}

// callQueue is a FIFO from whose middle a call can leave.
type callQueue struct {
	head, tail *Call
	length     int
	bulk       int // of them
}

// bulkDepth is how many bulk calls may wait. They do not take the room of others: who sends many at once is
// slowed down and turns nobody away.
const bulkDepth = 1024

// roomFor reports whether c may wait where depth others may that are not bulk.
func (q *callQueue) roomFor(c *Call, depth int) bool {
	if c.bulk {
		return q.bulk < bulkDepth
	}
	return q.length-q.bulk < depth
}

// count follows length by one call more or less.
func (q *callQueue) count(c *Call, by int) {
	q.length += by
	if c.bulk {
		q.bulk += by
	}
}

func (q *callQueue) pushBack(c *Call) {
	c.prev, c.next, c.queued = q.tail, nil, true
	if q.tail != nil {
		q.tail.next = c
	} else {
		q.head = c
	}
	q.tail = c
	q.count(c, 1)
}

func (q *callQueue) pushFront(c *Call) {
	c.prev, c.next, c.queued = nil, q.head, true
	if q.head != nil {
		q.head.prev = c
	} else {
		q.tail = c
	}
	q.head = c
	q.count(c, 1)
}

func (q *callQueue) remove(c *Call) {
	if !c.queued {
		panic(fmt.Sprintf("pool: call %d is not queued", c.id))
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		q.head = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		q.tail = c.prev
	}
	c.prev, c.next, c.queued = nil, nil, false
	q.count(c, -1)
}
