package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/faas-predict/faas-predict/provider/async"
	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/gateway"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

const (
	asyncPrefix    = "/async-function/"
	callbackHeader = "X-Callback-Url"
)

// notStored are the headers of a call that a later execution does without. Credentials are checked when the
// call is accepted; a disk is no place for them.
var notStored = []string{"Authorization", "Proxy-Authorization", callbackHeader, "Expect", "Content-Length"}

// accept stores a call for later and answers with 202.
func (s *Server) accept(w http.ResponseWriter, r *http.Request) {
	header := r.Header
	callID := header.Get(callIDHeader)
	if len(callID) > 128 {
		callID = ""
	}
	name, path := splitPath(r.URL.EscapedPath(), asyncPrefix)
	ref, err := backend.ParseRef(name, "")
	annotation, exists := "", false
	if err == nil {
		annotation, exists = s.functions.Annotation(ref, backend.AccessAnnotation)
	}
	// As for other calls, a token is asked for before it is told whether there is such a function.
	if err == nil {
		caller, refused := s.access.caller(r, ref, annotation)
		if refused != nil {
			refuse(w, callID, refused)
			return
		}
		dropNamed(header)
		identify(header, caller)
	}
	if !exists {
		problem(w, http.StatusNotFound, callID, "there is no function "+quote(name))
		return
	}
	body, err := readBody(r, s.async.MaxBodyBytes())
	if errors.Is(err, async.ErrTooLarge) {
		w.Header().Set("Connection", "close") // the rest of the body is not worth reading
		problem(w, http.StatusRequestEntityTooLarge, callID, err.Error())
		return
	}
	if err != nil {
		problem(w, http.StatusBadRequest, callID, "the body cannot be read")
		return
	}
	forwarded(r)
	call := &async.Call{
		Ref: ref, Name: name, Method: r.Method, Target: path, Host: r.Host, Callback: header.Get(callbackHeader), Accepted: time.Now().UTC(), Body: body,
	}
	if r.URL.RawQuery != "" {
		call.Target += "?" + r.URL.RawQuery
	}
	call.Identify(callID)
	for _, one := range notStored {
		header.Del(one)
	}
	header.Set(callIDHeader, call.ID)
	call.Header = header
	if header.Get(traffic.PinHeader) == "" {
		call.Version = s.versionFor(call)
	}
	if err := s.async.Accept(r.Context(), call); err != nil {
		s.asyncProblem(w, call.ID, err)
		return
	}
	w.Header().Set(callIDHeader, call.ID)
	w.WriteHeader(http.StatusAccepted)
}

// versionFor is the version that a call which names none would go to now.
func (s *Server) versionFor(call *async.Call) string {
	split, _ := s.functions.Split(call.Ref)
	if len(split.Targets) == 0 {
		return ""
	}
	return split.Pick(call.Header.Get(traffic.SessionHeader))
}

func readBody(r *http.Request, most int64) ([]byte, error) {
	tooLarge := fmt.Errorf("the body is %w: the provider's async_max_body_bytes is %d", async.ErrTooLarge, most)
	if r.ContentLength > most {
		return nil, tooLarge
	}
	var out bytes.Buffer
	const believed = 256 << 10 // a client that promises more has yet to send it
	out.Grow(int(min(max(r.ContentLength, 0), believed)) + bytes.MinRead)
	n, err := out.ReadFrom(io.LimitReader(r.Body, most+1))
	if n > most {
		return nil, tooLarge
	}
	return out.Bytes(), err
}

func (s *Server) asyncProblem(w http.ResponseWriter, callID string, err error) {
	status := http.StatusServiceUnavailable
	switch {
	case errors.Is(err, async.ErrCallback):
		status = http.StatusBadRequest
	case errors.Is(err, async.ErrTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, async.ErrFull):
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", "5")
	case errors.Is(err, async.ErrNoDead):
		status = http.StatusNotFound
	default:
		w.Header().Set("Retry-After", "1")
	}
	problem(w, status, callID, err.Error())
}

// Execute implements async.Executor: the call takes the way of one whose caller waits, but for the token, which
// was checked when it was accepted.
func (s *Server) Execute(ctx context.Context, call *async.Call) async.Result {
	result, err := s.execute(ctx, call, call.Version)
	if errors.Is(err, backend.ErrNoVersion) && call.Version != "" {
		// The version that was chosen when the call was accepted: still being loaded, or gone. A call that its
		// caller did not pin is not lost for that.
		if split, _ := s.functions.Split(call.Ref); split.Has(call.Version) {
			result.Status = http.StatusServiceUnavailable
		} else {
			result, _ = s.execute(ctx, call, "")
		}
	}
	return result
}

