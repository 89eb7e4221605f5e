package api

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/gateway"
)

// alert is the receiver of Alertmanager's webhook. Alertmanager sends a call again after a 5xx, and every
// alert of it would add its step once more: so that is the answer only when nothing was done and something
// may be later. What else goes wrong is in the log, and an alert that goes on firing comes again by itself.
func (s *Server) alert(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Alerts []gateway.Alert `json:"alerts"`
	}
	err := read(w, r, &body)
	if err == nil && body.Alerts == nil {
		err = fmt.Errorf("%w request: alerts is missing", backend.ErrInvalid)
	}
	if err != nil {
		fail(w, err)
		return
	}
	var lines strings.Builder
	done, again := false, false
	for _, o := range s.gateway.Alerts(r.Context(), body.Alerts) {
		if o.Err != nil {
			again = again || o.Again()
			fmt.Fprintf(&lines, "%s: %v\n", quote(o.Function), o.Err)
			continue
		}
		done = true
		fmt.Fprintf(&lines, "%s: %d to %d replicas\n", o.Function, o.Before, o.After)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if again && !done {
		w.WriteHeader(http.StatusInternalServerError)
	}
	_, _ = w.Write([]byte(lines.String()))
}
