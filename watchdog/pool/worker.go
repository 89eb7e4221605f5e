package pool

import (
	"bytes"
	"slices"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/runner"
	"github.com/faas-predict/faas-predict/watchdog/wire"
)

// stuckAfter is how long calls sent ahead lie behind one that does not end before they are taken
// back for an idle worker. It is longer than the kernel usually keeps a process from its core.
const stuckAfter = 10 * time.Millisecond

// flushInline is up to how many bytes the goroutine that reads a worker's answers may write to it.
// More is left to a goroutine of its own: a reader that waits to write to a worker that waits to
// write would wait for ever.
const flushInline = 32 << 10

// worker is a process and the calls it has. Everything below proc is guarded by the pool's lock.
type worker struct {
	pool   *Pool
	zygote *runner.Zygote
	proc   *runner.Worker

	sent      []*Call // in the order they were sent, which is the order they are answered in
	sentBytes int
	outgoing  []byte // frames not yet given to a writer
	spare     []byte
	writing   bool
	lastMove  time.Time // of the last answer, or of the first call after idleness
	revoked   int       // calls taken back that the worker has not confirmed yet
	holding   bool      // a revocation stands in the journal: no new calls
	timedOut  bool      // killed for a deadline
	retiring  bool      // gets no more calls, leaves when it has none
	dead      bool
}

// freeWorker returns the worker that has the fewest calls and room for c, or nil. The lock is held.
func (p *Pool) freeWorker(c *Call) *worker {
	var best *worker
	for _, w := range p.workers {
		if !w.hasRoom(c) || (c.bulk && !w.halfDone()) {
			continue
		}
		if len(w.sent) == 0 {
			return w
		}
		if best == nil || len(w.sent) < len(best.sent) {
			best = w
		}
	}
	return best
}

func (w *worker) hasRoom(c *Call) bool {
	if w.dead || w.retiring || w.holding || w.timedOut {
		return false
	}
	switch {
	case len(w.sent) == 0:
		return true
	case w.proc.Journal == nil || w.proc.Batch:
		return false
	}
	bound := aheadSingle
	if c.bulk {
		bound = aheadBulk
	}
	return len(w.sent) < w.pool.pace.ahead(bound) && w.sentBytes+len(c.body) <= bound.bytes
}

// halfDone reports whether a worker that has bulk calls is due for its next run of them. Topped up
// after every answer it would get, and answer, one at a time ever after.
func (w *worker) halfDone() bool {
	return len(w.sent) <= w.pool.pace.ahead(aheadBulk)/2 && w.sentBytes <= aheadBulk.bytes/2
}

// feed hands out what is queued to whoever has room. The lock is held as in dispatch.
func (p *Pool) feed() {
	for p.queue.head != nil {
		w := p.freeWorker(p.queue.head)
		if w == nil || !p.dispatch(w) {
			return
		}
	}
}

// dispatch moves calls from the queue's head to w while it has room, and sees to it that they are
// written. It reports whether any call moved. The lock is held, released while writing, and held
// again on return.
func (p *Pool) dispatch(w *worker) (moved bool) {
	before := p.nextID
	if w.proc.Batch {
		w.takeBatch()
	} else {
		// No more than its share, or the other workers would idle behind this one.
		share := (p.queue.length + len(p.workers) - 1) / max(len(p.workers), 1)
		w.takeRun(max(share, 1))
	}
	moved = p.nextID != before
	if len(w.outgoing) == 0 || w.writing {
		return moved
	}
	w.writing = true
	if len(w.outgoing) > flushInline {
		p.run.Add(1)
		go func() {
			defer p.run.Done()
			p.mu.Lock()
			defer p.mu.Unlock()
			w.write()
		}()
		return moved
	}
	w.write()
	return moved
}

// takeRun moves up to n calls from the queue's head to w, as far as it has room. Answers to a run of
// bulk calls come back together, those of an idle worker in two halves: it answers the second while
// the next run is on its way.
func (w *worker) takeRun(n int) {
	p := w.pool
	wasIdle, first := len(w.sent) == 0, len(w.sent)
	now := time.Now()
	for p.queue.head != nil && len(w.sent)-first < n && w.hasRoom(p.queue.head) {
		if c := p.unqueue(now); c != nil {
			w.take(c, now)
		}
	}
	run := w.sent[first:]
	for i, c := range run {
		var flags uint8
		if c.bulk && i < len(run)-1 && (!wasIdle || i != len(run)/2-1) {
			flags = wire.FlagHold
		}
		w.put(c, flags)
	}
}

