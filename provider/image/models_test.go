package image

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	containers "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/client"
	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

const (
	at   = "home/app/function/"
	code = "def predict(request):\n    return request\n"
)

// entry is an entry of a layer: a file, unless it says otherwise.
type entry struct {
	name, content string
	kind          byte
	mode          int64
}

func layer(t *testing.T, entries ...entry) v1.Layer {
	t.Helper()
	var raw bytes.Buffer
	out := tar.NewWriter(&raw)
	for _, e := range entries {
		header := &tar.Header{Name: e.name, Mode: 0o644 | e.mode, Typeflag: tar.TypeReg, Size: int64(len(e.content))}
		if e.kind != 0 {
			header.Typeflag, header.Size, header.Linkname = e.kind, 0, e.content
			e.content = ""
		}
		if err := out.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(out, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func build(t *testing.T, labels map[string]string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config.Labels = "linux", goarch, labels
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

// versionOf is the version of a bundle of these files.
func versionOf(t *testing.T, files map[string]string) model.Version {
	t.Helper()
	dir := t.TempDir()
	for path, content := range files {
		file := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b.Version
}

// store is a registry of containers that counts the bytes it gives.
type store struct {
	host string
	gave atomic.Int64
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counting) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func startStore(t *testing.T, around func(http.Handler) http.Handler) *store {
	t.Helper()
	s := &store{}
	handler := containers.New(containers.Logger(log.New(io.Discard, "", 0)))
	if around != nil {
		handler = around(handler)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(counting{w, &s.gave}, r) }))
	t.Cleanup(server.Close)
	s.host = strings.TrimPrefix(server.URL, "http://")
	return s
}

// push stores the image and returns its name.
func (s *store) push(t *testing.T, repository string, img remote.Taggable) string {
	t.Helper()
	ref, err := name.ParseReference(s.host + "/" + repository)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Push(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

func open(t *testing.T) Models {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	dir := t.TempDir()
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	models := filepath.Join(dir, "models")
	if err := os.Mkdir(models, 0o711); err != nil {
		t.Fatal(err)
	}
	limits := model.Limits{MaxFiles: 20, MaxFileBytes: 1 << 20, MaxBytes: 2 << 20, MaxRatio: 100, RatioFloor: 32 << 20}
	r, err := registry.Open(db, models, limits, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	docker, err := client.New(client.WithHost("unix://" + filepath.Join(dir, "no.sock")))
	if err != nil {
		t.Fatal(err)
	}
	return Models{Registry: r, Registries: Registries{MaxBytes: 8 << 20, Limits: limits}, Engine: Engine{Docker: docker, Limits: limits}}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(filepath.Join(dir, path))
		out[path] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The upper layer's files, and what it says was removed, count.
func TestLayersAreOverlaidAsAnEngineDoes(t *testing.T) {
	m, s := open(t), startStore(t, nil)
	ref := s.push(t, "me/iris:1", build(t, nil,
		layer(t, entry{name: at + "main.py", content: "old"}, entry{name: at + "old/a", content: "a"}, entry{name: at + "gone", content: "g"},
			entry{name: at + "below/one", content: "1"}, entry{name: at + "file-now", kind: tar.TypeDir}, entry{name: at + "file-now/x", content: "x"},
			entry{name: at + "folder-now", content: "f"}, entry{name: "etc/passwd", content: "root"}, entry{name: "usr/link", kind: tar.TypeSymlink, content: "/"}),
		layer(t, entry{name: at + ".wh.gone"}, entry{name: at + "below/.wh..wh..opq"}, entry{name: at + "below/two", content: "2"},
			entry{name: at + ".wh.old"}, entry{name: at + "file-now", content: "now"}, entry{name: at + "folder-now/y", content: "y"}),
		layer(t, entry{name: "./" + at + "main.py", content: code}, entry{name: "/" + at + "old/b", content: "b", mode: 0o111},
			entry{name: at + "__pycache__/main.pyc", content: "no part of it"}),
	))
	got, err := m.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	want := map[string]string{"main.py": code, "old/b": "b", "below/two": "2", "file-now": "now", "folder-now/y": "y"}
	if diff := cmp.Diff(want, contents(t, got.Dir)); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if info, err := os.Stat(filepath.Join(got.Dir, "old/b")); err != nil || info.Mode()&0o111 == 0 {
		t.Errorf("old/b is not executable: %v %v", info, err)
	}
	if got.Name != "iris" {
		t.Errorf("the model is %s, want the name's last part, iris", got.Name)
	}
}

// A labelled image costs the layers that its model is in, and nothing when that version is there.
func TestLabelsSpareTheBase(t *testing.T) {
	m, s := open(t), startStore(t, nil)
	base := layer(t, entry{name: "usr/lib/big", content: incompressible(1 << 20)})
	files := map[string]string{"main.py": code, "coefficients/w.json": "[1]"}
	v := versionOf(t, files)
	ref := s.push(t, "iris:1", build(t, Labels("flower", "python3", v), base,
		layer(t, entry{name: at + "main.py", content: code}), layer(t, entry{name: at + "coefficients/w.json", content: "[1]"})))
	s.gave.Store(0)
	got, err := m.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	got.Release()
	if n := s.gave.Load(); n > 100<<10 {
		t.Errorf("the registry gave %d bytes for a model of some hundred", n)
	}
	if got.Name != "flower" || got.Version != v.ID {
		t.Errorf("got %s:%s, want the labels' flower:%s", got.Name, got.Version, v.ID)
	}
	s.gave.Store(0)
	again, err := m.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	again.Release()
	if n := s.gave.Load(); n > 3<<10 {
		t.Errorf("the registry gave %d bytes for what was there", n)
	}
}

func incompressible(n int) string {
	out := make([]byte, n)
	state := uint32(1)
	for i := range out {
		state ^= state << 13
		state ^= state >> 17
		state ^= state << 5
		out[i] = byte(state)
	}
	return string(out)
}

func TestTheTagIsLookedUpAtEachDeployment(t *testing.T) {
	m, s := open(t), startStore(t, nil)
	var versions []string
	for _, content := range []string{"[1]", "[2]"} {
		ref := s.push(t, "iris:latest", build(t, nil, layer(t, entry{name: at + "main.py", content: code}, entry{name: at + "coefficients/w", content: content})))
		got, err := m.Resolve(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		got.Release()
		versions = append(versions, got.Version)
	}
	if versions[0] == versions[1] {
		t.Errorf("the new image gives the old version %s", versions[0])
	}
}

func TestAnImageForThisMachineIsTakenOfSeveral(t *testing.T) {
	m, s := open(t), startStore(t, nil)
	other := build(t, nil, layer(t, entry{name: at + "main.py", content: "other " + code}))
	mine := build(t, nil, layer(t, entry{name: at + "main.py", content: code}))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: goarch}}})
	got, err := m.Resolve(t.Context(), s.push(t, "iris:1", index))
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	if text := contents(t, got.Dir)["main.py"]; text != code {
		t.Errorf("main.py is %q, of another platform's image", text)
	}
}

// Nothing of a refused image is stored, or written outside.
func TestImagesThatBreakARuleAreRefused(t *testing.T) {
	main := entry{name: at + "main.py", content: code}
	v := versionOf(t, map[string]string{"main.py": code})
	wrong := versionOf(t, map[string]string{"main.py": code + "#"})
	many := []entry{main}
	for i := range 30 {
		many = append(many, entry{name: at + "f" + strings.Repeat("x", i), content: "x"})
	}
	for rule, c := range map[string]struct {
		image v1.Image
		says  string
	}{
		"no model":          {build(t, nil, layer(t, entry{name: "etc/passwd", content: "root"})), "build it from a template"},
		"symbolic link":     {build(t, nil, layer(t, main, entry{name: at + "l", kind: tar.TypeSymlink, content: "/etc/passwd"})), "l is a link"},
		"hard link":         {build(t, nil, layer(t, main, entry{name: at + "l", kind: tar.TypeLink, content: "etc/passwd"})), "l is a link"},
		"device":            {build(t, nil, layer(t, main, entry{name: at + "d", kind: tar.TypeChar})), "d is a link or a special file"},
		"folder is a link":  {build(t, nil, layer(t, entry{name: "home/app", kind: tar.TypeSymlink, content: "/etc"}), layer(t, main)), "/home/app is not a folder"},
		"file too large":    {build(t, nil, layer(t, main, entry{name: at + "big", content: strings.Repeat("0", 1<<20+1)})), "big is larger than 1048576 bytes"},
		"bundle too large":  {build(t, nil, layer(t, main, entry{name: at + "a", content: strings.Repeat("0", 1<<20)}, entry{name: at + "b", content: strings.Repeat("0", 1<<20)})), "larger than 2097152 bytes"},
		"too many files":    {build(t, nil, layer(t, many...)), "more than 20 entries"},
		"image too large":   {build(t, nil, layer(t, main), layer(t, entry{name: "usr/zeros", content: strings.Repeat("0", 9<<20)})), "image of more than 8388608 bytes"},
		"file twice":        {build(t, nil, layer(t, main, main)), "main.py is in one layer twice"},
		"file below a file": {build(t, nil, layer(t, main, entry{name: at + "main.py/x", content: "x"})), "main.py/x is below a file"},
		"backslash":         {build(t, nil, layer(t, main, entry{name: at + `a\b`, content: "x"})), "backslashes"},
		"labels that lie":   {build(t, Labels("iris", "python3", wrong), layer(t, main)), "its labels say version"},
		"name in labels":    {build(t, Labels("../x", "python3", v), layer(t, main)), "invalid model name"},
		"no predict":        {build(t, nil, layer(t, entry{name: at + "main.py", content: "pass\n"})), "does not define predict"},
	} {
		t.Run(rule, func(t *testing.T) {
			m, s := open(t), startStore(t, nil)
			ref := s.push(t, "iris:1", c.image)
			_, err := m.Resolve(t.Context(), ref)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want an error with %q", err, c.says)
			}
			var refused *model.RefusedError
			if !errors.Is(err, backend.ErrInvalid) && !errors.As(err, &refused) {
				t.Errorf("%v is no fault of the request", err)
			}
			if all, err := m.List(); err != nil || len(all) != 0 {
				t.Errorf("stored: %v %v", all, err)
			}
		})
	}
}

func TestAnImageOutsideTheFolderWritesNothing(t *testing.T) {
	m, s := open(t), startStore(t, nil)
	ref := s.push(t, "iris:1", build(t, nil, layer(t, entry{name: at + "main.py", content: code},
		entry{name: at + "../../../../escaped", content: "x"}, entry{name: "home/app/functionx", content: "x"})))
	got, err := m.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	if diff := cmp.Diff(map[string]string{"main.py": code}, contents(t, got.Dir)); diff != "" {
		t.Error(diff)
	}
}

func TestALabelThatComesBackWithOtherContentIsAConflict(t *testing.T) {
	m, s := open(t), startStore(t, nil)
	manifest := entry{name: at + "model.yml", content: "code_version: \"1\"\ncoefficients_version: \"1\"\n"}
	first, err := m.Resolve(t.Context(), s.push(t, "iris:1", build(t, nil, layer(t, manifest, entry{name: at + "main.py", content: code}))))
	if err != nil {
		t.Fatal(err)
	}
	first.Release()
	_, err = m.Resolve(t.Context(), s.push(t, "iris:2", build(t, nil, layer(t, manifest, entry{name: at + "main.py", content: code + "#"}))))
	if !errors.Is(err, registry.ErrConflict) {
		t.Errorf("got %v, want a conflict", err)
	}
}

func TestWhatTheRegistryAnswers(t *testing.T) {
	down := false
	s := startStore(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, password, _ := r.BasicAuth()
			switch {
			case down:
				w.WriteHeader(http.StatusNotImplemented)
			case r.Method == http.MethodGet && (user != "me" || password != "hers"):
				w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
				w.WriteHeader(http.StatusUnauthorized)
			default:
				next.ServeHTTP(w, r)
			}
		})
	})
	m := open(t)
	config := filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json")
	login := func(password string) {
		if err := os.WriteFile(config, []byte(`{"auths":{"`+s.host+`":{"username":"me","password":"`+password+`"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := m.Resolve(t.Context(), s.host+"/iris:1")
	if !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "401") {
		t.Errorf("without credentials: %v", err)
	}
	login("his")
	if _, err = m.Resolve(t.Context(), s.host+"/iris:1"); !errors.Is(err, backend.ErrInvalid) || strings.Contains(err.Error(), "his") {
		t.Errorf("with wrong credentials: %v", err)
	}
	login("hers")
	if _, err = m.Resolve(t.Context(), s.host+"/iris:1"); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "does not give it") {
		t.Errorf("an image that is not there: %v", err)
	}
	down = true
	if _, err = m.Resolve(t.Context(), s.host+"/iris:1"); !errors.Is(err, backend.ErrNotReady) {
		t.Errorf("a registry that fails: %v", err)
	}
}

// asked is a transport that goes nowhere.
type asked struct{ n int }

func (a *asked) RoundTrip(*http.Request) (*http.Response, error) {
	a.n++
	return nil, io.EOF
}

func TestWithoutTLSOnlyWhereItIsMeant(t *testing.T) {
	for url, passes := range map[string]bool{
		"https://registry.example/v2/":      true,
		"http://registry.example/v2/":       false,
		"http://10.0.0.1:5000/v2/":          false,
		"http://registry.local/v2/":         false,
		"http://localhost:5000/v2/":         true,
		"http://127.0.0.1/v2/":              true,
		"http://[::1]:5000/v2/":             true,
		"http://registry.meant:5000/v2/":    true,
		"http://registry.meant:5001/v2/":    false,
		"http://localhost.example:5000/v2/": false,
	} {
		request, err := http.NewRequest("GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		next := &asked{}
		_, err = guarded{next, []string{"registry.meant:5000"}}.RoundTrip(request)
		if (next.n == 1) != passes {
			t.Errorf("%s: passed %t, want %t", url, next.n == 1, passes)
		}
		if text := unread(name.MustParseReference("registry.example/iris"), err).Error(); !passes && !strings.Contains(text, "plain_registries") {
			t.Errorf("%s: %s", url, text)
		}
	}
}

func TestANameWithoutAHostIsAPushedModelFirst(t *testing.T) {
	m := open(t)
	if _, err := m.Resolve(t.Context(), "iris"); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "push it first") {
		t.Errorf("nothing pushed and no engine: %v", err)
	}
	v := pushFolder(t, m, "iris", code)
	for _, ref := range []string{"me/iris", "registry.example/me/iris", "registry.example/me/iris:" + v.ID} {
		got, err := m.Resolve(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		got.Release()
		if got.Version != v.ID {
			t.Errorf("%s: got %s, want %s", ref, got.Version, v.ID)
		}
	}
}

func pushFolder(t *testing.T, m Models, name, code string) registry.Version {
	t.Helper()
	var zipped bytes.Buffer
	out := zip.NewWriter(&zipped)
	file, err := out.Create("main.py")
	if err == nil {
		_, err = io.WriteString(file, code)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	v, _, err := m.Push(t.Context(), name, &zipped)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A push and a registry may both have a model of a name: what was deployed or pushed last says which latest is meant.
func TestLatestIsThePushedOneUntilAnImageCameAfterIt(t *testing.T) {
	m, s := open(t), startStore(t, nil)
	resolve := func(ref string) string {
		t.Helper()
		got, err := m.Resolve(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		got.Release()
		return got.Version
	}
	latest := s.push(t, "iris:latest", build(t, nil, layer(t, entry{name: at + "main.py", content: code + "# image"})))
	tagged := s.push(t, "iris:1.2", build(t, nil, layer(t, entry{name: at + "main.py", content: code + "# tag"})))
	pushed := pushFolder(t, m, "iris", code)
	if got := resolve(latest); got != pushed.ID {
		t.Errorf("after a push: %s, want the pushed %s", got, pushed.ID)
	}
	if got := resolve(tagged); got == pushed.ID {
		t.Errorf("a tag that is no version: got the pushed one")
	}
	if got := resolve(latest); got == pushed.ID {
		t.Errorf("after an image: got the pushed one")
	}
	pushFolder(t, m, "iris", code)
	if got := resolve(latest); got != pushed.ID {
		t.Errorf("after another push: %s, want %s", got, pushed.ID)
	}
}
