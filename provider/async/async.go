// Package async keeps calls that nobody waits for: it stores what was accepted, has it executed, and
// reports the result to the caller's callback. Calls are kept by NATS JetStream, in this process or outside.
//
// A call goes through two steps, each of which begins and ends with something stored:
//
//	accept   the call is in the stream of calls; only then is it answered with 202
//	execute  the function has answered, and its answer is in the stream of results; the call is removed
//	report   the callback has answered 2xx, and a marker says so; the result is removed
//
// A step that is cut short anywhere is done again. A result is stored under the call's own subject, at most
// one at a time, and a call that has a result or a marker is not executed again: so a call is reported once,
// unless between the callback's 2xx and the marker the process ends, or an outside NATS is away.
//
// No HTTP routes and no backend may enter here: what executes calls is an Executor.
package async

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// Settings say how much is kept and how often it is tried.
type Settings struct {
	Dir         string        // of the embedded server's files
	URL         string        // of an outside NATS; "" embeds one
	Credentials string        // file with the credentials for URL; "" = none
	CA          string        // file with the authorities (PEM) of URL's certificate; "" = the system's
	Sync        time.Duration // how often the embedded server's files are flushed to disk; 0 = before each 202

	MaxMessages  int64 // calls that wait, and likewise results
	MaxBytes     int64 // of these, each
	MaxBodyBytes int64 // of one call or result

	Concurrency     int // calls in progress, and likewise reports, of one function
	MaxAttempts     int
	RetryMaxWait    time.Duration
	CallbackTimeout time.Duration
	AllowPrivate    bool // callbacks may be on private addresses

	DeadMax int64
	DeadAge time.Duration
}

// Errors of Accept and of dead letters; what they wrap says more.
var (
	ErrFull        = errors.New("the queue of asynchronous calls is full")
	ErrTooLarge    = errors.New("too large for an asynchronous call")
	ErrUnavailable = errors.New("asynchronous calls cannot be stored at the moment")
	ErrCallback    = errors.New("X-Callback-Url")
	ErrNoDead      = errors.New("no such dead letter")
)

// Executor executes a call as if its caller were waiting.
type Executor interface {
	// Execute calls the function and returns its answer, whatever that is. Ending ctx interrupts it.
	Execute(ctx context.Context, call *Call) Result
}

// Queue accepts calls and has them executed and reported. Use New, then Start.
type Queue struct {
	settings Settings
	executor Executor
	callback *callbacks
	metrics  *metrics

	pulling context.Context // ends when no more work is to be begun
	stop    context.CancelFunc
	working context.Context // ends when work in progress is to be interrupted
	cut     context.CancelFunc
	tasks   sync.WaitGroup

	opening sync.Mutex // held while the store is opened, and by Close
	failed  error      // what the last attempt to open it ended with
	retry   time.Time  // of the next attempt
	store   atomic.Pointer[store]

	mu     sync.Mutex // of what follows
	lanes  map[laneKey]*lane
	closed bool
}

// New returns a Queue that has yet to be started. Its metrics are in registry.
func New(s Settings, registry prometheus.Registerer) *Queue {
	q := &Queue{settings: s, callback: newCallbacks(s.CallbackTimeout, s.AllowPrivate), lanes: map[laneKey]*lane{}}
	q.pulling, q.stop = context.WithCancel(context.Background())
	q.working, q.cut = context.WithCancel(context.Background())
	q.metrics = newMetrics(registry, q)
	return q
}

// Start lets calls be executed by e. It returns at once. The embedded server is started when there are
// stored calls, else by the first call that is accepted: it takes some megabytes, which a provider without
// asynchronous calls keeps.
func (q *Queue) Start(e Executor) {
	q.executor = e
	if !q.stored() {
		return
	}
	q.tasks.Go(func() {
		for {
			s, err := q.open()
			if err == nil {
				err = q.resume(s)
			}
			if err != nil && q.pulling.Err() == nil {
				slog.Error("asynchronous calls cannot be executed", "error", err)
			}
			if err == nil && q.settings.URL == "" {
				return // nobody else adds calls
			}
			if !q.pause(rescan) {
				return
			}
		}
	})
}

// stored reports whether there may be something in the store. An embedded server that was never started has no
// directory.
func (q *Queue) stored() bool {
	if q.settings.URL != "" {
		return true
	}
	_, err := os.Stat(filepath.Join(q.settings.Dir, server.JetStreamStoreDir))
	return !errors.Is(err, os.ErrNotExist)
}

// rescan is how often an outside NATS is asked for functions whose calls another provider has accepted.
const rescan = 10 * time.Second

// pause reports false when the queue is closed before d has passed.
func (q *Queue) pause(d time.Duration) bool {
	select {
	case <-q.pulling.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// open returns the store, which the first caller opens. What just failed is not tried by every caller again.
func (q *Queue) open() (*store, error) {
	if s := q.store.Load(); s != nil {
		return s, nil
	}
	q.opening.Lock()
	defer q.opening.Unlock()
	if q.pulling.Err() != nil {
		return nil, errors.New("the provider is shutting down")
	}
	if s := q.store.Load(); s != nil {
		return s, nil
	}
	if time.Now().Before(q.retry) {
		return nil, q.failed
	}
	s, err := openStore(&q.settings)
	if err != nil {
		q.failed, q.retry = err, time.Now().Add(time.Second)
		return nil, err
	}
	q.store.Store(s)
	return s, nil
}

// resume works on everything that is stored.
func (q *Queue) resume(s *store) error {
	for _, step := range []stage{executing, reporting} {
		ctx, cancel := context.WithTimeout(q.pulling, storeTimeout)
		refs, err := s.waiting(ctx, step)
		cancel()
		if err != nil {
			return err
		}
		for _, ref := range refs {
			q.work(s, step, ref)
		}
	}
	return nil
}

// Accept stores a call. When it returns nil the call will be executed, whatever ends the process.
func (q *Queue) Accept(ctx context.Context, call *Call) error {
	if call.Callback != "" {
		if err := q.callback.check(call.Callback); err != nil {
			return err
		}
	}
	s, err := q.open()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	known := call.known // a caller that names its call may send it twice; it is one call
	if known == "" {
		known = call.UID
	}
	payload, err := encode(call, call.Body)
	if err != nil {
		return err
	}
	step("accepting")
	if err := s.publish(ctx, callSubject(call.Ref), payload, jetstream.WithMsgID(known)); err != nil {
		return err
	}
	step("accepted")
	q.metrics.accepted.Inc()
	q.work(s, executing, call.Ref)
	return nil
}

// MaxBodyBytes is the longest body of a call.
func (q *Queue) MaxBodyBytes() int64 { return q.settings.MaxBodyBytes }

// Close begins no more work, waits until what is in progress has ended, and interrupts it at the end of ctx.
// What is not done stays stored.
func (q *Queue) Close(ctx context.Context) error {
	q.stop()
	q.mu.Lock()
	q.closed = true // Accept and work add no more tasks
	q.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		q.tasks.Wait()
		close(ended)
	}()
	var err error
	select {
	case <-ended:
	case <-ctx.Done():
		err = fmt.Errorf("asynchronous calls were interrupted and will be executed again: %w", ctx.Err())
		q.cut()
		<-ended
	}
	q.cut()
	q.callback.close()
	q.opening.Lock()
	defer q.opening.Unlock()
	if s := q.store.Swap(nil); s != nil {
		s.close()
	}
	return err
}

// tooLarge reports whether asking again cannot help.
func tooLarge(err error) bool {
	return errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum)
}
