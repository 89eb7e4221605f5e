package api

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestProfilesAreForAdministratorsWhereTheyAreOn(t *testing.T) {
	get := func(on, admin bool, path string) *httptest.ResponseRecorder {
		f := &fake{}
		s := New(Options{Backend: f, Functions: f, Gateway: gatewayOf(f, prometheus.NewRegistry()), Models: fakeModels{}, Access: Access{Basic: NewCredentials("admin", "secret")}, Profiling: on, Metrics: prometheus.NewRegistry()})
		r := httptest.NewRequest(http.MethodGet, path, nil)
		if admin {
			r.SetBasicAuth("admin", "secret")
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w
	}
	const goroutines = "/system/debug/pprof/goroutine"
	if got := get(true, false, goroutines); got.Code != http.StatusUnauthorized {
		t.Errorf("without credentials: %d", got.Code)
	}
	if got := get(false, true, goroutines); got.Code != http.StatusNotFound || !strings.Contains(got.Body.String(), "pprof=true") {
		t.Errorf("off: %d %s", got.Code, got.Body)
	}
	if got := get(true, true, goroutines); got.Code != http.StatusOK || !bytes.HasPrefix(got.Body.Bytes(), []byte{0x1f, 0x8b}) {
		t.Errorf("on: %d, %.20q: no compressed profile", got.Code, got.Body)
	}
	if got := get(true, true, "/system/debug/pprof/"); got.Code != http.StatusOK || !strings.Contains(got.Body.String(), "goroutine?debug") {
		t.Errorf("index: %d", got.Code)
	}
	if got := get(true, true, "/system/debug/pprof/profile?seconds=1"); got.Code != http.StatusOK || got.Body.Len() == 0 {
		t.Errorf("cpu: %d", got.Code)
	}
	if got := get(true, true, "/system/debug/pprof/cmdline"); got.Code != http.StatusNotFound {
		t.Errorf("cmdline: %d", got.Code)
	}
	if got := get(true, false, "/debug/pprof/"); got.Code != http.StatusNotFound {
		t.Errorf("outside of /system: %d", got.Code)
	}
}
