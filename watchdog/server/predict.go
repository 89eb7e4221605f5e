package server

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/faas-predict/faas-predict/watchdog/pool"
)

// heldBodies bounds the bytes of all request bodies that wait at once, as a multiple of the largest
// single one: a full queue of large bodies must not be what runs out of memory.
const heldBodies = 16

func init() {
	// A call id names a call in logs; it is no secret, so its randomness may come from a pool.
	uuid.EnableRandPool()
}

// maxCallID bounds what a caller can put into our logs.
const maxCallID = 128

// callID is the caller's X-Call-Id, or a new one when it sent none that can stand in a log.
func callID(r *http.Request) string {
	if ids := r.Header["X-Call-Id"]; len(ids) > 0 && len(ids[0]) > 0 && len(ids[0]) <= maxCallID {
		for _, c := range []byte(ids[0]) {
			if c <= ' ' || c > '~' {
				return uuid.NewString()
			}
		}
		return ids[0]
	}
	return uuid.NewString()
}

// stamp puts on the headers that every answer carries.
func (s *Server) stamp(w http.ResponseWriter, id string) {
	h := w.Header()
	// One allocation for both; each may grow only by moving away.
	both := []string{s.bundle.Version.ID, id}
	h["X-Model-Version"], h["X-Call-Id"] = both[0:1:1], both[1:2:2]
}

// stampTimes puts on how long the call took.
func stampTimes(h http.Header, took, queue, predict time.Duration) {
	var buf [96]byte
	b := strconv.AppendFloat(buf[:0], took.Seconds(), 'f', 6, 64)
	n := len(b)
	b = append(b, "queue;dur="...)
	b = strconv.AppendFloat(b, float64(queue)/1e6, 'f', 3, 64)
	b = append(b, ", predict;dur="...)
	b = strconv.AppendFloat(b, float64(predict)/1e6, 'f', 3, 64)
	all := string(b)
	both := []string{all[:n], all[n:]}
	h["X-Duration-Seconds"], h["Server-Timing"] = both[0:1:1], both[1:2:2]
}

// deadline is when the caller's patience or exec_timeout ends; zero is never.
func (s *Server) deadline(r *http.Request, arrived time.Time) (time.Time, error) {
	limit := s.settings.ExecTimeout
	if v := r.Header.Get("X-Timeout"); v != "" {
		asked, err := time.ParseDuration(v)
		if err != nil || asked <= 0 {
			return time.Time{}, errors.New(`X-Timeout must be a positive duration such as "500ms"`)
		}
		if limit == 0 || asked < limit {
			limit = asked
		}
	}
	if limit == 0 {
		return time.Time{}, nil
	}
	return arrived.Add(limit), nil
}

func (s *Server) predict(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	id := callID(r)
	s.stamp(w, id)
	inFlight := s.inFlight.Add(1)
	s.metrics.inFlight.Inc()
	status := http.StatusOK
	defer func() {
		s.inFlight.Add(-1)
		s.metrics.inFlight.Dec()
		took := time.Since(arrived)
		s.metrics.served(status, r.Method, took)
		if s.settings.LogCallID {
			s.logger.Info("served", "method", r.Method, "path", r.URL.Path, "status", status, "seconds", took.Seconds(), "call_id", id)
		}
	}()
	fail := func(p problem, answer pool.Answer) {
		status = p.Status
		p.CallID = id
		stampTimes(w.Header(), time.Since(arrived), answer.Queue, answer.Predict)
		writeProblem(w, p)
	}

	if err := s.guard.admit(r, id); err != nil {
		challenge(w.Header(), err)
		fail(problemOf(err), pool.Answer{})
		return
	}
	if limit := int64(s.settings.MaxInflight); limit > 0 && inFlight > limit {
		fail(newProblem(http.StatusTooManyRequests, "max_inflight is reached"), pool.Answer{})
		return
	}
	if err := s.accepts(); err != nil {
		fail(problemOf(err), pool.Answer{})
		return
	}
	deadline, err := s.deadline(r, arrived)
	if err != nil {
		fail(newProblem(http.StatusBadRequest, err.Error()), pool.Answer{})
		return
	}
	if isStream(r) {
		status = s.stream(w, r, id)
		return
	}
	body, held, refusal := s.readBody(w, r)
	defer func() { s.held.Add(-held) }()
	if refusal != nil {
		fail(*refusal, pool.Answer{})
		return
	}
	answer, err := s.pool.Do(r.Context(), body, id, arrived, deadline)
	if err != nil {
		s.logFailure(err, id)
		fail(problemOf(err), answer)
		return
	}
	s.metrics.queue.Observe(answer.Queue.Seconds())
	s.metrics.predict.Observe(answer.Predict.Seconds())
	h := w.Header()
	both := []string{s.bundle.ContentType, strconv.Itoa(len(answer.Body))}
	h["Content-Type"], h["Content-Length"] = both[0:1:1], both[1:2:2]
	stampTimes(h, time.Since(arrived), answer.Queue, answer.Predict)
	if len(answer.Body) > 64<<10 {
		_ = http.NewResponseController(w).SetWriteDeadline(s.writeDeadline())
	}
	_, _ = w.Write(answer.Body)
}

