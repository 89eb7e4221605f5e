package api

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/gateway"
	"github.com/faas-predict/faas-predict/provider/upstream"
)

// callIDHeader names a call in the caller's, the provider's and the function's logs.
const callIDHeader = "X-Call-Id"

func init() {
	// Call ids need to be unique, not secret: one read of random bytes for many of them.
	uuid.EnableRandPool()
}

// invoke carries a call to its function.
func (s *Server) invoke(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	s.metrics.inFlight.Inc()
	defer s.metrics.inFlight.Dec()

	header := r.Header
	callID := header.Get(callIDHeader)
	if callID == "" || len(callID) > 128 {
		callID = uuid.NewString()
	}
	name, path := splitPath(r.URL.EscapedPath(), functionPrefix)
	ref, err := backend.ParseRef(name, "")
	if err != nil {
		problem(w, http.StatusNotFound, callID, "there is no function "+quote(name))
		return
	}
	w.Header().Set(callIDHeader, callID) // what the function answers replaces it
	annotation, exists := s.functions.Annotation(ref, backend.AccessAnnotation)
	var call gateway.Call // only functions that exist are counted: a caller must not be able to make series
	status := http.StatusBadGateway
	if exists {
		call = s.gateway.Begin(ref, start)
		defer func() { call.End(status) }()
	}
	caller, err := s.access.caller(r, ref, annotation)
	if err != nil {
		status = refuse(w, callID, err)
		return
	}
	body, fits := s.bound(r)
	if !fits {
		status = http.StatusRequestEntityTooLarge
		s.tooLarge(w, callID)
		return
	}
	defer body.unbind(r)
	// First what was meant for this connection only: a client must not be able to name in Connection what is
	// added here.
	dropNamed(header)
	header.Set(callIDHeader, callID)
	identify(header, caller)
	forwarded(r)
	target := path
	if r.URL.RawQuery != "" {
		target += "?" + r.URL.RawQuery
	}
	status, _ = s.carry(w, r, ref, target, callID, body, call) // it has answered, whatever that was
}

// carry carries a call that may pass to its function and answers it. It returns the answer's status and what
// Forward did. The caller ends the call.
func (s *Server) carry(w http.ResponseWriter, r *http.Request, ref backend.Ref, target, callID string, body *boundedBody, call gateway.Call) (status int, err error) {
	name := ref.String()
	if ref.Namespace == backend.DefaultNamespace {
		name = ref.Name
	}
	for err = call.Enter(r.Context()); err == nil; {
		status, err = s.functions.Forward(ref, w, r, target, r.Host, r.Header)
		if err == nil || !errors.Is(err, backend.ErrScaledOff) {
			break
		}
		err = call.Wake(r.Context(), err)
	}
	switch {
	case err == nil:
	case errors.Is(err, backend.ErrNotFound):
		status = http.StatusNotFound
		problem(w, status, callID, "there is no function "+quote(name))
	case errors.Is(err, backend.ErrNoVersion):
		status = http.StatusNotFound
		problem(w, status, callID, err.Error())
	case errors.Is(err, upstream.ErrAborted):
		if r.Context().Err() == nil {
			slog.Warn("a function's answer was cut short", "function", ref.String(), "call_id", callID, "error", err)
		}
		// Cutting the connection is the one way to say that what came is not all.
		panic(http.ErrAbortHandler)
	case body.exceeded():
		status = http.StatusRequestEntityTooLarge
		s.tooLarge(w, callID)
	case errors.Is(err, upstream.ErrClientGone), errors.Is(err, gateway.ErrLeft):
		// One that only stopped sending, in the middle of its request or behind it, still reads, and must not take
		// silence for an empty answer.
		status = upstream.StatusClientGone
		problem(w, status, callID, "the caller left, or its request did not come whole")
	case errors.Is(err, gateway.ErrHeldTooMany):
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", "1")
		problem(w, status, callID, err.Error())
	case errors.Is(err, backend.ErrNotReady), errors.Is(err, backend.ErrScaledOff), errors.Is(err, gateway.ErrNotStarted):
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
		problem(w, status, callID, err.Error())
	case errors.Is(err, upstream.ErrUnreached):
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
		problem(w, status, callID, "function "+quote(name)+" does not accept calls at the moment; it did not get this one")
		slog.Warn("a function cannot be reached", "function", ref.String(), "call_id", callID, "error", err)
	default:
		status = http.StatusBadGateway
		problem(w, status, callID, "function "+quote(name)+" went away while it had this call; it may have run")
		slog.Warn("a function went away during a call", "function", ref.String(), "call_id", callID, "error", err)
	}
	return status, err
}

// splitPath takes PREFIX/NAME/PATH apart; what it returns as path begins with a slash.
func splitPath(escaped, prefix string) (name, path string) {
	rest := strings.TrimPrefix(escaped, prefix)
	name, path, _ = strings.Cut(rest, "/")
	return name, "/" + path
}

// dropNamed removes the headers that Connection names, and Connection (RFC 9110, section 7.6.1).
func dropNamed(header http.Header) {
	values := header["Connection"]
	if len(values) == 0 {
		return
	}
	for _, value := range values {
		for name := range strings.SplitSeq(value, ",") {
			header.Del(strings.TrimSpace(name))
		}
	}
	delete(header, "Connection")
}

// forwarded adds what the function could not know otherwise: who called, and by which name.
func forwarded(r *http.Request) {
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		if before := r.Header.Get("X-Forwarded-For"); before != "" {
			host = before + ", " + host
		}
		r.Header.Set("X-Forwarded-For", host)
	}
	if r.Header.Get("X-Forwarded-Host") == "" {
		r.Header.Set("X-Forwarded-Host", r.Host)
	}
	if r.TLS != nil && r.Header.Get("X-Forwarded-Proto") == "" {
		r.Header.Set("X-Forwarded-Proto", "https")
	}
}

func quote(name string) string {
	const shown = 80
	if len(name) > shown {
		name = name[:shown] + "…"
	}
	return `"` + name + `"`
}

// problem answers with RFC 9457's form, as functions themselves do.
func problem(w http.ResponseWriter, status int, callID, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set(callIDHeader, callID)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		CallID string `json:"call_id"`
	}{"about:blank", http.StatusText(status), status, detail, callID})
}
