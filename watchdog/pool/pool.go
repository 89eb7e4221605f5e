// Package pool decides which worker answers which request: one bounded FIFO queue, workers that take
// from its head, deadlines, and the replacement of workers that die.
//
// It knows frames and workers, not HTTP: statuses, headers and bodies stay in package server.
package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/runner"
)

// Config of a pool.
type Config struct {
	Runner runner.Config
	// Workers is how many to keep alive, 1 to runner.MaxWorkers.
	Workers int
	// QueueDepth is how many calls may wait beyond those that workers have. Those of SubmitAll wait apart.
	QueueDepth int
	// BatchMaxSize is how many queued calls go to predict_batch together.
	BatchMaxSize int
	Logger       *slog.Logger
	Metrics      *Metrics
}

// Metrics are called by the pool as things happen; every field may be nil. They must not block.
type Metrics struct {
	Batch       func(size int)
	WorkerDeath func(reason string)
}

// Pool runs a model on a number of workers. All methods are safe for concurrent use.
type Pool struct {
	cfg    Config
	ctx    context.Context // ends when the pool closes
	cancel context.CancelFunc
	run    sync.WaitGroup // every goroutine of the pool

	mu       sync.Mutex
	zygote   *runner.Zygote
	workers  []*worker
	target   int // workers wanted
	forking  int // workers on their way
	queue    callQueue
	nextID   uint64
	inFlight int // calls accepted and not yet finished
	pace     pace
	armed    bool // the monitor is ticking
	draining bool
	idle     chan struct{} // closed when draining and nothing is in flight
	changed  chan struct{} // closed and replaced when the set of workers changes
	notReady string        // why calls are refused; "" when they are taken
	served   bool          // calls have been taken since the start
	answered bool          // by the zygote's workers: it is no longer on trial
	failed   error         // init failed for good
	unborn   int           // workers in a row that did not come up
	crashes  int           // deaths in a row without an answer between them
	lastEnd  string        // how the last of them ended
	restarts uint64
	alarm    chan struct{}
}

// New starts the model in the background; Ready says how far it is.
func New(cfg Config) *Pool {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pool{
		cfg: cfg, ctx: ctx, cancel: cancel, target: cfg.Workers,
		notReady: "init is running", idle: make(chan struct{}), changed: make(chan struct{}),
		alarm: make(chan struct{}, 1),
	}
	p.run.Add(2)
	go p.keepZygote()
	go p.monitor()
	return p
}

// Ready is nil when calls are answered, and otherwise says why not, traceback and all.
func (p *Pool) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.draining:
		return ErrDraining
	case p.notReady != "":
		return &NotReadyError{p.notReady}
	case len(p.workers) == 0:
		return &NotReadyError{fmt.Sprintf("no worker is up: %d died in a row, the last: %s", p.crashes, p.lastEnd)}
	case p.queue.length-p.queue.bulk >= p.cfg.QueueDepth:
		return ErrFull
	}
	return nil
}

// Failed returns init's error once it is clear that it will not succeed.
func (p *Pool) Failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// Changed returns a channel that is closed at the next change of Ready or Size.
func (p *Pool) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// Stats are counts at one moment.
type Stats struct {
	Workers  int    // wanted
	Ready    int    // up
	Busy     int    // with at least one call
	Queued   int    // calls no worker has yet
	Restarts uint64 // workers replaced since the start
	Runtime  string // interpreter and version
}

// Stats returns the pool's counts.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{Workers: p.target, Ready: len(p.workers), Queued: p.queue.length, Restarts: p.restarts}
	for _, w := range p.workers {
		if len(w.sent) > 0 {
			s.Busy++
		}
	}
	if p.zygote != nil {
		s.Runtime = p.zygote.Runtime()
	}
	return s
}

// Do answers one request and blocks until it is answered, its deadline passes, or ctx ends. A call
// whose ctx ends leaves the queue; one that a worker has begun runs to its end and is forgotten.
// The body must not change before Do returns; tag names the call in logs.
func (p *Pool) Do(ctx context.Context, body []byte, tag string, arrived, deadline time.Time) (Answer, error) {
	c, err := p.Submit(body, tag, arrived, deadline)
	if err != nil {
		return Answer{}, err
	}
	return p.Wait(ctx, c)
}

