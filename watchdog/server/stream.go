package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/faas-predict/faas-predict/watchdog/pool"
)

// lineBuffer is up to how long a line needs no room of its own. Of longer ones no more than heldBodies of
// all streams are in memory at once.
const lineBuffer = 64 << 10

// flushPatience is how long an answer may wait for the next one, when there is a next one on its way,
// so that they leave with one write.
const flushPatience = time.Millisecond

// row is one line of a stream on its way to its answer.
type row struct {
	request []byte
	isJSON  bool       // the line was a JSON value other than a string, and so may its answer be
	call    *pool.Call // nil when bad says why there is none
	bad     *problem
	isLong  bool // it is one of the server's longLines
}

// stream answers NDJSON: a row in, a row out, in order. A row given as a JSON string is predict's
// request and its answer comes as a JSON string. A row given as another JSON value goes to predict
// as its text, and an answer that is JSON comes as it is. A row that cannot be answered gives
// {"error": …} and the stream goes on. It returns the status for the log.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, id string) int {
	began := time.Now()
	if err := s.pool.Ready(); err != nil && !errors.Is(err, pool.ErrFull) {
		p := problemOf(err)
		p.CallID = id
		stampTimes(w.Header(), time.Since(began), 0, 0)
		writeProblem(w, p)
		return p.Status
	}
	control := http.NewResponseController(w)
	// Answers go out while rows still come in.
	_ = control.EnableFullDuplex()
	h := w.Header()
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("Trailer", "X-Duration-Seconds, Server-Timing")
	w.WriteHeader(http.StatusOK)
	// The client learns at once that its rows are welcome, before it has sent any.
	_ = control.Flush()

	in := &sender{body: r.Body, control: control, limit: s.settings.ReadTimeout}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	defer context.AfterFunc(r.Context(), func() {
		// net/http takes a sender that is silent for too long for one that is gone.
		if !in.silent() {
			cancel()
		}
	})()
	runs := make(chan []row, 16)
	ahead := newRowsAhead()
	go func() {
		defer close(runs)
		s.readRows(ctx, in, r, id, ahead, runs)
	}()
	predict, left := s.writeRows(ctx, control, w, id, ahead, runs)
	cancel()
	ahead.close()
	s.abandon(ctx, left)
	for run := range runs {
		s.abandon(ctx, run)
	}
	took := time.Since(began)
	stampTimes(h, took, max(0, took-predict), predict)
	return http.StatusOK
}

// readRows submits each line. It blocks while enough rows are under way, which is what slows the sender
// down.
func (s *Server) readRows(ctx context.Context, from *sender, r *http.Request, id string, ahead *rowsAhead, runs chan<- []row) {
	// Rows may be under way long after the last has come.
	defer from.close()
	limit := int(s.settings.MaxBodyBytes)
	in := bufio.NewReaderSize(from, lineBuffer)
	for more := true; more; {
		var run []row
		var lines []byte // of the run
		most := s.pool.Ahead()
		// Rows that came together are handed over together.
		for more && (len(run) == 0 || len(run) < most/runsAhead && lineBuffered(in)) {
			long := false
			line, rest, tooLong, err := readLine(in, lines, limit, func() bool {
				long = s.holdLong(ctx)
				return long
			})
			more = err == nil
			var next row
			switch trimmed := bytes.TrimSpace(line); {
			case err != nil && !errors.Is(err, io.EOF):
				status, detail := unreadBody(err, s.settings.ReadTimeout)
				p := newProblem(status, detail)
				next.bad = &p
			case tooLong || len(trimmed) > 0:
				next = parseRow(trimmed, tooLong)
			default: // the line's room is the next one's
				lines = rest[:len(lines)]
				s.release(long)
				continue
			}
			next.isLong = long
			lines, run = rest, append(run, next)
		}
		if len(run) == 0 {
			return
		}
		if !ahead.enter(run, most) {
			s.abandon(ctx, run)
			return
		}
		s.submitRows(ctx, r, id, run)
		select {
		case runs <- run:
		case <-ctx.Done():
			s.abandon(ctx, run)
			return
		}
	}
}

// abandon has rows that nobody waits for leave the queue. ctx has ended.
func (s *Server) abandon(ctx context.Context, run []row) {
	for _, left := range run {
		if left.call != nil {
			_, _ = s.pool.Wait(ctx, left.call)
		}
		s.release(left.isLong)
	}
}

