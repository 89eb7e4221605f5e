package api

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/async"
	"github.com/faas-predict/faas-predict/provider/backend"
)

func queued(f *fake) *Server {
	metrics := prometheus.NewRegistry()
	return New(Options{
		Async:   async.New(async.Settings{MaxBodyBytes: 1 << 20}, metrics),
		Backend: f, Functions: f, Models: fakeModels{}, Gateway: gatewayOf(f, metrics), Metrics: metrics,
	})
}

func TestAPanicInAnAsynchronousCallIsItsAnswer(t *testing.T) {
	s := queued(&fake{forward: func(w http.ResponseWriter, _ *http.Request, _ string) (int, error) {
		w.WriteHeader(http.StatusOK)
		panic("on purpose")
	}})
	result := s.Execute(t.Context(), &async.Call{
		Ref: backend.Ref{Namespace: backend.DefaultNamespace, Name: "iris"}, ID: "7", Method: http.MethodPost, Target: "/", Header: http.Header{},
	})
	if result.Status != http.StatusInternalServerError || result.Final || !bytes.Contains(result.Body, []byte(`"call_id":"7"`)) {
		t.Errorf("%+v: %s", result, result.Body)
	}
}

func TestAPromisedBodyTakesNoRoomBeforeItComes(t *testing.T) {
	const promised = 8 << 20
	r := httptest.NewRequest(http.MethodPost, "/async-function/iris", bytes.NewReader([]byte("short")))
	r.ContentLength = promised
	body, err := readBody(r, promised)
	if err != nil || string(body) != "short" {
		t.Fatalf("%q %v", body, err)
	}
	if cap(body) > promised/8 {
		t.Errorf("%d bytes were taken for %d", cap(body), len(body))
	}
	long := bytes.Repeat([]byte("x"), promised)
	r = httptest.NewRequest(http.MethodPost, "/async-function/iris", bytes.NewReader(long))
	if body, err := readBody(r, promised); err != nil || !bytes.Equal(body, long) {
		t.Errorf("%d bytes: %v", len(body), err)
	}
}