func (s *Server) execute(ctx context.Context, call *async.Call, version string) (result async.Result, err error) {
	start := time.Now()
	s.metrics.inFlight.Inc()
	defer s.metrics.inFlight.Dec()
	path, query, _ := strings.Cut(call.Target, "?")
	r := (&http.Request{
		Method: call.Method, URL: &url.URL{Path: path, RawQuery: query}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: call.Header.Clone(), Host: call.Host, RequestURI: call.Target,
		Body: io.NopCloser(bytes.NewReader(call.Body)), ContentLength: int64(len(call.Body)),
	}).WithContext(ctx)
	if version != "" {
		r.Header.Set(traffic.PinHeader, version)
	}
	var counted gateway.Call
	if _, exists := s.functions.Annotation(call.Ref, backend.AccessAnnotation); exists {
		counted = s.gateway.Begin(call.Ref, start)
	}
	status := http.StatusBadGateway
	defer func() { counted.End(status) }()
	w := &kept{header: http.Header{}, room: s.async.MaxBodyBytes()}
	defer func() {
		switch cut := recover(); {
		case isAbort(cut): // as a caller that waits sees its connection cut
			w.reset()
			problem(w, http.StatusBadGateway, call.ID, "the function's answer was cut short; it may have run")
		case cut != nil: // as a server takes it: one call must not end the others, now and at each start
			slog.Error("an asynchronous call panicked", "function", call.Ref.String(), "call_id", call.ID, "panic", cut, "stack", string(debug.Stack()))
			status = http.StatusInternalServerError
			w.reset()
			problem(w, status, call.ID, "the provider failed with this call; it may have run")
		}
		result = w.result(call.ID)
		result.Gone = errors.Is(err, backend.ErrNotFound)
	}()
	status, err = s.carry(w, r, call.Ref, call.Target, call.ID, nil, counted)
	return result, err
}

// kept is a ResponseWriter that keeps the answer, as far as there is room.
type kept struct {
	header http.Header
	status int
	body   bytes.Buffer
	room   int64
	over   bool
}

func (k *kept) Header() http.Header { return k.header }

func (k *kept) WriteHeader(status int) {
	if k.status == 0 && status >= http.StatusOK {
		k.status = status
	}
}

var errNoRoom = errors.New("the answer is longer than async_max_body_bytes")

func (k *kept) Write(p []byte) (int, error) {
	k.WriteHeader(http.StatusOK)
	if k.over = k.over || int64(k.body.Len()+len(p)) > k.room; k.over {
		return 0, errNoRoom
	}
	return k.body.Write(p)
}

func (k *kept) reset() {
	k.header, k.status = http.Header{}, 0
	k.body.Reset()
}

func (k *kept) result(callID string) async.Result {
	if k.over {
		k.reset()
		k.over = false
		problem(k, http.StatusBadGateway, callID, fmt.Sprintf("the function's answer is longer than %d bytes, the provider's async_max_body_bytes", k.room))
		return async.Result{Status: k.status, Header: k.header, Body: k.body.Bytes(), Final: true}
	}
	return async.Result{Status: k.status, Header: k.header, Body: k.body.Bytes()}
}

// deadPage bounds what one request lists.
const deadPage = 500

func (s *Server) listDead(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	var ref backend.Ref
	if name := query.Get("function"); name != "" {
		var err error
		if ref, err = backend.ParseRef(name, query.Get("namespace")); err != nil {
			fail(w, err)
			return
		}
	}
	after, limit := uint64(0), deadPage
	if text := query.Get("after"); text != "" {
		var err error
		if after, err = strconv.ParseUint(text, 10, 63); err != nil {
			fail(w, fmt.Errorf("%w after %.40q: want the next of an earlier answer", backend.ErrInvalid, text))
			return
		}
	}
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > deadPage {
			fail(w, fmt.Errorf("%w limit %.40q: want 1 to %d", backend.ErrInvalid, text, deadPage))
			return
		}
		limit = n
	}
	page, err := s.async.Dead(r.Context(), ref, after, limit)
	if err != nil {
		s.asyncProblem(w, "", err)
		return
	}
	answer(w, http.StatusOK, page)
}

func (s *Server) requeueDead(w http.ResponseWriter, r *http.Request) {
	s.dead(w, r, func(id uint64) error {
		return s.async.Requeue(r.Context(), id, func(call *async.Call) { call.Version = s.versionFor(call) })
	})
}

func (s *Server) deleteDead(w http.ResponseWriter, r *http.Request) {
	s.dead(w, r, func(id uint64) error { return s.async.Delete(r.Context(), id) })
}

func (s *Server) dead(w http.ResponseWriter, r *http.Request, do func(id uint64) error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 63)
	if err != nil {
		fail(w, fmt.Errorf("%w id %.40q: want that of a dead letter, a number", backend.ErrInvalid, r.PathValue("id")))
		return
	}
	if err := do(id); err != nil {
		s.asyncProblem(w, "", err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// isAbort reports whether what was recovered is how a handler cuts its connection.
func isAbort(recovered any) bool {
	err, ok := recovered.(error)
	return ok && errors.Is(err, http.ErrAbortHandler)
}
