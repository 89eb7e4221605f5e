package registry

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

type bench struct {
	*Registry
	root string
	db   *bbolt.DB
}

func newBench(t testing.TB, maxZip int64) *bench {
	t.Helper()
	b := &bench{root: t.TempDir()}
	b.open(t, maxZip)
	t.Cleanup(func() { b.db.Close() })
	return b
}

func (b *bench) open(t testing.TB, maxZip int64) {
	t.Helper()
	var err error
	if b.db, err = bbolt.Open(filepath.Join(b.root, "state.db"), 0o600, &bbolt.Options{Timeout: time.Second}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.root, "models")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if b.Registry, err = Open(b.db, dir, model.DefaultLimits, maxZip); err != nil {
		t.Fatal(err)
	}
}

const plenty = 1 << 20

// bundle zips files; main.py is there unless it is given.
func bundle(t fataler, files map[string]string) io.Reader {
	t.Helper()
	all := map[string]string{"main.py": echoCode}
	maps.Copy(all, files)
	return bytes.NewReader(zipped(t, all))
}

// zipped zips files; a path that ends in ! is executable.
func zipped(t fataler, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, path := range slices.Sorted(maps.Keys(files)) {
		name, executable := strings.CutSuffix(path, "!")
		header := &zip.FileHeader{Name: name, Method: zip.Deflate}
		header.SetMode(0o644)
		if executable {
			header.SetMode(0o755)
		}
		w, err := z.CreateHeader(header)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, files[path])
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (b *bench) push(t *testing.T, name string, files map[string]string) (Version, bool) {
	t.Helper()
	v, created, err := b.Push(t.Context(), name, bundle(t, files))
	if err != nil {
		t.Fatal(err)
	}
	return v, created
}

func TestSameContentIsOneVersion(t *testing.T) {
	b := newBench(t, plenty)
	first, created := b.push(t, "iris", nil)
	if !created {
		t.Error("a new version was not new")
	}
	again, created := b.push(t, "iris", nil)
	if created || again.ID != first.ID || !again.CreatedAt.Equal(first.CreatedAt) {
		t.Errorf("pushed again: created %v, %s instead of %s", created, again.ID, first.ID)
	}
	other, _ := b.push(t, "iris", map[string]string{"coefficients/w": "2"})
	if other.ID == first.ID || other.Code != first.Code {
		t.Errorf("other coefficients: %s after %s", other.ID, first.ID)
	}
	m, err := b.Get("iris")
	if err != nil || len(m.Versions) != 2 || m.Latest != other.ID {
		t.Errorf("model %+v, %v", m, err)
	}
	b.push(t, "iris", nil)
	if m, _ := b.Get("iris"); m.Latest != first.ID {
		t.Errorf("latest is %s, the last push was %s", m.Latest, first.ID)
	}
}

func TestLabelNeverChangesItsMeaning(t *testing.T) {
	b := newBench(t, plenty)
	label := map[string]string{"model.yml": "code_version: '1'\ncoefficients_version: 'a'\n", "coefficients/w": "1", "gone.txt": ""}
	b.push(t, "iris", label)
	changed := map[string]string{"model.yml": label["model.yml"], "coefficients/w": "2", "new.txt": ""}
	_, _, err := b.Push(t.Context(), "iris", bundle(t, changed))
	if !errors.Is(err, ErrConflict) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"coefficients/w changed", "gone.txt removed", "new.txt added"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	stored, err := b.Resolve(t.Context(), "iris")
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(stored.Dir, "coefficients/w")); string(got) != "1" {
		t.Errorf("the stored version now holds %q", got)
	}
}

