package model

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const entry = "def predict(request):\n    return request\n"

// write makes a bundle directory; a name that ends in * is executable.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "iris")
	for name, content := range files {
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(name, "*") {
			name, mode = strings.TrimSuffix(name, "*"), 0o755
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func opened(t testing.TB, files map[string]string) *Bundle {
	t.Helper()
	b, err := Open(write(t, files))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// item is an entry of a zip that a test makes.
type item struct {
	name, content string
	mode          fs.FileMode
	method        uint16
	modified      time.Time
}

func zipOf(t testing.TB, level int, items ...item) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "iris.zip")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	archive := zip.NewWriter(out)
	archive.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, level) })
	for _, i := range items {
		h := &zip.FileHeader{Name: i.name, Method: i.method, Modified: i.modified}
		if i.mode == 0 {
			i.mode = 0o644
		}
		h.SetMode(i.mode)
		w, err := archive.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, i.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheOriginalShapeNeedsNoManifest(t *testing.T) {
	b := opened(t, map[string]string{"main.py": entry, "requirements.txt": "numpy", "weights.npz": "w", "coefficients/a": "a", "sub/x.pkl": "p"})
	if b.Name != "iris" || b.Runtime != RuntimePython || b.Entry != "main.py" || b.StartMethod != StartFork || b.ContentType != defaultContentType {
		t.Errorf("defaults are %+v", b.Manifest)
	}
	var coefficients []string
	for _, f := range b.Files {
		if f.Coefficient {
			coefficients = append(coefficients, f.Path)
		}
	}
	if !slices.Equal(coefficients, []string{"coefficients/a", "sub/x.pkl", "weights.npz"}) {
		t.Errorf("coefficients are %v", coefficients)
	}
	if b.Version.ID != b.Version.CodeDigest[:12]+"_"+b.Version.CoefficientsDigest[:12] {
		t.Errorf("version is %+v", b.Version)
	}
	if b := opened(t, map[string]string{"main.R": "predict <- function(request) request"}); b.Runtime != RuntimeR {
		t.Errorf("runtime of main.R is %s", b.Runtime)
	}
}

func TestDigestsFollowContentAndNothingElse(t *testing.T) {
	files := map[string]string{"main.py": entry, "lib/a.py": "a = 1", "coefficients/w.bin": "weights", "run.sh*": "#!/bin/sh"}
	base := opened(t, files).Version
	changed := func(with map[string]string, without ...string) Version {
		copied := map[string]string{}
		for k, v := range files {
			copied[k] = v
		}
		for k, v := range with {
			copied[k] = v
		}
		for _, k := range without {
			delete(copied, k)
		}
		return opened(t, copied).Version
	}
	for _, c := range []struct {
		name               string
		got                Version
		code, coefficients bool // whether the digest must differ
	}{
		{"the same again", changed(nil), false, false},
		{"code", changed(map[string]string{"lib/a.py": "a = 2"}), true, false},
		{"coefficients", changed(map[string]string{"coefficients/w.bin": "other"}), false, true},
		{"a new file", changed(map[string]string{"b.py": ""}), true, false},
		{"a new coefficient", changed(map[string]string{"coefficients/v": ""}), false, true},
		{"a file less", changed(nil, "lib/a.py"), true, false},
		{"a mode bit", changed(map[string]string{"run.sh": "#!/bin/sh"}, "run.sh*"), true, false},
		{"by-products", changed(map[string]string{"__pycache__/x.pyc": "1", "lib/b.pyc": "2", ".git/HEAD": "3", ".venv/bin/python*": "4"}), false, false},
		{"a manifest", changed(map[string]string{"model.yml": "name: x\n"}), true, false},
	} {
		if (c.got.CodeDigest != base.CodeDigest) != c.code || (c.got.CoefficientsDigest != base.CoefficientsDigest) != c.coefficients {
			t.Errorf("%s: code differs %v, coefficients differ %v", c.name, c.got.CodeDigest != base.CodeDigest, c.got.CoefficientsDigest != base.CoefficientsDigest)
		}
	}
}

func TestLabelsNameAVersionAndChangeNoDigest(t *testing.T) {
	of := func(manifest string) Version {
		return opened(t, map[string]string{"main.py": entry, "model.yml": manifest}).Version
	}
	plain := of("name: iris\nstart_method: spawn\n")
	for _, manifest := range []string{
		"code_version: \"1.0.0\"\nname: iris\nstart_method: spawn\n",
		"name: iris\ncoefficients_version: 2026-11\nstart_method: spawn\n",
		"name: iris\nstart_method: spawn\ncode_version: a # why\ncoefficients_version: b\n",
		"name: iris\nstart_method: spawn\ncode_version: 'a'",
	} {
		v := of(manifest)
		if v.CodeDigest != plain.CodeDigest || v.CoefficientsDigest != plain.CoefficientsDigest {
			t.Errorf("labels change a digest in %q", manifest)
		}
	}
	if v := of("code_version: 1.0\ncoefficients_version: \"2026-11\"\n"); v.ID != "1.0_2026-11" {
		t.Errorf("version is %s", v.ID)
	}
	if of("name: iris\nstart_method: fork\n").CodeDigest == plain.CodeDigest {
		t.Error("the rest of the manifest does not count")
	}
}

func TestDigestsAreTheSameHoweverTheZipWasMade(t *testing.T) {
	dir := write(t, map[string]string{"main.py": entry, "coefficients/w.bin": strings.Repeat("weights", 500), "run.sh*": "#!/bin/sh"})
	fromDir, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	items := []item{
		{name: "main.py", content: entry},
		{name: "coefficients/", mode: fs.ModeDir | 0o755},
		{name: "coefficients/w.bin", content: strings.Repeat("weights", 500), mode: 0o600},
		{name: "run.sh", content: "#!/bin/sh", mode: 0o700},
		{name: "__MACOSX/._main.py", content: "junk"},
	}
	load := func(level int, items ...item) Version {
		b, err := Load(context.Background(), zipOf(t, level, items...), t.TempDir(), DefaultLimits)
		if err != nil {
			t.Fatal(err)
		}
		return b.Version
	}
	for n := range 4 {
		for i := range items {
			items[i].modified = time.Date(1990+n*10, 3, 4, 5, 6, 7, 0, time.UTC)
			items[i].method = []uint16{zip.Store, zip.Deflate}[n%2]
			if items[i].mode.IsDir() {
				items[i].method = zip.Store
			}
		}
		slices.Reverse(items[n:])
		if got := load([]int{1, 9, -2, 0}[n], items...); got != fromDir.Version {
			t.Errorf("zip %d: version is %+v, not %+v", n, got, fromDir.Version)
		}
	}
	var first, second bytes.Buffer
	if err := errors.Join(fromDir.Pack(&first), fromDir.Pack(&second)); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("packing twice differs (%v)", err)
	}
	packed := filepath.Join(t.TempDir(), "iris.zip")
	if err := os.WriteFile(packed, first.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := Load(context.Background(), packed, t.TempDir(), DefaultLimits); err != nil || b.Version != fromDir.Version || b.Name != "iris" {
		t.Errorf("what was packed loads as %+v, %v", b, err)
	}
}

func TestABundleThatBreaksARuleIsRefusedWithTheFileAndTheRule(t *testing.T) {
	with := func(manifest string) map[string]string {
		return map[string]string{"main.py": entry, "model.yml": manifest}
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		file  string
		rule  string
	}{
		{"nothing", map[string]string{"readme": ""}, "main.py", "is missing"},
		{"a folder too deep", map[string]string{"iris/main.py": entry}, "main.py", "pack the content of iris"},
		{"two entries", map[string]string{"main.py": entry, "main.R": "predict"}, "main.R", "one entry"},
		{"no predict", map[string]string{"main.py": "def init(): pass"}, "main.py", "does not define predict"},
		{"an unknown field", with("nane: x"), "model.yml", "nane"},
		{"an unknown field of an example", with("examples: [{request: a, respnse: b}]"), "model.yml", "respnse"},
		{"a list for a name", with("name: [a]"), "model.yml", "line 1"},
		{"no mapping", with("- a"), "model.yml", ""},
		{"no YAML", with("a: [b"), "model.yml", ""},
		{"two documents", with("name: a\n---\nname: b\n"), "model.yml", "more than one"},
		{"a field twice", with("name: a\nname: b\n"), "model.yml", "name"},
		{"a name", with("name: Iris_1"), "model.yml", `name "Iris_1"`},
		{"a long name", with("name: " + strings.Repeat("a", 64)), "model.yml", "at most 63"},
		{"a label", with("code_version: a/b"), "model.yml", "[A-Za-z0-9.-]{1,40}"},
		{"an underscore in a label", with("coefficients_version: a_b"), "model.yml", "coefficients_version"},
		{"a long label", with("code_version: " + strings.Repeat("a", 41)), "model.yml", "code_version"},
		{"a label with a newline", with("code_version: \"a\\n\""), "model.yml", "code_version"},
		{"a label in a flow", with("{name: a, code_version: b}"), "model.yml", "line of its own"},
		{"a label on two lines", with("code_version:\n  b\n"), "model.yml", "line of its own"},
		{"a runtime", with("runtime: julia"), "model.yml", "julia"},
		{"another runtime's entry", with("runtime: r\nentry: main.py"), "main.py", "runtime: r"},
		{"a start method", with("start_method: thread"), "model.yml", "thread"},
		{"a content type", with("content_type: nonsense/"), "model.yml", "nonsense"},
		{"an entry outside", with("entry: ../main.py"), "model.yml", "inside the bundle"},
		{"an entry that is not there", with("entry: app.py"), "app.py", "is not in the bundle"},
		{"an entry of no language", map[string]string{"main.jl": entry, "model.yml": "entry: main.jl"}, "main.jl", ".py or .R"},
		{"a glob", with("coefficients: ['[']"), "model.yml", "not a valid glob"},
		{"a glob outside", with("coefficients: ['../**']"), "model.yml", "inside the bundle"},
		{"a glob that matches nothing", with("coefficients: [weights/**]"), "model.yml", "matches no file"},
		{"a glob that matches code", with("coefficients: ['*.py']"), "main.py", "but is code"},
		{"a large manifest", with(strings.Repeat("#", maxManifestBytes+1)), "model.yml", "larger than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Open(write(t, c.files))
			var refusal *RefusedError
			if !errors.As(err, &refusal) || refusal.File != c.file || !strings.Contains(refusal.Rule, c.rule) {
				t.Fatalf("got %v", err)
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), os.TempDir()) {
				t.Errorf("not one sentence without a path of this machine: %q", err)
			}
		})
	}
}

