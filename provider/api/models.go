package api

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/registry"
)

// ModelVersion is a version as the API shows it.
type ModelVersion struct {
	registry.Version
	State string `json:"state"` // "serving" while a function runs it, else "stored"
}

// Model is a model as the API shows it.
type Model struct {
	Name     string         `json:"name"`
	Latest   string         `json:"latest"`
	Versions []ModelVersion `json:"versions"`
}

func (s *Server) show(m registry.Model) Model {
	out := Model{Name: m.Name, Latest: m.Latest}
	for _, v := range m.Versions {
		out.Versions = append(out.Versions, s.showVersion(v))
	}
	return out
}

func (s *Server) showVersion(v registry.Version) ModelVersion {
	state := "stored"
	if s.models.InUse(v.Model, v.ID) {
		state = "serving"
	}
	return ModelVersion{v, state}
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
	answer(w, status, s.showVersion(v))
}

// isJSON tells a list of files from a zip. A zip needs no Content-Type: curl -T sends none.
func isJSON(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "application/json"
}

func (s *Server) deleteVersion(w http.ResponseWriter, r *http.Request) {
	if err := s.models.Delete(r.PathValue("name"), r.PathValue("version")); err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
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
