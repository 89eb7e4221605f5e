package api

import (
	"archive/zip"
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// pushed is a server with two versions of iris, and its registry.
func pushed(t *testing.T) (*Server, *registry.Registry, [2]string) {
	t.Helper()
	dir := t.TempDir()
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	must(t, os.Mkdir(filepath.Join(dir, "models"), 0o755))
	models, err := registry.Open(db, filepath.Join(dir, "models"), model.DefaultLimits, 1<<20)
	must(t, err)
	var ids [2]string
	for i, weights := range []string{"1", "2"} {
		var packed bytes.Buffer
		archive := zip.NewWriter(&packed)
		for name, text := range map[string]string{"main.py": "def predict(r): return r\n", "weights.bin": weights} {
			entry, err := archive.Create(name)
			must(t, err)
			_, err = io.WriteString(entry, text)
			must(t, err)
		}
		must(t, archive.Close())
		v, _, err := models.Push(t.Context(), "iris", &packed)
		must(t, err)
		ids[i] = v.ID
	}
	metrics := prometheus.NewRegistry()
	f := &fake{}
	return New(Options{
		Backend: f, Functions: f, Models: models, Gateway: gatewayOf(f, metrics), Metrics: metrics,
		Access: Access{Basic: NewCredentials("admin", "secret"), Bundles: models.Admits},
	}), models, ids
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// with asks with an Authorization header, "" for none.
func with(s http.Handler, method, target, authorization string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func TestACredentialReadsOneBundleAndNothingElse(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)
	s, models, ids := pushed(t)
	mine, other := models.Credential("iris", ids[0]), models.Credential("iris", ids[1])
	path := "/system/models/iris/versions/" + ids[0] + "/bundle"

	w := with(s, "GET", path, "Bearer "+mine)
	file := filepath.Join(t.TempDir(), "bundle.zip")
	must(t, os.WriteFile(file, w.Body.Bytes(), 0o600))
	b, err := model.Load(t.Context(), file, t.TempDir(), model.DefaultLimits)
	if err != nil || w.Code != http.StatusOK || b.Version.ID != ids[0] {
		t.Errorf("its bearer gets %d, %+v, %v", w.Code, b, err)
	}
	r := httptest.NewRequest("GET", path, nil)
	r.SetBasicAuth("admin", "secret")
	if w := httptest.NewRecorder(); true {
		if s.ServeHTTP(w, r); w.Code != http.StatusOK {
			t.Errorf("an administrator gets %d", w.Code)
		}
	}
	for name, c := range map[string]struct{ method, target, authorization string }{
		"none":                       {"GET", path, ""},
		"another version's":          {"GET", path, "Bearer " + other},
		"another model's":            {"GET", path, "Bearer " + models.Credential("rose", ids[0])},
		"a shorter one":              {"GET", path, "Bearer " + mine[:len(mine)-1]},
		"an empty one":               {"GET", path, "Bearer "},
		"as a password":              {"GET", path, "Basic " + mine},
		"the other version":          {"GET", "/system/models/iris/versions/" + ids[1] + "/bundle", "Bearer " + mine},
		"the version":                {"DELETE", "/system/models/iris/versions/" + ids[0], "Bearer " + mine},
		"to delete the bundle":       {"DELETE", path, "Bearer " + mine},
		"the models":                 {"GET", "/system/models", "Bearer " + mine},
		"the model":                  {"GET", "/system/models/iris", "Bearer " + mine},
		"its traffic":                {"GET", "/system/models/iris/traffic", "Bearer " + mine},
		"the functions":              {"GET", "/system/functions", "Bearer " + mine},
		"a path that means another":  {"GET", "/system/models/iris%2Fversions%2F" + ids[0] + "%2Fbundle", "Bearer " + mine},
		"a path that leads around":   {"GET", "/system/models/iris/versions/" + ids[0] + "/bundle/../../../traffic", "Bearer " + mine},
		"a path that goes on":        {"GET", path + "/", "Bearer " + mine},
		"a path that is not cleaned": {"GET", "/system/models/./iris/versions/" + ids[0] + "/bundle", "Bearer " + mine},
	} {
		if w := with(s, c.method, c.target, c.authorization); w.Code != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	twice := httptest.NewRequest("GET", path, nil)
	twice.Header["Authorization"] = []string{"Bearer " + mine, "Bearer " + other}
	if w := httptest.NewRecorder(); true {
		if s.ServeHTTP(w, twice); w.Code != http.StatusUnauthorized {
			t.Errorf("two credentials: %d", w.Code)
		}
	}
	if w := with(s, "GET", "/system/models/rose/versions/1_1/bundle", "Bearer "+models.Credential("rose", "1_1")); w.Code != http.StatusNotFound {
		t.Errorf("what was never pushed: %d", w.Code)
	}
	if strings.Contains(log.String(), mine) || strings.Contains(log.String(), other) {
		t.Error("a credential is in the log")
	}
}

// A reader that is still reading keeps the version from being deleted, and one that is cut off sees that it was.
func TestABundleStaysWhileItIsRead(t *testing.T) {
	s, models, ids := pushed(t)
	server := httptest.NewServer(s)
	defer server.Close()
	_, release, err := models.Bundle("iris", ids[0])
	must(t, err)
	if err := models.Delete("iris", ids[0]); err == nil || !strings.Contains(err.Error(), backend.ErrInUse.Error()) {
		t.Errorf("deleted while it is read: %v", err)
	}
	release()
	// A file that is gone is one that cannot be sent.
	pin, err := models.Pin("iris", ids[0])
	must(t, err)
	must(t, os.Remove(filepath.Join(pin.Dir, "weights.bin")))
	pin.Release()
	r, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/system/models/iris/versions/"+ids[0]+"/bundle", nil)
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+models.Credential("iris", ids[0]))
	if answer, err := http.DefaultClient.Do(r); err == nil {
		defer answer.Body.Close()
		if _, err := io.ReadAll(answer.Body); err == nil {
			t.Error("what is missing looks like all there is")
		}
	}
	must(t, models.Delete("iris", ids[0]))
}
