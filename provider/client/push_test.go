package client

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/provider/api"
	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// front is a provider's API with a registry of its own. before, if set, may answer in its place.
type front struct {
	*Client
	requests []string // method and path, blobs without their digest
	before   func(w http.ResponseWriter, r *http.Request) (answered bool)
}

// idle is a backend without functions; pushing asks it nothing else.
type idle struct{ backend.Backend }

func (idle) Running(string) []backend.TrafficStatus { return nil }

func newFront(t *testing.T) *front {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "state.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	models, err := registry.Open(db, t.TempDir(), model.DefaultLimits, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	provider := api.New(api.Options{Backend: idle{}, Models: models, Metrics: prometheus.NewRegistry()})
	f := new(front)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if r.Method == http.MethodPut && strings.HasPrefix(path, "/system/blobs/") {
			path = "blob"
		}
		f.requests = append(f.requests, r.Method+" "+path)
		if f.before == nil || !f.before(w, r) {
			provider.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	if f.Client, err = New(server.URL, nil); err != nil {
		t.Fatal(err)
	}
	return f
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for path, content := range files {
		file := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const code = "def predict(request): return request\n"

func (f *front) push(t *testing.T, bundle string) Pushed {
	t.Helper()
	f.requests = nil
	p, err := f.Push(t.Context(), bundle, "iris", nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewCoefficientsSendOnlyThemselves(t *testing.T) {
	f, dir := newFront(t), t.TempDir()
	write(t, dir, map[string]string{"main.py": code, "coefficients/w": "1", "coefficients/empty": "", "twin.txt": code})
	first := f.push(t, dir)
	if !first.Created || first.CodeSent != int64(len(code)) || first.CoefficientsSent != 1 {
		t.Errorf("first push: %+v", first)
	}
	if first.CodeBytes != 2*int64(len(code)) || len(first.Files) != 4 {
		t.Errorf("first version: %+v", first.ModelVersion)
	}
	write(t, dir, map[string]string{"coefficients/w": "22"})
	var heard []int64
	f.requests = nil
	second, err := f.Push(t.Context(), dir, "iris", func(sent, total int64) { heard = append(heard, sent, total) })
	if err != nil || !second.Created || second.CodeSent != 0 || second.CoefficientsSent != 2 {
		t.Errorf("new coefficients: %+v, %v", second, err)
	}
	if want := []string{"POST /system/blobs/missing", "PUT blob", "PUT /system/models/iris"}; !slices.Equal(f.requests, want) {
		t.Errorf("asked %v", f.requests)
	}
	if !slices.Equal(heard, []int64{2, 2}) {
		t.Errorf("progress of %v", heard)
	}
	if second.CodeNewBytes != 0 || second.CoefficientsNewBytes != 2 {
		t.Errorf("stored: %+v", second.ModelVersion)
	}
	if again := f.push(t, dir); again.Created || again.CodeSent+again.CoefficientsSent != 0 || again.ID != second.ID {
		t.Errorf("the same again: %+v", again)
	}
}

func TestZipGoesTheSameWay(t *testing.T) {
	f, dir := newFront(t), t.TempDir()
	write(t, dir, map[string]string{"main.py": code, "coefficients/w": "1"})
	unpacked := f.push(t, dir)
	b, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	zip, err := os.Create(filepath.Join(t.TempDir(), "iris.zip"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Pack(zip); err != nil {
		t.Fatal(err)
	}
	zip.Close()
	if p := f.push(t, zip.Name()); p.Zipped || p.Created || p.ID != unpacked.ID || p.CodeSent+p.CoefficientsSent != 0 {
		t.Errorf("%+v", p)
	}
}

func TestOlderProviderGetsAZip(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusMethodNotAllowed} {
		f, dir := newFront(t), t.TempDir()
		write(t, dir, map[string]string{"main.py": code, "coefficients/w": "1"})
		f.before = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/system/blobs/") {
				http.Error(w, "404 page not found", status)
				return true
			}
			return false
		}
		p := f.push(t, dir)
		if want := []string{"POST /system/blobs/missing", "PUT /system/models/iris"}; !p.Created || !p.Zipped || !slices.Equal(f.requests, want) {
			t.Errorf("%d: %+v after %v", status, p, f.requests)
		}
	}
}

func TestBlobsThatGoMeanwhileAreSentAgain(t *testing.T) {
	f, dir := newFront(t), t.TempDir()
	write(t, dir, map[string]string{"main.py": code, "coefficients/w": "1"})
	lost := 0
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		// An upload that is acknowledged and gone: what a collection between two requests looks like.
		if r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/system/blobs/") && lost < 1 {
			lost++
			w.WriteHeader(http.StatusCreated)
			return true
		}
		return false
	}
	if p := f.push(t, dir); !p.Created {
		t.Errorf("%+v", p)
	}
	if got := slices.Index(f.requests[4:], "PUT blob"); got != 0 || len(f.requests) != 6 {
		t.Errorf("asked %v", f.requests)
	}
	lost = -1000 // and never comes to an end
	write(t, dir, map[string]string{"coefficients/w": "2"})
	f.requests = nil
	if _, err := f.Push(t.Context(), dir, "iris", nil); err == nil || !strings.Contains(err.Error(), "still lacks 1 files after 3 uploads") || len(f.requests) != 7 {
		t.Errorf("%v after %v", err, f.requests)
	}
}

func TestFileThatChangesDuringThePushIsRefused(t *testing.T) {
	f, dir := newFront(t), t.TempDir()
	write(t, dir, map[string]string{"main.py": code, "coefficients/w": "1"})
	f.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/system/blobs/missing" {
			write(t, dir, map[string]string{"coefficients/w": "2"})
		}
		return false
	}
	if _, err := f.Push(t.Context(), dir, "iris", nil); err == nil || !strings.Contains(err.Error(), "is not what came") {
		t.Errorf("got %v", err)
	}
	if _, err := f.Model(t.Context(), "iris"); err == nil {
		t.Error("there is a version")
	}
}
