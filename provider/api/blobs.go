package api

import (
	"net/http"

	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// maxListBody fits as many files as a bundle may have, with long paths.
const maxListBody = 16 << 20

// Digests is a list of SHA-256 in hex, as a client asks about them.
type Digests struct {
	SHA256 []string `json:"sha256"`
}

// Missing is the answer: those that must be uploaded.
type Missing struct {
	Missing []string `json:"missing"`
}

// FileList is a bundle whose files are named one by one. Their contents are blobs.
type FileList struct {
	Files []model.File `json:"files"`
}

func (s *Server) missingBlobs(w http.ResponseWriter, r *http.Request) {
	var asked Digests
	if err := readUpTo(w, r, maxListBody, &asked); err != nil {
		fail(w, err)
		return
	}
	missing, err := s.models.Missing(asked.SHA256)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, Missing{missing})
}

func (s *Server) putBlob(w http.ResponseWriter, r *http.Request) {
	created, err := s.models.StoreBlob(r.PathValue("sha256"), &patientBody{r: r, stream: http.NewResponseController(w)})
	if err != nil {
		fail(w, err)
		return
	}
	if created {
		w.WriteHeader(http.StatusCreated)
	}
}

// pushFiles is Push for a body that is a FileList.
func (s *Server) pushFiles(w http.ResponseWriter, r *http.Request, name string) (registry.Version, bool, error) {
	var list FileList
	if err := readUpTo(w, r, maxListBody, &list); err != nil {
		return registry.Version{}, false, err
	}
	return s.models.PushFiles(r.Context(), name, list.Files)
}
