package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/faas-predict/faas-predict/auth/token"
	"github.com/faas-predict/faas-predict/watchdog/pool"
)

// problem is an error as RFC 9457 writes it.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	CallID string `json:"call_id,omitempty"`
	// Final says of one that is not ready that it never will be.
	Final bool `json:"final,omitempty"`
}

func newProblem(status int, detail string) problem {
	return problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

// statusClientGone is logged and counted for a caller that left; nobody reads it.
const statusClientGone = 499

// problemOf maps what the pool said to a status and a text for the caller.
func problemOf(err error) problem {
	var (
		raised    *pool.RaisedError
		notString *pool.NotStringError
		crash     *pool.CrashError
		notReady  *pool.NotReadyError
		refused   *token.Error
	)
	switch {
	case errors.Is(err, pool.ErrFull):
		return newProblem(http.StatusTooManyRequests, "the queue is full; try again shortly")
	case errors.Is(err, pool.ErrDraining):
		return newProblem(http.StatusServiceUnavailable, "the function is shutting down")
	case errors.Is(err, pool.ErrTimeout):
		return newProblem(http.StatusGatewayTimeout, "predict did not answer before the deadline (exec_timeout or X-Timeout)")
	case errors.As(err, &raised):
		return newProblem(http.StatusInternalServerError, "predict raised "+raised.Error())
	case errors.As(err, &notString):
		return newProblem(http.StatusInternalServerError, notString.Error())
	case errors.As(err, &crash):
		return newProblem(http.StatusBadGateway, crash.Error())
	case errors.As(err, &refused):
		return newProblem(refused.Status, refused.Description)
	case errors.As(err, &notReady):
		return newProblem(http.StatusServiceUnavailable, notReady.Reason)
	case errors.Is(err, context.Canceled):
		return newProblem(statusClientGone, "the caller left")
	}
	return newProblem(http.StatusInternalServerError, err.Error())
}

func writeProblem(w http.ResponseWriter, p problem) {
	h := w.Header()
	if ids := h["X-Call-Id"]; p.CallID == "" && len(ids) > 0 {
		p.CallID = ids[0]
	}
	body, _ := json.Marshal(p)
	h.Set("Content-Type", "application/problem+json")
	if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n'))
}