func (s *Server) writeDeadline() time.Time {
	if s.settings.WriteTimeout == 0 {
		return time.Time{}
	}
	return time.Now().Add(s.settings.WriteTimeout)
}

// logFailure tells the model's author what the caller is not told: the traceback.
func (s *Server) logFailure(err error, id string) {
	var raised *pool.RaisedError
	switch {
	case errors.As(err, &raised):
		s.logger.Error("predict raised", "call_id", id, "error", raised.Error(), "traceback", raised.Traceback)
	case problemOf(err).Status >= 500:
		s.logger.Error("request failed", "call_id", id, "error", err)
	}
}

// readBody reads a whole body of UTF-8 within the limits. held is what it took of the budget for
// bodies, which the caller gives back in every case.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) (body []byte, held int64, refusal *problem) {
	refuse := func(status int, detail string) ([]byte, int64, *problem) { //nolint:unparam // its results are readBody's
		p := newProblem(status, detail)
		return nil, held, &p
	}
	limit := s.settings.MaxBodyBytes
	if r.ContentLength > limit {
		return refuse(http.StatusRequestEntityTooLarge, tooLarge(limit))
	}
	hold := func(n int64) bool {
		held += n
		return s.held.Add(n) <= heldBodies*limit
	}
	// The server's own deadline is for the whole request, which does for a body that came with its
	// head. A larger one has its own. Either ends with the body: net/http lifts it there.
	const small = 64 << 10
	if s.settings.ReadTimeout > 0 && (r.ContentLength < 0 || r.ContentLength > small) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.settings.ReadTimeout))
	}
	switch {
	case r.ContentLength == 0:
	case r.ContentLength > 0:
		if !hold(r.ContentLength) {
			return refuse(http.StatusTooManyRequests, "too many request bodies wait already")
		}
		body = make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return refuse(unreadBody(err, s.settings.ReadTimeout))
		}
	default:
		in := http.MaxBytesReader(w, r.Body, limit)
		for {
			if len(body) == cap(body) {
				// Twice as much each time, and no more than tells a body of the limit from a larger one.
				more := min(max(int64(cap(body)), 4096), limit+1-int64(cap(body)))
				if !hold(more) {
					return refuse(http.StatusTooManyRequests, "too many request bodies wait already")
				}
				body = append(make([]byte, 0, int64(len(body))+more), body...)
			}
			n, err := in.Read(body[len(body):cap(body)])
			body = body[:len(body)+n]
			if errors.Is(err, io.EOF) {
				break
			}
			var over *http.MaxBytesError
			if errors.As(err, &over) {
				return refuse(http.StatusRequestEntityTooLarge, tooLarge(limit))
			}
			if err != nil {
				return refuse(unreadBody(err, s.settings.ReadTimeout))
			}
		}
	}
	if !utf8.Valid(body) {
		return refuse(http.StatusBadRequest, "the body is not UTF-8")
	}
	return body, held, nil
}

func tooLarge(limit int64) string {
	return "the body is larger than max_body_bytes (" + strconv.FormatInt(limit, 10) + ")"
}

func unreadBody(err error, limit time.Duration) (int, string) {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return http.StatusRequestTimeout, "the body did not arrive within read_timeout (" + limit.String() + ")"
	}
	return http.StatusBadRequest, "the body ended early: " + err.Error()
}

func isStream(r *http.Request) bool {
	value := r.Header.Get("Content-Type")
	if !strings.HasPrefix(value, "application/x-ndjson") {
		return false
	}
	kind, _, err := mime.ParseMediaType(value)
	return err == nil && kind == "application/x-ndjson"
}
