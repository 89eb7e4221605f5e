package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

const (
	// maxJSONBody fits a secret of the largest size in base64.
	maxJSONBody = 4 << 20
	// bodyPatience is how long a client may be silent while it sends a body.
	bodyPatience = 60 * time.Second
)

// Name is what the provider calls itself.
const Name = "faas-predict"

// fail answers with the status that the error means and its text, which clients print.
func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var refused *model.RefusedError
	var tooLong *http.MaxBytesError
	switch {
	case errors.Is(err, model.ErrTooLarge), errors.As(err, &tooLong):
		status = http.StatusRequestEntityTooLarge
	case errors.As(err, &refused), errors.Is(err, backend.ErrInvalid):
		status = http.StatusBadRequest
	case errors.Is(err, backend.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, backend.ErrExists), errors.Is(err, backend.ErrInUse), errors.Is(err, registry.ErrConflict), errors.Is(err, backend.ErrNothingBefore):
		status = http.StatusConflict
	case errors.Is(err, backend.ErrFailed):
		status = http.StatusUnprocessableEntity
	case errors.Is(err, backend.ErrNotReady):
		status = http.StatusServiceUnavailable
	default:
		slog.Error("request failed", "error", err)
	}
	http.Error(w, err.Error(), status)
}

func answer(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}

// read decodes a JSON body. Fields that are not known are let pass: clients are newer and older.
func read(w http.ResponseWriter, r *http.Request, value any) error {
	return readUpTo(w, r, maxJSONBody, value)
}

func readUpTo(w http.ResponseWriter, r *http.Request, limit int64, value any) error {
	stream := http.NewResponseController(w)
	_ = stream.SetReadDeadline(time.Now().Add(bodyPatience))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	_ = stream.SetReadDeadline(time.Time{}) // else it would end a long deployment's request
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	if err := json.Unmarshal(body, value); err != nil {
		return fmt.Errorf("%w request: the body is not the JSON that is expected: %w", backend.ErrInvalid, err)
	}
	return nil
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	if s.leaving.Load() {
		http.Error(w, "the provider is about to leave", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "OK\n")
}

func (s *Server) info(w http.ResponseWriter, _ *http.Request) {
	version := types.VersionInfo{Release: s.version}
	if s.behindGateway {
		answer(w, http.StatusOK, types.ProviderInfo{Name: Name, Version: &version, Orchestration: s.orchestration})
		return
	}
	answer(w, http.StatusOK, sdk.SystemInfo{
		Arch:     runtime.GOARCH,
		Provider: sdk.Provider{Provider: Name, Version: version, Orchestration: s.orchestration},
		Version:  version,
	})
}

func (s *Server) listFunctions(w http.ResponseWriter, r *http.Request) {
	out, err := s.backend.List(r.Context(), r.URL.Query().Get("namespace"))
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, out)
}