// Submit hands in a request without waiting for its answer, which Wait returns; each submitted call
// must be waited for. It never blocks: without room in the queue it returns ErrFull.
func (p *Pool) Submit(body []byte, tag string, arrived, deadline time.Time) (*Call, error) {
	c := &Call{body: body, tag: tag, arrived: arrived, deadline: deadline, done: make(chan struct{}, 1)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.admit(c); err != nil {
		return nil, err
	}
	p.rouse()
	return c, nil
}

// SubmitAll is Submit for a run of requests whose answers are wanted together rather than each as
// soon as it is there: a worker may be given more of them at once. It returns the calls of those it
// took, which are the first ones, and why it did not take the next.
func (p *Pool) SubmitAll(bodies [][]byte, tag string, arrived, deadline time.Time) ([]*Call, error) {
	calls := make([]*Call, 0, len(bodies))
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	for _, body := range bodies {
		c := &Call{body: body, tag: tag, arrived: arrived, deadline: deadline, done: make(chan struct{}, 1), bulk: true}
		if err = p.admit(c); err != nil {
			break
		}
		calls = append(calls, c)
	}
	p.rouse()
	return calls, err
}

// Ahead is how many calls of one sender are worth having under way at once: each worker then has its next
// ones before it is through with those that it has. More would only keep others waiting.
func (p *Pool) Ahead() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	each := p.pace.ahead(aheadBulk)
	if len(p.workers) > 0 && p.workers[0].proc.Batch {
		each = max(each, p.cfg.BatchMaxSize)
	}
	return min(2*each*max(len(p.workers), 1), bulkDepth)
}

// rouse gives idle workers what is queued. A busy one gets its next calls when it has answered, all
// with one write; handing them over one by one as they come costs both sides a system call each. The
// lock is held as in dispatch.
func (p *Pool) rouse() {
	for p.queue.head != nil {
		w := p.freeWorker(p.queue.head)
		if w == nil || len(w.sent) > 0 || !p.dispatch(w) {
			return
		}
	}
}

// admit queues a call, or says why not. The lock is held.
func (p *Pool) admit(c *Call) error {
	switch {
	case p.draining:
		return ErrDraining
	case p.notReady != "":
		return &NotReadyError{p.notReady}
	case !p.queue.roomFor(c, p.cfg.QueueDepth) && p.freeWorker(c) == nil:
		return ErrFull
	}
	p.inFlight++
	p.queue.pushBack(c)
	if !p.armed {
		p.armed = true
		p.alarm <- struct{}{}
	}
	return nil
}

// Wait blocks for a submitted call, as Do does.
func (p *Pool) Wait(ctx context.Context, c *Call) (Answer, error) {
	select {
	case <-c.done:
		return c.result()
	case <-ctx.Done():
	}
	p.mu.Lock()
	if c.queued {
		p.queue.remove(c)
		p.settle(c, nil, ctx.Err(), 0)
	}
	p.mu.Unlock()
	select {
	case <-c.done:
		return c.result()
	default:
		return Answer{}, ctx.Err()
	}
}

// settle ends a call. The lock is held.
func (p *Pool) settle(c *Call, answer []byte, err error, predict time.Duration) {
	c.finish(answer, err, predict)
	p.inFlight--
	if p.draining && p.inFlight == 0 {
		select {
		case <-p.idle:
		default:
			close(p.idle)
		}
	}
}

// growTries is how many workers in a row may not come up before Resize gives up.
const growTries = 5

// Resize changes how many workers are kept, and blocks until that many are up, ctx ends or the pool
// closes. Workers that are too many answer what they have and leave. When more are wanted and several in a
// row do not come up, for want of memory for one, it gives up: as many are kept as before.
func (p *Pool) Resize(ctx context.Context, n int) error {
	if n < 1 || n > runner.MaxWorkers {
		return fmt.Errorf("workers must be 1 to %d, not %d", runner.MaxWorkers, n)
	}
	p.mu.Lock()
	before := p.target
	p.target, p.unborn = n, 0
	p.balance()
	p.mu.Unlock()
	for {
		p.mu.Lock()
		changed, up, reason := p.changed, len(p.workers), p.notReady
		if reason == "" && n > before && p.target == n && up < n && p.unborn >= growTries {
			p.target = before
			p.balance()
			err := &GrowError{Workers: n, Kept: before, Detail: p.lastEnd}
			p.mu.Unlock()
			return err
		}
		p.mu.Unlock()
		switch {
		case reason != "":
			return &NotReadyError{reason}
		case up == n:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-p.ctx.Done():
			return ErrDraining
		}
	}
}