// holdLong blocks until one more long line may be in memory, and reports false when ctx ends before.
func (s *Server) holdLong(ctx context.Context) bool {
	select {
	case s.longLines <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// release makes room for another long line, if this was one.
func (s *Server) release(long bool) {
	if long {
		<-s.longLines
	}
}

// lineBuffered reports whether a whole line can be had without waiting.
func lineBuffered(in *bufio.Reader) bool {
	have, _ := in.Peek(in.Buffered())
	return bytes.IndexByte(have, '\n') >= 0
}

// readLine returns the next line without its end. A line over limit is skipped and reported. One that
// came whole is put behind lines, whose new extent is the second result. Before it keeps one that does not
// fit in's buffer it calls hold, and gives up where that reports false.
func readLine(in *bufio.Reader, lines []byte, limit int, hold func() bool) (line, _ []byte, tooLong bool, err error) {
	part, err := in.ReadSlice('\n')
	if err == nil && len(part) <= limit+1 {
		if lines == nil {
			lines = make([]byte, 0, len(part)+in.Buffered())
		}
		begin := len(lines)
		lines = append(lines, bytes.TrimSuffix(part, []byte("\n"))...)
		return lines[begin:len(lines):len(lines)], lines, false, nil
	}
	if errors.Is(err, bufio.ErrBufferFull) && !hold() {
		return nil, lines, false, context.Canceled
	}
	for {
		if len(line)+len(part) > limit+1 {
			line, tooLong = nil, true
		}
		if !tooLong {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if line = bytes.TrimSuffix(line, []byte("\n")); len(line) > limit { // a last line without an end
				line, tooLong = nil, true
			}
			return line, lines, tooLong, err
		}
		part, err = in.ReadSlice('\n')
	}
}

// parseRow reads one line.
func parseRow(line []byte, tooLong bool) row {
	bad := func(status int, detail string) row {
		p := newProblem(status, detail)
		return row{bad: &p}
	}
	switch {
	case tooLong:
		return bad(http.StatusRequestEntityTooLarge, "the line is larger than max_body_bytes")
	case isPlainString(line):
		return row{request: line[1 : len(line)-1]}
	case !utf8.Valid(line):
		return bad(http.StatusBadRequest, "the line is not UTF-8")
	case line[0] == '"':
		var text string
		if json.Unmarshal(line, &text) == nil {
			return row{request: []byte(text)}
		}
	case json.Valid(line):
		return row{request: line, isJSON: true}
	}
	return bad(http.StatusBadRequest, "the line is not a JSON value")
}

// submitRows hands the good rows of a run to the pool. A stream waits for room where a single request
// is told to come back.
func (s *Server) submitRows(ctx context.Context, r *http.Request, id string, run []row) {
	arrived := time.Now()
	deadline, _ := s.deadline(r, arrived)
	left := make([]*row, 0, len(run))
	bodies := make([][]byte, 0, len(run))
	for i := range run {
		if run[i].bad == nil {
			left, bodies = append(left, &run[i]), append(bodies, run[i].request)
		}
	}
	for len(left) > 0 {
		calls, err := s.pool.SubmitAll(bodies, id, arrived, deadline)
		for i, call := range calls {
			left[i].call = call
		}
		left, bodies = left[len(calls):], bodies[len(calls):]
		switch {
		case err == nil:
		case errors.Is(err, pool.ErrFull) && ctx.Err() == nil && (deadline.IsZero() || time.Now().Before(deadline)):
			time.Sleep(time.Millisecond)
		default:
			p := problemOf(err)
			for _, next := range left {
				next.bad = &p
			}
			return
		}
	}
}

// writeRows waits for each row in its turn and writes it. It flushes when it would have to wait, so
// that an answer does not lie in a buffer while its reader waits. It returns the time spent in
// predict, and the rows that it took and did not get to.
func (s *Server) writeRows(ctx context.Context, control *http.ResponseController, w io.Writer, id string, ahead *rowsAhead, runs <-chan []row) (predict time.Duration, left []row) {
	var out []byte
	flush := func() bool {
		if len(out) == 0 {
			return true
		}
		_ = control.SetWriteDeadline(s.writeDeadline())
		_, err := w.Write(out)
		out = out[:0]
		return err == nil && control.Flush() == nil
	}
	defer flush()
	for {
		if len(left) == 0 {
			select {
			case left = <-runs:
			default:
				if !flush() {
					return predict, left
				}
				left = <-runs
			}
			if left == nil {
				return predict, left
			}
		}
		next := left[0]
		left = left[1:]
		var answer pool.Answer
		bad := next.bad
		if bad == nil {
			var err error
			var done bool
			patience := time.Duration(0)
			if len(out) > 0 {
				patience = flushPatience
			}
			if answer, err, done = s.pool.Poll(next.call, patience); !done {
				if !flush() {
					return predict, append(left, next)
				}
				answer, err = s.pool.Wait(ctx, next.call)
			}
			if err != nil {
				p := problemOf(err)
				bad = &p
				s.logFailure(err, id)
			}
			predict += answer.Predict
			s.metrics.queue.Observe(answer.Queue.Seconds())
			s.metrics.predict.Observe(answer.Predict.Seconds())
		}
		switch {
		case bad != nil:
			told := *bad
			told.CallID = id
			line, _ := json.Marshal(map[string]problem{"error": told})
			out = append(out, line...)
		case next.isJSON && json.Valid(answer.Body) && !bytes.ContainsRune(answer.Body, '\n'):
			out = append(out, answer.Body...)
		default:
			out = appendQuoted(out, answer.Body)
		}
		out = append(out, '\n')
		ahead.leave(next)
		s.release(next.isLong)
		if len(out) >= 32<<10 && !flush() {
			return predict, left
		}
	}
}