func TestYAMLThatExpandsIsRefused(t *testing.T) {
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
	for n := '1'; n <= '9'; n++ {
		previous := string(n - 1)
		bomb += "a" + string(n) + ": &a" + string(n) + " [" + strings.TrimSuffix(strings.Repeat("*a"+previous+",", 9), ",") + "]\n"
	}
	began := time.Now()
	if _, err := Open(write(t, map[string]string{"main.py": entry, "model.yml": bomb})); err == nil || time.Since(began) > 5*time.Second {
		t.Errorf("a bomb of aliases gave %v after %s", err, time.Since(began))
	}
}

func TestALinkInADirectoryIsRefused(t *testing.T) {
	for _, target := range []string{"/etc/passwd", "main.py", "../../x"} {
		dir := write(t, map[string]string{"main.py": entry})
		if err := os.Symlink(target, filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		var refusal *RefusedError
		if _, err := Open(dir); !errors.As(err, &refusal) || refusal.File != "link" || !strings.Contains(refusal.Rule, "link") {
			t.Errorf("a link to %s gave %v", target, err)
		}
	}
	for _, name := range []string{"model.yml", "main.py"} {
		dir := write(t, map[string]string{"main.py": entry, "other": "name: x"})
		_ = os.Remove(filepath.Join(dir, name))
		if err := os.Symlink("other", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		var refusal *RefusedError
		if _, err := Open(dir); !errors.As(err, &refusal) {
			t.Errorf("%s that is a link gave %v", name, err)
		}
	}
}

func TestAZipThatBreaksARuleIsRefused(t *testing.T) {
	limits := Limits{MaxFiles: 5, MaxFileBytes: 3000, MaxBytes: 5000, MaxRatio: 50, RatioFloor: 1000}
	main := item{name: "main.py", content: entry}
	zeros := strings.Repeat("\x00", 2900)
	for _, c := range []struct {
		name  string
		items []item
		rule  string
		large bool
	}{
		{"leaves upwards", []item{main, {name: "../x"}}, "leaves the bundle", false},
		{"leaves in the middle", []item{main, {name: "a/../../x"}}, "leaves the bundle", false},
		{"absolute", []item{main, {name: "/etc/x"}}, "relative path", false},
		{"backslashes", []item{main, {name: `..\x`}}, "backslashes", false},
		{"a control character", []item{main, {name: "a\nb"}}, "control characters", false},
		{"a NUL", []item{main, {name: "a\x00b"}}, "control characters", false},
		{"no UTF-8", []item{main, {name: "a\xffb"}}, "UTF-8", false},
		{"a dot", []item{main, {name: "./x"}}, "leaves the bundle", false},
		{"no name", []item{main, {name: ""}}, "", false},
		{"a long path", []item{main, {name: strings.Repeat("a/", 600) + "x"}}, "1024", false},
		{"a link", []item{main, {name: "l", content: "/etc/passwd", mode: fs.ModeSymlink | 0o777}}, "is a link", false},
		{"a device", []item{main, {name: "d", mode: fs.ModeDevice | 0o600}}, "is a device", false},
		{"a pipe", []item{main, {name: "p", mode: fs.ModeNamedPipe | 0o600}}, "is a pipe", false},
		{"twice", []item{main, main}, "twice", false},
		{"a file and a folder", []item{{name: "main.py/x"}, main}, "", false},
		{"a folder and a file", []item{main, {name: "main.py/x"}}, "below a file", false},
		{"many", []item{main, {name: "1"}, {name: "2"}, {name: "3"}, {name: "4"}, {name: "5"}}, "entries", true},
		{"a large file", []item{main, {name: "x", content: strings.Repeat("x", 3001)}}, "larger than 3000", true},
		{"large together", []item{main, {name: "x", content: zeros}, {name: "y", content: zeros}}, "larger than 5000", true},
		{"a ratio", []item{main, {name: "x", content: zeros, method: zip.Deflate}}, "50 times", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "inside")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			err := Extract(context.Background(), zipOf(t, 9, c.items...), dir, limits)
			var refusal *RefusedError
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), c.rule) || errors.Is(err, ErrTooLarge) != c.large {
				t.Errorf("got %v", err)
			}
			beside, _ := os.ReadDir(filepath.Dir(dir))
			if len(beside) != 1 {
				t.Errorf("something was written beside the bundle: %v", beside)
			}
		})
	}
	junk := filepath.Join(t.TempDir(), "junk.zip")
	if err := os.WriteFile(junk, []byte("PK\x03\x04 no zip"), 0o600); err != nil {
		t.Fatal(err)
	}
	var refusal *RefusedError
	if _, err := Load(context.Background(), junk, t.TempDir(), limits); !errors.As(err, &refusal) {
		t.Errorf("junk gave %v", err)
	}
	whole, _ := os.ReadFile(zipOf(t, 9, item{name: "main.py", content: entry}))
	broken := bytes.Replace(whole, []byte("predict"), []byte("pr3dict"), 1) // the checksum no longer fits
	if err := os.WriteFile(junk, broken, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(context.Background(), junk, t.TempDir(), limits); !errors.As(err, &refusal) {
		t.Errorf("a broken checksum gave %v", err)
	}
	scratch := t.TempDir()
	if _, err := Load(context.Background(), junk, scratch, limits); err == nil {
		t.Error("loaded")
	}
	if left, _ := os.ReadDir(scratch); len(left) > 0 {
		t.Errorf("a refused zip left %v", left)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Load(ended, zipOf(t, 1, main), t.TempDir(), limits); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled load gave %v", err)
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"iris": true, "a": true, "a-b-1": true, "1": true, "": false, "-a": false, "a-": false, "A": false, "a.b": false, "a\n": false,
		strings.Repeat("a", 63): true, strings.Repeat("a", 64): false, "../x": false,
	} {
		if ValidName(name) != want {
			t.Errorf("%q is valid: %v", name, !want)
		}
	}
}