// Drain refuses new calls and blocks until those accepted are answered, or ctx ends.
func (p *Pool) Drain(ctx context.Context) error {
	p.mu.Lock()
	if !p.draining {
		p.draining = true
		p.announce()
		if p.inFlight == 0 {
			close(p.idle)
		}
	}
	idle := p.idle
	p.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		return fmt.Errorf("%d requests were not answered in time: %w", p.inFlight, ctx.Err())
	}
}

// Close ends every worker and the runner, and blocks until they are gone. Calls still under way end
// with ErrDraining.
func (p *Pool) Close() {
	p.mu.Lock()
	if !p.draining {
		p.draining = true
	}
	p.announce()
	for p.queue.head != nil {
		c := p.queue.head
		p.queue.remove(c)
		p.settle(c, nil, ErrDraining, 0)
	}
	p.mu.Unlock()
	p.cancel()
	p.run.Wait()
}

func (p *Pool) announce() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// How a model that dies at once is kept from eating the machine: the first deaths in a row are
// answered at once, later ones after a pause that doubles.
const (
	freeCrashes  = 3
	firstPause   = 20 * time.Millisecond
	longestPause = 5 * time.Second
)

func crashPause(crashes int) time.Duration {
	if crashes <= freeCrashes {
		return 0
	}
	return min(firstPause<<min(crashes-freeCrashes-1, 16), longestPause)
}

// lastStart is how many starts in a row may fail before a model that was never ready counts as one
// whose init failed. Workers beyond the first are started beside it and add one each, so that every
// one of them is tried again after a pause.
const lastStart = 10

// keepZygote starts the runner, and starts it again if it dies.
func (p *Pool) keepZygote() {
	defer p.run.Done()
	for attempt := 1; p.pause(crashPause(attempt - 1)); attempt++ {
		z, err := runner.Start(p.ctx, p.cfg.Runner)
		if err != nil {
			if p.ctx.Err() != nil || !p.startAgain(attempt, err) {
				return
			}
			continue
		}
		p.mu.Lock()
		p.zygote, p.answered = z, false
		p.balance()
		p.mu.Unlock()
		select {
		case <-z.Done():
			p.mu.Lock()
			p.zygote = nil
			p.restarts++
			if p.answered {
				attempt = 1
			}
			p.mu.Unlock()
			again := p.startAgain(attempt, errRunnerDied)
			z.Close()
			if !again {
				return
			}
		case <-p.ctx.Done():
			z.Close()
		}
	}
}

var errRunnerDied = errors.New("the runner died")

// startAgain makes calls end with the reason why there is no runner, and reports whether to try again:
// a model that was ready once always is, one that never was is not when its init fails.
func (p *Pool) startAgain(attempt int, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return false
	}
	var init *runner.InitError
	reason := err.Error()
	if !errors.As(err, &init) {
		reason = fmt.Sprintf("%v, %d in a row", err, attempt)
	}
	switch {
	case p.served:
	case init != nil:
		p.failed = err
	case attempt >= lastStart:
		p.failed = &runner.InitError{Detail: reason}
	}
	if p.refuse(reason); p.failed == nil {
		p.cfg.Logger.Error("there is no runner; it is started again, init included", "error", err, "in_a_row", attempt)
	}
	p.announce()
	return p.failed == nil
}

// pause blocks for d, or until the pool closes: then it returns false.
func (p *Pool) pause(d time.Duration) bool {
	if d == 0 {
		return p.ctx.Err() == nil
	}
	select {
	case <-time.After(d):
		return true
	case <-p.ctx.Done():
		return false
	}
}

// refuse makes calls end with a reason, those that wait included. The lock is held.
func (p *Pool) refuse(reason string) {
	p.notReady = reason
	for p.queue.head != nil {
		c := p.queue.head
		p.queue.remove(c)
		p.settle(c, nil, &NotReadyError{reason}, 0)
	}
}

// died counts the death of a worker that was not killed for a deadline. Until the workers are up
// together it is the reason why calls are refused, and too many of them are a failed init. when is
// "before" or "after" the worker was up. The lock is held.
func (p *Pool) died(when, end string) {
	p.crashes++
	p.lastEnd = end
	if p.notReady == "" || p.failed != nil {
		return
	}
	p.notReady = fmt.Sprintf("workers die %s they are up: %s, %d in a row", when, end, p.crashes)
	if !p.served && p.crashes >= lastStart+p.target-1 {
		p.failed = &runner.InitError{Detail: p.notReady}
	}
}