// createFunction answers 202, not 201: to 200 faas-cli says that the function existed, and 201 it
// takes for a failure.
func (s *Server) createFunction(w http.ResponseWriter, r *http.Request) {
	var spec types.FunctionDeployment
	err := read(w, r, &spec)
	if err == nil {
		err = s.backend.Create(r.Context(), spec)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func (s *Server) updateFunction(w http.ResponseWriter, r *http.Request) {
	var spec types.FunctionDeployment
	err := read(w, r, &spec)
	if err == nil {
		err = s.backend.Update(r.Context(), spec)
	}
	if err != nil {
		fail(w, err)
	}
}

func (s *Server) deleteFunction(w http.ResponseWriter, r *http.Request) {
	var body types.DeleteFunctionRequest
	err := read(w, r, &body)
	var ref backend.Ref
	if err == nil {
		namespace := body.Namespace
		if namespace == "" {
			namespace = r.URL.Query().Get("namespace")
		}
		ref, err = backend.ParseRef(body.FunctionName, namespace)
	}
	if err == nil {
		err = s.backend.Delete(r.Context(), ref)
	}
	if err != nil {
		fail(w, err)
		return
	}
	s.gateway.Forget(ref)
	w.WriteHeader(http.StatusAccepted)
}

func (s *Server) getFunction(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	ref, err := backend.ParseRef(r.PathValue("name"), query.Get("namespace"))
	if err != nil {
		fail(w, err)
		return
	}
	usage, _ := strconv.ParseBool(query.Get("usage"))
	out, err := s.backend.Get(r.Context(), ref, usage)
	var split backend.TrafficStatus
	if err == nil {
		split, err = s.backend.Traffic(r.Context(), ref)
	}
	if err != nil {
		fail(w, err)
		return
	}
	annotate(&out, split)
	answer(w, http.StatusOK, out)
}

func (s *Server) scaleFunction(w http.ResponseWriter, r *http.Request) {
	var body struct {
		types.ScaleServiceRequest
		Replicas *uint64 `json:"replicas"` // shadows: leaving it out must not scale to zero
	}
	err := read(w, r, &body)
	if err == nil && body.Replicas == nil {
		err = fmt.Errorf("%w request: replicas is missing", backend.ErrInvalid)
	}
	var ref backend.Ref
	if err == nil {
		namespace := body.Namespace
		if namespace == "" {
			namespace = r.URL.Query().Get("namespace")
		}
		ref, err = backend.ParseRef(r.PathValue("name"), namespace)
	}
	if err == nil {
		err = s.gateway.Scale(r.Context(), ref, *body.Replicas)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func (s *Server) listSecrets(w http.ResponseWriter, r *http.Request) {
	out, err := s.backend.ListSecrets(r.Context(), r.URL.Query().Get("namespace"))
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, out)
}

func (s *Server) createSecret(w http.ResponseWriter, r *http.Request) {
	var secret types.Secret
	err := read(w, r, &secret)
	if err == nil {
		err = s.backend.CreateSecret(r.Context(), secret)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

func (s *Server) updateSecret(w http.ResponseWriter, r *http.Request) {
	var secret types.Secret
	err := read(w, r, &secret)
	if err == nil {
		err = s.backend.UpdateSecret(r.Context(), secret)
	}
	if err != nil {
		fail(w, err)
	}
}

func (s *Server) deleteSecret(w http.ResponseWriter, r *http.Request) {
	var secret types.Secret
	err := read(w, r, &secret)
	if err == nil {
		if secret.Namespace == "" {
			secret.Namespace = r.URL.Query().Get("namespace")
		}
		err = s.backend.DeleteSecret(r.Context(), secret.Name, secret.Namespace)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func (s *Server) listNamespaces(w http.ResponseWriter, r *http.Request) {
	all, err := s.backend.ListNamespaces(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	names := make([]string, 0, len(all))
	for _, n := range all {
		names = append(names, n.Name)
	}
	answer(w, http.StatusOK, names)
}

func (s *Server) getNamespace(w http.ResponseWriter, r *http.Request) {
	all, err := s.backend.ListNamespaces(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	for _, n := range all {
		if n.Name == r.PathValue("name") {
			answer(w, http.StatusOK, n)
			return
		}
	}
	fail(w, fmt.Errorf("namespace %s %w", quote(r.PathValue("name")), backend.ErrNotFound))
}

// readNamespace decodes a namespace whose name is in the path, the body, or both alike.
func readNamespace(w http.ResponseWriter, r *http.Request) (types.FunctionNamespace, error) {
	var n types.FunctionNamespace
	if err := read(w, r, &n); err != nil {
		return n, err
	}
	inPath := r.PathValue("name")
	if n.Name == "" {
		n.Name = inPath
	}
	if inPath != "" && n.Name != inPath {
		return n, fmt.Errorf("%w namespace name: the path says %s, the body %s", backend.ErrInvalid, quote(inPath), quote(n.Name))
	}
	return n, nil
}

func (s *Server) createNamespace(w http.ResponseWriter, r *http.Request) {
	n, err := readNamespace(w, r)
	if err == nil {
		err = s.backend.CreateNamespace(r.Context(), n)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

func (s *Server) updateNamespace(w http.ResponseWriter, r *http.Request) {
	n, err := readNamespace(w, r)
	if err == nil {
		err = s.backend.UpdateNamespace(r.Context(), n)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func (s *Server) deleteNamespace(w http.ResponseWriter, r *http.Request) {
	if err := s.backend.DeleteNamespace(r.Context(), r.PathValue("name")); err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// logs streams lines of JSON in faas-provider's form. faas-provider's own handler is not used: it
// ends every stream after a fixed time, answers an unknown function with 500, and prints each
// client's coming and going.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	query, err := logQuery(r)
	if err != nil {
		fail(w, err)
		return
	}
	messages, err := s.backend.Logs(r.Context(), query)
	if err != nil {
		fail(w, err)
		return
	}
	stream := http.NewResponseController(w)
	_ = stream.SetWriteDeadline(time.Time{}) // write_timeout is not for streams
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	_ = stream.Flush()
	lines := json.NewEncoder(w)
	for message := range messages {
		// After an error the rest is read and dropped: the request's context ends it.
		if lines.Encode(message) == nil {
			_ = stream.Flush()
		}
	}
}

func logQuery(r *http.Request) (logs.Request, error) {
	values := r.URL.Query()
	q := logs.Request{Name: values.Get("name"), Namespace: values.Get("namespace"), Instance: values.Get("instance")}
	if q.Name == "" {
		return q, fmt.Errorf("%w log query: name is missing", backend.ErrInvalid)
	}
	if v := values.Get("tail"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return q, fmt.Errorf("%w log query: tail %s is not a number", backend.ErrInvalid, quote(v))
		}
		q.Tail = n
	}
	if v := values.Get("follow"); v != "" {
		follow, err := strconv.ParseBool(v)
		if err != nil {
			return q, fmt.Errorf("%w log query: follow %s is neither true nor false", backend.ErrInvalid, quote(v))
		}
		q.Follow = follow
	}
	if v := values.Get("since"); v != "" {
		at, err := time.Parse(time.RFC3339, v)
		if err != nil {
			return q, fmt.Errorf("%w log query: since %s is not an RFC 3339 time", backend.ErrInvalid, quote(v))
		}
		q.Since = &at
	}
	return q, nil
}
