package registry

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// outside lists what is below dir and is neither a version of the model nor a blob.
func outside(t *testing.T, b *bench, dir string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	if err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		for _, inside := range []string{b.blobs.dir, filepath.Join(b.dir, "iris")} {
			if path == inside {
				return fs.SkipDir
			}
		}
		found[path] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// FuzzFileList gives the registry whatever JSON calls itself a list of files. All contents that a
// seed names are stored, so that what comes of a seed gets as far as paths can bring it.
func FuzzFileList(f *testing.F) {
	entry := func(path, sha256 string, size string) string {
		p, _ := json.Marshal(path)
		return `{"path":` + string(p) + `,"sha256":"` + sha256 + `","size":` + size + `}`
	}
	code := entry("main.py", sum(echoCode), "40")
	for _, path := range []string{"x", "a/b/c", "../x", "../../../x", "/x", "a/../../x", "a/./b", "", ".", "..", "main.py", "main.py/x", `a\..\..\x`, "a\x00b", "__pycache__/../../x", ".incoming", "x.pyc"} {
		f.Add([]byte(`[` + code + `,` + entry(path, sum("x"), "1") + `]`))
	}
	f.Add([]byte(`[` + code + `,` + entry("x", "../../../../"+sum("x")[12:], "1") + `]`))
	f.Add([]byte(`[` + code + `,` + entry("x", sum("x"), "-1") + `]`))
	f.Add([]byte(`[` + code + `,` + entry("x", sum("x"), "9223372036854775807") + `,` + entry("y", sum("x"), "9223372036854775807") + `]`))
	f.Add([]byte(`[{"path":"main.py","sha256":"` + sum(echoCode) + `","size":40,"executable":true,"coefficient":true}]`))
	f.Add([]byte(`[null]`))

	f.Fuzz(func(t *testing.T, list []byte) {
		var files []model.File
		if json.Unmarshal(list, &files) != nil {
			return
		}
		dir := t.TempDir()
		b := &bench{root: filepath.Join(dir, "a", "b", "c", "d")} // a path that leaves has where to go
		if err := os.MkdirAll(b.root, 0o755); err != nil {
			t.Fatal(err)
		}
		b.open(t, plenty)
		defer b.db.Close()
		for _, content := range []string{echoCode, "x"} {
			if _, err := b.StoreBlob(sum(content), strings.NewReader(content)); err != nil {
				t.Fatal(err)
			}
		}
		before := outside(t, b, dir)
		v, _, err := b.PushFiles(t.Context(), "iris", files)
		for path := range outside(t, b, dir) {
			if !before[path] {
				t.Errorf("the list %q made %s", list, path)
			}
		}
		if err != nil {
			return
		}
		opened, err := model.Open(b.path("iris", v.ID))
		if err != nil || opened.Version.ID != v.ID {
			t.Errorf("the list %q became a version that is not a bundle: %v", list, err)
		}
		for _, file := range v.Files {
			if !fs.ValidPath(file.Path) {
				t.Errorf("the list %q has the path %q", list, file.Path)
			}
		}
	})
}
