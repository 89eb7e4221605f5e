package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// archive is a layer as bytes.
func archive(entries ...tar.Header) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		content := bytes.Repeat([]byte("x"), int(e.Size))
		if err := w.WriteHeader(&e); err != nil {
			panic(err)
		}
		if _, err := w.Write(content); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// What is remembered of a layer is bounded, however little of it becomes a file.
func TestALayerOfNamesAloneIsRefused(t *testing.T) {
	var whiteouts, folders []tar.Header
	for n := range 11 {
		whiteouts = append(whiteouts, tar.Header{Name: fmt.Sprintf("%s.wh.%d", at, n), Typeflag: tar.TypeReg})
		folders = append(folders, tar.Header{Name: fmt.Sprintf("%s%d/", at, n), Typeflag: tar.TypeDir})
	}
	long := strings.Repeat("a/", 600)
	for name, c := range map[string]struct {
		layer []byte
		rule  string
	}{
		"whiteouts":               {archive(whiteouts...), "more than 10 entries"},
		"folders":                 {archive(folders...), "more than 10 entries"},
		"a whiteout's long path":  {archive(tar.Header{Name: at + long + ".wh.x", Typeflag: tar.TypeReg}), "longer than 1024"},
		"an opaque folder's path": {archive(tar.Header{Name: at + long + ".wh..wh..opq", Typeflag: tar.TypeReg}), "longer than 1024"},
		"a folder's long path":    {archive(tar.Header{Name: at + long, Typeflag: tar.TypeDir}), "longer than 1024"},
		"a file's long path":      {archive(tar.Header{Name: at + long + "x", Typeflag: tar.TypeReg}), "longer than 1024"},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := newTree(t.TempDir(), model.Limits{MaxFiles: 10, MaxFileBytes: 64, MaxBytes: 128})
			if err != nil {
				t.Fatal(err)
			}
			defer tree.close()
			var refusal *model.RefusedError
			if _, err := tree.add(t.Context(), bytes.NewReader(c.layer), Folder); !errors.As(err, &refusal) || !strings.Contains(refusal.Rule, c.rule) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Whatever two layers hold, nothing is written but plain files and folders inside the bundle's folder, and no more of
// them than the limits allow; what the upper layer has, the lower one does not change.
func FuzzLayersStayInsideTheBundle(f *testing.F) {
	file := func(name string, size int64) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: size}
	}
	f.Add(archive(file(at+"main.py", 3)), archive(file(at+"main.py", 4), file(at+"a/b/c", 1)))
	f.Add(archive(file(at+"../../../escaped", 3), file("/"+at+"/./x/../y", 1)), archive(file(at+".wh.main.py", 0)))
	f.Add(archive(file(at+".wh..wh..opq", 0), file(at+"a/.wh.b", 0)), archive(file(at+"a/b/c", 1), file("home/.wh.app", 0)))
	f.Add(archive(tar.Header{Name: at + "link", Typeflag: tar.TypeSymlink, Linkname: "/etc"}), archive(file(at+"link/passwd", 9)))
	f.Add(archive(file(at+"a", 40), file(at+"b", 41)), archive(file(at+"c/d", 70)))
	f.Add(archive(file(at+"a/b", 1)), archive(file(at+"a", 1), tar.Header{Name: at + "a/b/", Typeflag: tar.TypeDir}))
	f.Add(archive(file(at+"a\\b", 1), file(at+".wh.", 1)), []byte("no archive"))
	limits := model.Limits{MaxFiles: 10, MaxFileBytes: 64, MaxBytes: 128}
	f.Fuzz(func(t *testing.T, upper, lower []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "bundle")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		tree, err := newTree(dir, limits)
		if err != nil {
			t.Fatal(err)
		}
		defer tree.close()
		if _, err := tree.add(t.Context(), bytes.NewReader(upper), Folder); err == nil {
			before := files(t, dir)
			obey(t, before, limits)
			_, err := tree.add(t.Context(), bytes.NewReader(lower), Folder)
			after := files(t, dir)
			if err == nil {
				obey(t, after, limits)
			}
			for name, content := range before {
				if after[name] != content {
					t.Errorf("%q was %q, and a lower layer made it %q", name, content, after[name])
				}
			}
		}
		if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
			t.Errorf("beside the bundle: %v %v", entries, err)
		}
	})
}

// files are those in dir, by path.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() {
			t.Errorf("%s is a %s", path, d.Type())
		}
		content, err := os.ReadFile(path)
		out[path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func obey(t *testing.T, files map[string]string, limits model.Limits) {
	t.Helper()
	bytes := int64(0)
	for name, content := range files {
		bytes += int64(len(content))
		if int64(len(content)) > limits.MaxFileBytes {
			t.Errorf("%s has %d bytes, over the limits %+v", name, len(content), limits)
		}
	}
	if len(files) > limits.MaxFiles || bytes > limits.MaxBytes {
		t.Errorf("%d files of %d bytes, over the limits %+v", len(files), bytes, limits)
	}
}
