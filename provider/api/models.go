package api

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/registry"
)

// ModelVersion is a version as the API shows it.
type ModelVersion struct {
	registry.Version
	State  backend.State `json:"state"` // what the function does with it that does most
	Reason string        `json:"reason,omitempty"`
}

// Model is a model as the API shows it.
type Model struct {
	Name      string                  `json:"name"`
	Latest    string                  `json:"latest"`
	Versions  []ModelVersion          `json:"versions"`
	Functions []backend.TrafficStatus `json:"functions"` // those that run it
}

// precedence orders states by how much a version in them is in use.
var precedence = []backend.State{backend.Registered, backend.Failed, backend.Draining, backend.Loading, backend.Ready, backend.Active}

func (s *Server) show(m registry.Model) Model {
	out := Model{Name: m.Name, Latest: m.Latest, Functions: s.backend.Running(m.Name)}
	for _, v := range m.Versions {
		out.Versions = append(out.Versions, showVersion(v, out.Functions))
	}
	return out
}

func showVersion(v registry.Version, functions []backend.TrafficStatus) ModelVersion {
	out := ModelVersion{Version: v, State: backend.Registered}
	for _, f := range functions {
		for _, status := range f.Versions {
			if status.Model == v.Model && status.Version == v.ID &&
				slices.Index(precedence, status.State) >= slices.Index(precedence, out.State) {
				out.State, out.Reason = status.State, status.Reason
			}
		}
	}
	return out
}

func (s *Server) listModels(w http.ResponseWriter, _ *http.Request) {
	all, err := s.models.List()
	if err != nil {
		fail(w, err)
		return
	}
	out := make([]Model, 0, len(all))
	for _, m := range all {
		out = append(out, s.show(m))
	}
	answer(w, http.StatusOK, out)
}

func (s *Server) getModel(w http.ResponseWriter, r *http.Request) {
	m, err := s.models.Get(r.PathValue("name"))
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, s.show(m))
}

func (s *Server) pushModel(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if err := backend.CheckName("model", name); err != nil {
		fail(w, err)
		return
	}
	var v registry.Version
	var created bool
	var err error
	if isJSON(r) {
		v, created, err = s.pushFiles(w, r, name)
	} else {
		v, created, err = s.models.Push(r.Context(), name, &patientBody{r: r, stream: http.NewResponseController(w)})
	}
	var lacks *registry.MissingError
	if errors.As(err, &lacks) {
		answer(w, http.StatusPreconditionFailed, Missing{lacks.SHA256})
		return
	}
	if err != nil {
		fail(w, err)
		return
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	answer(w, status, showVersion(v, s.backend.Running(name)))
}

// isJSON tells a list of files from a zip. A zip needs no Content-Type: curl -T sends none.
func isJSON(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "application/json"
}

func (s *Server) deleteVersion(w http.ResponseWriter, r *http.Request) {
	name, version := r.PathValue("name"), r.PathValue("version")
	err := s.backend.Unload(r.Context(), name, version)
	if err == nil {
		err = s.models.Delete(name, version)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// getBundle streams a version. A client that is silent too long is given up, and one that is not gets all of it whatever
// write_timeout says.
func (s *Server) getBundle(w http.ResponseWriter, r *http.Request) {
	name, version := r.PathValue("name"), r.PathValue("version")
	bundle, release, err := s.models.Bundle(name, version)
	if err != nil {
		fail(w, err)
		return
	}
	defer release()
	stream := http.NewResponseController(w)
	defer func() { _ = stream.SetWriteDeadline(time.Time{}) }() // the connection may have other requests
	w.Header().Set("Content-Type", "application/zip")
	err = bundle.PackPlain(&patientAnswer{w, stream})
	if err == nil {
		err = stream.Flush()
	}
	if err != nil {
		if r.Context().Err() == nil {
			slog.Warn("a bundle was cut off", "model", name, "version", version, "error", err)
		}
		panic(http.ErrAbortHandler) // what was sent must not look like all of it
	}
}

// patientAnswer writes for as long as the client reads.
type patientAnswer struct {
	http.ResponseWriter
	stream *http.ResponseController
}

func (a *patientAnswer) Write(p []byte) (int, error) {
	_ = a.stream.SetWriteDeadline(time.Now().Add(bodyPatience))
	return a.ResponseWriter.Write(p)
}

// patientBody reads a body of any length but gives up on a client that is silent too long.
type patientBody struct {
	r      *http.Request
	stream *http.ResponseController
}

func (b *patientBody) Read(p []byte) (int, error) {
	_ = b.stream.SetReadDeadline(time.Now().Add(bodyPatience))
	n, err := b.r.Body.Read(p)
	if err != nil {
		_ = b.stream.SetReadDeadline(time.Time{})
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w request: the body did not arrive: %w", backend.ErrInvalid, err)
	}
	return n, err
}