// takeBatch gives an idle worker what is queued, up to BatchMaxSize.
func (w *worker) takeBatch() {
	p := w.pool
	if p.queue.head == nil || !w.hasRoom(p.queue.head) {
		return
	}
	now := time.Now()
	var batch []*Call
	for p.queue.head != nil && len(batch) < max(p.cfg.BatchMaxSize, 1) {
		alone := p.queue.head.alone
		if alone && len(batch) > 0 {
			break
		}
		c := p.unqueue(now)
		if c == nil {
			continue
		}
		batch = append(batch, c)
		if alone {
			break
		}
	}
	if len(batch) == 0 {
		return
	}
	for i, c := range batch {
		c.grouped = len(batch) > 1
		var flags uint8
		if i < len(batch)-1 {
			flags = wire.FlagMore
		}
		w.take(c, now)
		w.put(c, flags)
	}
	if p.cfg.Metrics.Batch != nil {
		p.cfg.Metrics.Batch(len(batch))
	}
}

// unqueue takes the queue's head, or nil if its time is over: such a call does not reach predict,
// whether the monitor has seen it yet or not.
func (p *Pool) unqueue(now time.Time) *Call {
	c := p.queue.head
	p.queue.remove(c)
	if c.expired(now) {
		p.settle(c, nil, ErrTimeout, 0)
		return nil
	}
	return c
}

// take makes c the worker's.
func (w *worker) take(c *Call, now time.Time) {
	w.pool.nextID++
	c.id = w.pool.nextID
	if len(w.sent) == 0 {
		w.lastMove = now
	}
	w.sent = append(w.sent, c)
	w.sentBytes += len(c.body)
}

// put appends c's frame to what is written next.
func (w *worker) put(c *Call, flags uint8) {
	w.outgoing = wire.AppendHeader(w.outgoing, wire.Header{Length: uint32(len(c.body)), Kind: wire.Request, Flags: flags, ID: c.id})
	w.outgoing = append(w.outgoing, c.body...)
}

// write writes until nothing is left. The lock is released meanwhile; w.writing keeps others out.
func (w *worker) write() {
	for len(w.outgoing) > 0 && !w.dead {
		frames := w.outgoing
		w.outgoing = w.spare[:0]
		w.pool.mu.Unlock()
		err := w.proc.Write(frames)
		w.pool.mu.Lock()
		w.spare = nil
		if cap(frames) <= 4*flushInline {
			w.spare = frames
		}
		if err != nil {
			break // the reader sees the end too, and settles what was sent
		}
	}
	w.writing = false
}

// read takes the worker's answers until it is gone, and then settles what it had.
func (w *worker) read() {
	p := w.pool
	defer p.run.Done()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-p.ctx.Done():
			w.proc.Close()
		case <-stop:
		}
	}()
	type answer struct {
		header  wire.Header
		payload []byte
	}
	var answers []answer
	for {
		h, payload, err := w.proc.Next()
		if err != nil {
			break
		}
		answers = append(answers[:0], answer{h, bytes.Clone(payload)})
		for w.proc.Buffered() {
			if h, payload, err = w.proc.Next(); err != nil {
				break
			}
			answers = append(answers, answer{h, bytes.Clone(payload)})
		}
		p.mu.Lock()
		for _, a := range answers {
			w.answered(a.header, a.payload)
		}
		w.lastMove = time.Now()
		if w.holding && w.revoked == 0 && len(w.sent) == 0 {
			w.proc.Journal.Restore()
			w.holding = false
		}
		if w.retiring {
			w.closeIfDone()
		}
		p.feed()
		p.mu.Unlock()
	}
	w.proc.Close()
	reason := w.proc.Wait()
	w.buried(reason)
	w.proc.Release()
}

// answered settles the call that a frame answers. Frames that answer nothing are late duplicates of
// what the journal gave already.
func (w *worker) answered(h wire.Header, payload []byte) {
	p := w.pool
	at := slices.IndexFunc(w.sent, func(c *Call) bool { return c.id == h.ID })
	if at < 0 {
		if h.Kind == wire.Skipped {
			w.revoked--
		}
		return
	}
	c := w.sent[at]
	w.drop(at)
	if h.Kind == wire.Skipped {
		p.giveBack(c)
		return
	}
	p.crashes, p.answered = 0, true
	took := time.Duration(h.Elapsed)
	p.pace.measured(took)
	switch h.Kind {
	case wire.Response:
		p.settle(c, payload, nil, took)
	case wire.Raised:
		parts := bytes.SplitN(payload, []byte{0}, 3)
		for len(parts) < 3 {
			parts = append(parts, nil)
		}
		p.settle(c, nil, &RaisedError{string(parts[0]), string(parts[1]), string(parts[2])}, took)
	case wire.NotString:
		p.settle(c, nil, &NotStringError{string(payload)}, took)
	default:
		p.settle(c, nil, &CrashError{"the runner answered with an unknown kind of frame"}, took)
	}
}

func (w *worker) drop(at int) {
	w.sentBytes -= len(w.sent[at].body)
	if at == 0 {
		w.sent[0] = nil
		w.sent = w.sent[1:]
		if len(w.sent) == 0 {
			w.sent = w.sent[:0:0]
		}
		return
	}
	w.sent = slices.Delete(w.sent, at, at+1)
}

