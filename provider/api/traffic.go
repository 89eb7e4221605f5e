package api

import (
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// functionOf reads which function a traffic route is about: a model's traffic is that of the function
// of the same name.
func functionOf(r *http.Request) (backend.Ref, error) {
	return backend.ParseRef(r.PathValue("name"), r.URL.Query().Get("namespace"))
}

func (s *Server) getTraffic(w http.ResponseWriter, r *http.Request) {
	ref, err := functionOf(r)
	var out backend.TrafficStatus
	if err == nil {
		out, err = s.backend.Traffic(r.Context(), ref)
	}
	s.answerTraffic(w, out, err)
}

func (s *Server) setTraffic(w http.ResponseWriter, r *http.Request) {
	ref, err := functionOf(r)
	var split traffic.Split
	if err == nil {
		err = read(w, r, &split)
	}
	var out backend.TrafficStatus
	if err == nil {
		out, err = s.backend.SetTraffic(r.Context(), ref, split)
	}
	s.answerTraffic(w, out, err)
}

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) {
	ref, err := functionOf(r)
	var out backend.TrafficStatus
	if err == nil {
		out, err = s.backend.Rollback(r.Context(), ref)
	}
	s.answerTraffic(w, out, err)
}

func (s *Server) answerTraffic(w http.ResponseWriter, out backend.TrafficStatus, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, out)
}

// Annotations that describing a function adds to those it was deployed with.
const (
	splitStatus    = "faas-predict.status.split"
	mirrorStatus   = "faas-predict.status.mirror"
	rolloutStatus  = "faas-predict.status.rollout"
	versionsStatus = "faas-predict.status.versions"
)

// annotate adds what a function's versions do, for clients that know no route but the standard one.
// Listing functions does not: it returns what was deployed, which clients compare with a stack.yml.
func annotate(f *types.FunctionStatus, t backend.TrafficStatus) {
	out := map[string]string{}
	if f.Annotations != nil {
		maps.Copy(out, *f.Annotations)
	}
	out[splitStatus] = t.String()
	if t.Mirror != "" {
		out[mirrorStatus] = t.Mirror
	}
	if t.RolloutNote != "" {
		out[rolloutStatus] = t.RolloutNote
	}
	versions := make([]string, 0, len(t.Versions))
	for _, v := range t.Versions {
		text := fmt.Sprintf("%s %s", v.Version, v.State)
		if v.Reason != "" {
			reason, _, _ := strings.Cut(v.Reason, "\n")
			text += " (" + reason + ")"
		}
		versions = append(versions, text)
	}
	out[versionsStatus] = strings.Join(versions, "; ")
	f.Annotations = &out
}