// balance forks the workers that are missing, retires those too many, and takes calls once all are up.
// The lock is held.
func (p *Pool) balance() {
	if p.zygote == nil || p.zygote.Ended() || p.failed != nil || p.ctx.Err() != nil {
		return
	}
	up := 0
	for _, w := range p.workers {
		if w.zygote == p.zygote { // and not one that goes with the zygote before
			up++
		}
	}
	if p.notReady != "" && up >= p.target {
		p.notReady, p.served = "", true
		p.announce()
	}
	for len(p.workers)+p.forking < p.target {
		p.forking++
		p.run.Add(1)
		go p.fork(p.zygote, crashPause(p.crashes))
	}
	for len(p.workers) > p.target {
		w := p.workers[len(p.workers)-1]
		p.workers = p.workers[:len(p.workers)-1]
		w.retiring = true
		w.closeIfDone()
		p.announce()
	}
}

func (p *Pool) fork(z *runner.Zygote, after time.Duration) {
	defer p.run.Done()
	var proc *runner.Worker
	err := context.Canceled
	if p.pause(after) {
		proc, err = z.Fork(p.ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forking--
	if err != nil {
		switch {
		case p.ctx.Err() != nil:
		case p.zygote != z:
			p.balance() // for the zygote that came after: it counted this fork as under way
		case z.Ended(): // and the next one forks
		default:
			p.stillborn(err)
		}
		return
	}
	p.unborn = 0
	w := &worker{pool: p, zygote: z, proc: proc}
	p.run.Add(1)
	go w.read()
	p.workers = append(p.workers, w)
	p.announce()
	p.balance() // the target may have moved meanwhile
	p.feed()
}

// stillborn sees to the place of a worker that did not come up. The lock is held.
func (p *Pool) stillborn(err error) {
	p.unborn++
	var init *runner.InitError
	end := err.Error()
	if errors.As(err, &init) {
		end = init.Detail
		if p.cfg.Runner.StartMethod == model.StartSpawn && !p.served && p.failed == nil {
			// Under spawn init runs here, and this was the first: it will not do better next time.
			p.notReady, p.failed = err.Error(), err
		}
	}
	p.died("before", end)
	p.cfg.Logger.Error("a worker did not start", "error", end, "in_a_row", p.crashes)
	p.announce()
	p.balance()
}

// monitorEvery is how often deadlines and stuck workers are looked for while calls are under way.
const monitorEvery = 2 * time.Millisecond

// monitorIdle is how long the monitor keeps ticking when nothing is under way, so that a steady
// trickle of calls does not start it each time.
const monitorIdle = 250 * time.Millisecond

// monitor enforces deadlines and frees calls stuck behind a slow one. It sleeps while nothing is
// under way.
func (p *Pool) monitor() {
	defer p.run.Done()
	for {
		select {
		case <-p.alarm:
		case <-p.ctx.Done():
			return
		}
		ticker := time.NewTicker(monitorEvery)
		for quiet := time.Duration(0); quiet < monitorIdle; {
			select {
			case <-ticker.C:
			case <-p.ctx.Done():
				ticker.Stop()
				return
			}
			p.mu.Lock()
			if p.inFlight == 0 {
				quiet += monitorEvery
			} else {
				quiet = 0
				p.check(time.Now())
			}
			if quiet >= monitorIdle {
				p.armed = false
			}
			p.mu.Unlock()
		}
		ticker.Stop()
	}
}

func (p *Pool) check(now time.Time) {
	for c := p.queue.head; c != nil; {
		next := c.next
		if c.expired(now) {
			p.queue.remove(c)
			p.settle(c, nil, ErrTimeout, 0)
		}
		c = next
	}
	// A check may let go of the lock to write, and the workers may change meanwhile.
	for _, w := range slices.Clone(p.workers) {
		w.check(now)
	}
}

// Poll is Wait with a bound: done is false when the call is not answered within patience. A call that
// was polled with done must not be waited for.
func (p *Pool) Poll(c *Call, patience time.Duration) (answer Answer, err error, done bool) {
	select {
	case <-c.done:
		answer, err = c.result()
		return answer, err, true
	default:
	}
	if patience > 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-c.done:
			answer, err = c.result()
			return answer, err, true
		case <-timer.C:
		}
	}
	return Answer{}, nil, false
}