func (w *worker) closeIfDone() {
	if len(w.sent) == 0 {
		w.proc.Close()
	}
}

// begun reports whether the worker has begun c, or may have.
func (w *worker) begun(c *Call) bool {
	if w.proc.Journal == nil {
		return w.sent[0] == c || c.grouped
	}
	claimed := w.proc.Journal.Claimed()
	return c.id <= claimed || (c.grouped && w.sent[0].id <= claimed)
}

// check enforces the deadline of what the worker is at, and takes back what lies behind it. Answers
// that it holds back behind a slow call are taken from the journal first: they are not late, and who
// waits for them does not wait for the slow one.
func (w *worker) check(now time.Time) {
	if w.dead || w.timedOut || len(w.sent) == 0 {
		return
	}
	late := func(c *Call) bool { return c.expired(now) && w.begun(c) }
	stuck := now.Sub(w.lastMove) >= stuckAfter
	if w.proc.Journal != nil && (stuck || slices.ContainsFunc(w.sent, late)) {
		w.proc.Journal.Unwritten(func(h wire.Header, payload []byte) {
			if h.Kind != wire.Skipped { // which says that something comes by the channel, and is counted there
				w.answered(h, payload)
			}
		})
	}
	if slices.ContainsFunc(w.sent, late) {
		w.timedOut = true
		w.proc.Kill()
		return
	}
	if w.proc.Journal == nil || w.holding || len(w.sent) < 2 || w.sent[0].grouped || !stuck {
		return
	}
	if other := w.pool.freeWorker(w.sent[1]); other != nil && len(other.sent) == 0 {
		w.takeBack()
	}
}

// giveBack puts a call that was not begun at the head of the queue, or refuses it where no runner is up
// that could have it. The lock is held.
func (p *Pool) giveBack(c *Call) {
	if p.notReady != "" {
		p.settle(c, nil, &NotReadyError{p.notReady}, 0)
		return
	}
	p.queue.pushFront(c)
}

// takeBack moves the calls that a stuck worker has not begun to the head of the queue, where the other
// workers find them.
func (w *worker) takeBack() {
	p := w.pool
	// After the revocation is visible, a request the worker has not claimed is one it will skip.
	// One that it claims in this moment is neither taken back here nor lost: it is answered, or
	// comes back Skipped.
	first := w.sent[1].id
	w.proc.Journal.Revoke(first)
	w.holding = true
	time.Sleep(50 * time.Microsecond)
	claimed := w.proc.Journal.Claimed()
	for at := len(w.sent) - 1; at >= 1; at-- {
		if c := w.sent[at]; c.id > claimed {
			w.drop(at)
			w.revoked++
			p.giveBack(c)
		}
	}
	p.feed()
}

// buried settles what a worker that is gone had, and replaces it.
func (w *worker) buried(reason string) {
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	w.dead = true
	if at := slices.Index(p.workers, w); at >= 0 {
		p.workers = slices.Delete(p.workers, at, at+1)
	}
	if w.proc.Journal != nil {
		w.proc.Journal.Unwritten(w.answered)
	}
	lost := w.settleSent(reason)
	if w.retiring || p.ctx.Err() != nil {
		p.announce()
		return
	}
	p.restarts++
	if !w.timedOut && !w.zygote.Ended() { // those that die with it are one death, which keepZygote counts
		p.died("after", reason)
	}
	if p.cfg.Metrics.WorkerDeath != nil {
		cause := "crash"
		if w.timedOut {
			cause = "timeout"
		}
		p.cfg.Metrics.WorkerDeath(cause)
	}
	p.cfg.Logger.Warn("a worker died and is replaced", "reason", reason, "pid", w.proc.Pid(),
		"timed_out", w.timedOut, "calls_failed", lost, "in_a_row", p.crashes)
	p.announce()
	p.balance()
	p.feed()
}

// settleSent fails what the worker had begun, and gives the rest back to the queue in its order.
func (w *worker) settleSent(reason string) (lost int) {
	p := w.pool
	now := time.Now()
	begun := make([]bool, len(w.sent))
	for i, c := range w.sent {
		begun[i] = w.begun(c)
	}
	sent := w.sent
	w.sent = nil
	for i := len(sent) - 1; i >= 0; i-- {
		c := sent[i]
		switch {
		case c.expired(now) && begun[i]:
			p.settle(c, nil, ErrTimeout, now.Sub(w.lastMove))
			lost++
		case p.ctx.Err() != nil:
			p.settle(c, nil, ErrDraining, 0)
		case begun[i] && c.grouped:
			// Which of a batch was the end of it cannot be told; each is asked again by itself.
			c.grouped, c.alone = false, true
			p.giveBack(c)
		case begun[i]:
			p.settle(c, nil, &CrashError{reason}, now.Sub(w.lastMove))
			lost++
		default:
			p.giveBack(c)
		}
	}
	return lost
}