// A manifest is refused with a reason or keeps to every rule; and its labels never change its digest.
func FuzzManifest(f *testing.F) {
	for _, seed := range []string{
		"", "name: iris\n", "code_version: \"1.0\"\ncoefficients_version: b\nname: x\n", "examples:\n- {request: a, response: b}\n",
		"a: &a [*a]", "{name: a}", "---\nname: a\n...\n", "\"code_version\": x\n", "? code_version\n: x\n", "code_version: !!str 1\r\nname: x\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseManifest(raw)
		if err != nil {
			var refusal *RefusedError
			if !errors.As(err, &refusal) {
				t.Fatalf("%q gave %v", raw, err)
			}
			return
		}
		if m.Name != "" && !ValidName(m.Name) || m.ContentType == "" || m.StartMethod == "" {
			t.Fatalf("%q gave %+v", raw, m)
		}
		kept, err := withoutLabels(raw)
		if err != nil {
			return
		}
		again, err := parseManifest(kept)
		if err != nil || again.CodeVersion != "" || again.CoefficientsVersion != "" || again.Name != m.Name || again.StartMethod != m.StartMethod {
			t.Fatalf("%q less its labels is %q: %+v, %v", raw, kept, again, err)
		}
	})
}

// Whatever a zip holds, nothing is written outside the directory, and nothing but files and folders.
func FuzzExtract(f *testing.F) {
	for _, items := range [][]item{
		{{name: "main.py", content: entry}}, {{name: "../x", content: "y"}}, {{name: "a", mode: fs.ModeSymlink | 0o777, content: "/etc"}, {name: "a/b"}},
		{{name: "d/", mode: fs.ModeDir | 0o755}, {name: "d/x", content: strings.Repeat("z", 4000), method: zip.Deflate}},
	} {
		content, err := os.ReadFile(zipOf(f, 5, items...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	limits := Limits{MaxFiles: 20, MaxFileBytes: 1 << 20, MaxBytes: 1 << 20, MaxRatio: 100, RatioFloor: 1 << 16}
	f.Fuzz(func(t *testing.T, content []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "a", "b")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "x.zip")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = Extract(context.Background(), file, dir, limits)
		var size int64
		_ = filepath.WalkDir(outside, func(path string, d fs.DirEntry, _ error) error {
			inside := strings.HasPrefix(path, dir+string(filepath.Separator))
			if !inside && path != outside && path != dir && path != filepath.Dir(dir) {
				t.Errorf("wrote %s", path)
			}
			if !d.IsDir() && !d.Type().IsRegular() {
				t.Errorf("made a %s", d.Type())
			}
			if info, err := d.Info(); err == nil && d.Type().IsRegular() {
				size += info.Size()
			}
			return nil
		})
		if size > limits.MaxBytes+64<<10 {
			t.Errorf("wrote %d bytes", size)
		}
	})
}

func TestAPlainZipIsTheBundleAndNoLargerThanItsBound(t *testing.T) {
	long := strings.Repeat("a", 200) + "/" + strings.Repeat("b", 200) + "/" + strings.Repeat("c", 200) + "/" + strings.Repeat("d", 200) + "/" + strings.Repeat("e", 200)
	dir := write(t, map[string]string{"main.py": "def predict(r): return r\n", long: "x", "weights.bin": strings.Repeat("0", 1<<20)})
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var plain bytes.Buffer
	if err := b.PackPlain(&plain); err != nil {
		t.Fatal(err)
	}
	var bytes int64
	for _, f := range b.Files {
		bytes += f.Size
	}
	if size := int64(plain.Len()); size < bytes || size > PlainSize(len(b.Files), bytes) {
		t.Errorf("%d bytes for %d bytes of files; the bound is %d", size, bytes, PlainSize(len(b.Files), bytes))
	}
	file := filepath.Join(t.TempDir(), "plain.zip")
	if err := os.WriteFile(file, plain.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := Load(t.Context(), file, t.TempDir(), DefaultLimits)
	if err != nil || again.Version != b.Version {
		t.Errorf("unpacked it is %+v, %v", again, err)
	}
}