func TestRefusedPushLeavesNothing(t *testing.T) {
	b := newBench(t, 2000)
	noise := make([]byte, 4000)
	for i := range noise {
		noise[i] = byte(i * i >> 3)
	}
	for name, c := range map[string]struct {
		zip  io.Reader
		want error
	}{
		"not a zip":  {strings.NewReader("hello"), nil},
		"empty":      {strings.NewReader(""), nil},
		"escape":     {bundle(t, map[string]string{"../x": ""}), nil},
		"no predict": {bundle(t, map[string]string{"main.py": "x = 1"}), nil},
		"too large":  {bytes.NewReader(noise), model.ErrTooLarge},
	} {
		_, _, err := b.Push(t.Context(), "iris", c.zip)
		var refused *model.RefusedError
		if !errors.As(err, &refused) || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := b.Push(t.Context(), "../iris", bundle(t, nil)); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("name: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(b.dir, incoming)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if all, _ := b.List(); len(all) != 0 {
		t.Errorf("models: %v", all)
	}
}

func TestVersionInUseCannotBeDeleted(t *testing.T) {
	b := newBench(t, plenty)
	v, _ := b.push(t, "iris", nil)
	m, err := b.Resolve(t.Context(), "registry.example/me/iris:"+v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Delete("iris", v.ID); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("delete in use: %v", err)
	}
	m.Release()
	m.Release()
	if err := b.Delete("iris", v.ID); err != nil {
		t.Error(err)
	}
	if err := b.Delete("iris", v.ID); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if _, err := os.Stat(m.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files stay: %v", err)
	}
	if _, err := b.Resolve(t.Context(), "iris"); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "push it first") {
		t.Errorf("resolve of a deleted version: %v", err)
	}
}

func TestOpenRemovesWhatWasNeverComplete(t *testing.T) {
	b := newBench(t, plenty)
	v, _ := b.push(t, "iris", nil)
	torn := b.path("iris", "torn_torn")
	unpacking := filepath.Join(b.dir, incoming, "push-1", "iris")
	for _, dir := range []string{torn, unpacking} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.db.Close()
	b.open(t, plenty)
	for _, dir := range []string{torn, unpacking} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s stays", dir)
		}
	}
	if m, err := b.Pin("iris", v.ID); err != nil {
		t.Error(err)
	} else if _, err := model.Open(m.Dir); err != nil {
		t.Error(err)
	}
}

func TestImageNames(t *testing.T) {
	for image, want := range map[string][2]string{
		"iris":                           {"iris", "latest"},
		"iris:latest":                    {"iris", "latest"},
		"iris:1.0.0_2026-11":             {"iris", "1.0.0_2026-11"},
		"registry.example:5000/me/iris":  {"iris", "latest"},
		"registry.example/me/iris:1_abc": {"iris", "1_abc"},
	} {
		if name, version, err := ParseImage(image); err != nil || name != want[0] || version != want[1] {
			t.Errorf("ParseImage(%q) = %q, %q, %v", image, name, version, err)
		}
	}
	for _, image := range []string{"", "/", "Iris", "iris:", "iris:1.0", "iris:../x_y", "iris@sha256:ab", "a/", "iris:latest:x", "..:a_b"} {
		if name, version, err := ParseImage(image); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("ParseImage(%q) = %q, %q, %v", image, name, version, err)
		}
	}
}

func FuzzParseImage(f *testing.F) {
	f.Add("registry.example:5000/me/iris:1.0.0_2026-11")
	f.Add("iris@sha256:00")
	f.Fuzz(func(t *testing.T, image string) {
		name, version, err := ParseImage(image)
		if err == nil && (!filepath.IsLocal(name) || !filepath.IsLocal(version) || strings.ContainsRune(name+version, '/')) {
			t.Errorf("ParseImage(%q) = %q, %q", image, name, version)
		}
	})
}

func TestCredentialsOutliveTheProviderAndAreNobodyElses(t *testing.T) {
	b := newBench(t, plenty)
	mine := b.Credential("iris", "1_1")
	if other := newBench(t, plenty); other.Admits(mine, "iris", "1_1") {
		t.Error("another provider takes it")
	}
	b.db.Close()
	b.open(t, plenty)
	if !b.Admits(mine, "iris", "1_1") || b.Credential("iris", "1_1") != mine {
		t.Error("it is another after a restart")
	}
	for _, of := range [][2]string{{"iris", "1_2"}, {"iri", "s1_1"}, {"rose", "1_1"}} {
		if b.Admits(mine, of[0], of[1]) {
			t.Errorf("it opens %v too", of)
		}
	}
}
