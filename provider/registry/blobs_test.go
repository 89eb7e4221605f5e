package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

func sum(content string) string {
	s := sha256.Sum256([]byte(content))
	return hex.EncodeToString(s[:])
}

const echoCode = "def predict(request):\n    return request\n"

// list names files as a push client does; a path that ends in ! is executable. main.py is there
// unless it is given.
func list(files map[string]string) []model.File {
	all := map[string]string{"main.py": echoCode}
	maps.Copy(all, files)
	var out []model.File
	for _, path := range slices.Sorted(maps.Keys(all)) {
		name, executable := strings.CutSuffix(path, "!")
		out = append(out, model.File{Path: name, Executable: executable, Size: int64(len(all[path])), SHA256: sum(all[path])})
	}
	return out
}

// upload stores the contents of what list names, where they are missing, and returns how many were.
func (b *bench) upload(t *testing.T, files map[string]string) int {
	t.Helper()
	sent := 0
	for _, content := range append(slices.Collect(maps.Values(files)), echoCode) {
		created, err := b.StoreBlob(sum(content), strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		if created {
			sent++
		}
	}
	return sent
}

// later is when grace has passed for everything that was stored until now.
func later() time.Time { return time.Now().Add(grace + time.Minute) }

func (b *bench) reopen(t *testing.T) {
	t.Helper()
	b.db.Close()
	b.open(t, b.maxZip)
}

// onDisk returns the blobs that are stored, after holding each to its name and mode.
func (b *bench) onDisk(t fataler) []blob {
	t.Helper()
	var out []blob
	err := filepath.WalkDir(filepath.Join(b.dir, stored), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		digest, executable := strings.CutSuffix(entry.Name(), executableSuffix)
		x := blob{digest, executable}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if sum(string(content)) != digest || info.Mode() != x.mode() {
			return fmt.Errorf("blob %s has the content %.20q and mode %s", entry.Name(), content, info.Mode())
		}
		out = append(out, x)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(out, compareBlobs)
	return out
}

// inRecords returns the blobs that records name.
func (b *bench) inRecords(t fataler) []blob {
	t.Helper()
	all := map[blob]bool{}
	if err := b.each(nil, func(v Version) error {
		for _, f := range v.Files {
			all[blobOf(f)] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return slices.SortedFunc(maps.Keys(all), compareBlobs)
}

func compareBlobs(a, b blob) int {
	return strings.Compare(fmt.Sprint(a.sha256, a.executable), fmt.Sprint(b.sha256, b.executable))
}

// fataler is what testing.T and rapid.T share.
type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func (b *bench) wantOnlyUsedBlobs(t fataler) {
	t.Helper()
	b.blobs.collect(later())
	if there, used := b.onDisk(t), b.inRecords(t); !slices.Equal(there, used) {
		t.Fatalf("blobs on disk %v, in records %v", there, used)
	}
}

func (b *bench) inode(t *testing.T, path string) uint64 {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s.Ino
}

func TestSharedFilesAreStoredOnce(t *testing.T) {
	b := newBench(t, plenty)
	big := strings.Repeat("w", 1000)
	first, _ := b.push(t, "iris", map[string]string{"coefficients/w": big, "run.sh": "x"})
	if first.CodeNewBytes != int64(len(echoCode)+1) || first.CoefficientsNewBytes != 1000 || first.Bytes != first.CodeBytes+first.CoefficientsBytes {
		t.Errorf("first version: %+v", first)
	}
	second, _ := b.push(t, "iris", map[string]string{"coefficients/w": "other", "run.sh": "x"})
	if second.CodeNewBytes != 0 || second.CoefficientsNewBytes != 5 || second.CodeBytes != first.CodeBytes {
		t.Errorf("new coefficients stored again: %+v", second)
	}
	elsewhere, _ := b.push(t, "tulip", map[string]string{"coefficients/a": big, "coefficients/b": big})
	if elsewhere.CoefficientsNewBytes != 0 || elsewhere.CoefficientsBytes != 2000 {
		t.Errorf("another model's same files stored again: %+v", elsewhere)
	}
	want := b.inode(t, filepath.Join(b.path("iris", first.ID), "coefficients/w"))
	for _, file := range []string{"coefficients/a", "coefficients/b"} {
		if got := b.inode(t, filepath.Join(b.path("tulip", elsewhere.ID), file)); got != want {
			t.Errorf("%s is a file of its own", file)
		}
	}
	if got := b.inode(t, filepath.Join(b.path("iris", first.ID), "main.py")); got != b.inode(t, filepath.Join(b.path("iris", second.ID), "main.py")) {
		t.Error("the code of two versions is two files")
	}
	// Deleting one of them takes nothing from the others.
	if err := b.Delete("iris", first.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := model.Open(b.path("tulip", elsewhere.ID)); err != nil || got.Version.ID != elsewhere.ID {
		t.Errorf("after a delete elsewhere: %v", err)
	}
	if there, used := b.onDisk(t), b.inRecords(t); !slices.Equal(there, used) {
		t.Errorf("after a delete, without any grace: blobs %v, in records %v", there, used)
	}
}

func TestListAndZipAreOneVersion(t *testing.T) {
	b := newBench(t, plenty)
	files := map[string]string{"coefficients/w": "1", "a/b/c.py": "2"}
	zipped, _ := b.push(t, "iris", files)
	b.upload(t, files)
	listed, created, err := b.PushFiles(t.Context(), "iris", list(files))
	if err != nil || created || listed.ID != zipped.ID {
		t.Fatalf("%s after %s, created %v, %v", listed.ID, zipped.ID, created, err)
	}
	alone, created, err := b.PushFiles(t.Context(), "tulip", list(files))
	if err != nil || !created || alone.ID != zipped.ID {
		t.Fatalf("%s after %s, created %v, %v", alone.ID, zipped.ID, created, err)
	}
	if got, err := os.ReadFile(filepath.Join(b.path("tulip", alone.ID), "a/b/c.py")); err != nil || string(got) != "2" {
		t.Errorf("assembled %q, %v", got, err)
	}
}

func TestListNamesWhatIsMissing(t *testing.T) {
	b := newBench(t, plenty)
	files := map[string]string{"coefficients/w": "1", "coefficients/v": "1", "x.py": "2"}
	if created, err := b.StoreBlob(sum("2"), strings.NewReader("2")); err != nil || !created {
		t.Fatal(created, err)
	}
	_, _, err := b.PushFiles(t.Context(), "iris", list(files))
	var missing *MissingError
	if !errors.As(err, &missing) || !slices.Equal(missing.SHA256, []string{sum("1"), sum(echoCode)}) {
		t.Fatalf("missing %v, %v", missing, err)
	}
	asked, err := b.Missing([]string{sum("2"), sum("1"), sum("1"), sum(echoCode)})
	if err != nil || !slices.Equal(asked, missing.SHA256) {
		t.Errorf("asked: %v, %v", asked, err)
	}
	if all, _ := b.List(); len(all) != 0 {
		t.Errorf("models: %v", all)
	}
	if left, _ := os.ReadDir(filepath.Join(b.dir, incoming)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if sent := b.upload(t, files); sent != 2 {
		t.Errorf("%d blobs were new", sent)
	}
	if _, created, err := b.PushFiles(t.Context(), "iris", list(files)); err != nil || !created {
		t.Error(created, err)
	}
}

func TestListIsRefusedForWhatAZipIsRefusedFor(t *testing.T) {
	b := newBench(t, plenty)
	for want, change := range map[string]func([]model.File) []model.File{
		`"../x" leaves the bundle`:     func(l []model.File) []model.File { l[0].Path = "../x"; return l },
		"main.py is missing":           func(l []model.File) []model.File { l[0].Path = "app.py"; return l },
		"has 41 bytes; the list says":  func(l []model.File) []model.File { l[0].Size++; return l },
		"main.py is in the list twice": func(l []model.File) []model.File { return append(l, l[0]) },
	} {
		b.upload(t, nil)
		_, _, err := b.PushFiles(t.Context(), "iris", change(list(nil)))
		var refusal *model.RefusedError
		if !errors.As(err, &refusal) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if _, _, err := b.PushFiles(t.Context(), "../iris", list(nil)); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("name: %v", err)
	}
	b.limits.MaxFiles = 1
	if _, _, err := b.PushFiles(t.Context(), "iris", list(map[string]string{"x": ""})); !errors.Is(err, model.ErrTooLarge) {
		t.Errorf("too many: %v", err)
	}
	if _, err := b.Missing([]string{sum("1"), sum("2")}); !errors.Is(err, model.ErrTooLarge) {
		t.Errorf("too many asked for: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(b.dir, incoming)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestListWithAReusedLabelSaysWhatDiffers(t *testing.T) {
	b := newBench(t, plenty)
	label := map[string]string{"model.yml": "code_version: '1'\ncoefficients_version: 'a'\n", "coefficients/w": "1"}
	b.push(t, "iris", label)
	label["coefficients/w"] = "2"
	b.upload(t, label)
	_, _, err := b.PushFiles(t.Context(), "iris", list(label))
	if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "coefficients/w changed") {
		t.Errorf("got %v", err)
	}
}

func TestBlobIsWhatItsNameSays(t *testing.T) {
	b := newBench(t, 10)
	var refusal *model.RefusedError
	_, err := b.StoreBlob(sum("a"), strings.NewReader("b"))
	if !errors.As(err, &refusal) || !strings.Contains(err.Error(), sum("a")) || !strings.Contains(err.Error(), sum("b")) {
		t.Errorf("other content: %v", err)
	}
	if _, err := b.StoreBlob(sum("12345678901"), strings.NewReader("12345678901")); !errors.Is(err, model.ErrTooLarge) {
		t.Errorf("over the limit: %v", err)
	}
	torn := errors.New("torn")
	if _, err := b.StoreBlob(sum("abc"), &tornReader{"ab", torn}); !errors.Is(err, torn) {
		t.Errorf("torn: %v", err)
	}
	for _, digest := range []string{"", "../../etc/passwd", strings.ToUpper(sum("a")), sum("a") + ".x", strings.Repeat("g", 64)} {
		if _, err := b.StoreBlob(digest, strings.NewReader("a")); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("digest %q: %v", digest, err)
		}
		if _, err := b.Missing([]string{digest}); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("digest %q: %v", digest, err)
		}
	}
	left, _ := os.ReadDir(filepath.Join(b.dir, incoming))
	if there := b.onDisk(t); len(left)+len(there) != 0 {
		t.Errorf("left %v and %v", left, there)
	}
	if created, err := b.StoreBlob(sum("1234567890"), strings.NewReader("1234567890")); err != nil || !created {
		t.Errorf("at the limit: %v, %v", created, err)
	}
	if created, err := b.StoreBlob(sum("1234567890"), &tornReader{"", torn}); err != nil || created {
		t.Errorf("what is there was read again: %v, %v", created, err)
	}
}

type tornReader struct {
	text string
	err  error
}

func (r *tornReader) Read(p []byte) (int, error) {
	if r.text == "" {
		return 0, r.err
	}
	n := copy(p, r.text)
	r.text = r.text[n:]
	return n, nil
}

func TestUploadedBlobsWaitForTheirPush(t *testing.T) {
	b := newBench(t, plenty)
	store := func(content string) {
		t.Helper()
		if _, err := b.StoreBlob(sum(content), strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	missing := func(content string) bool {
		t.Helper()
		out, err := b.Missing([]string{sum(content)})
		if err != nil {
			t.Fatal(err)
		}
		return len(out) == 1
	}
	store("young")
	b.collect()
	b.reopen(t)
	if missing("young") {
		t.Error("a blob was collected before its push could come")
	}
	release := b.blobs.hold([]string{sum("young")})
	b.blobs.collect(later())
	if missing("young") {
		t.Error("a blob was collected while a push held it")
	}
	release()
	b.blobs.collect(later())
	if !missing("young") {
		t.Error("a blob that nobody pushes stays")
	}
	// The age counts from the last time that somebody asked, also after a restart.
	store("old")
	age := time.Now().Add(-2 * grace)
	if err := os.Chtimes(b.blobs.path(blob{sha256: sum("old")}), age, age); err != nil {
		t.Fatal(err)
	}
	if missing("old") {
		t.Fatal("not stored")
	}
	b.reopen(t)
	if missing("old") {
		t.Error("a blob that was asked for was collected")
	}
	if err := os.Chtimes(b.blobs.path(blob{sha256: sum("old")}), age, age); err != nil {
		t.Fatal(err)
	}
	b.reopen(t)
	if there := b.onDisk(t); len(there) != 0 {
		t.Errorf("old blobs survive Open: %v", there)
	}
}

func TestExecutableIsAnotherBlobOfTheSameContent(t *testing.T) {
	b := newBench(t, plenty)
	plain, script := map[string]string{"run.sh": "#!"}, map[string]string{"run.sh!": "#!"}
	b.upload(t, plain)
	v, _, err := b.PushFiles(t.Context(), "iris", list(script))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(b.path("iris", v.ID), "run.sh")); err != nil || info.Mode() != 0o555 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	if there, used := b.onDisk(t), b.inRecords(t); !slices.Equal(there, used) {
		t.Errorf("the upload stays beside its executable copy: %v, %v in records", there, used)
	}
	if sent := b.upload(t, plain); sent != 0 {
		t.Errorf("%d uploads of content that is there as an executable", sent)
	}
	w, _, err := b.PushFiles(t.Context(), "iris", list(plain))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(b.path("iris", w.ID), "run.sh")); err != nil || info.Mode() != 0o444 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Join(b.path("iris", v.ID), "run.sh")); err != nil || info.Mode() != 0o555 {
		t.Errorf("the first version's file changed: %v, %v", info.Mode(), err)
	}
	b.wantOnlyUsedBlobs(t)
}

func TestFileSystemWithoutLinksGetsCopies(t *testing.T) {
	for _, refusal := range []error{unix.EMLINK, unix.EXDEV, unix.EPERM} {
		b := newBench(t, plenty)
		b.blobs.link = func(old, new string) error { return &os.LinkError{Op: "link", Old: old, New: new, Err: refusal} }
		v, _ := b.push(t, "iris", map[string]string{"coefficients/w": "1"})
		file := filepath.Join(b.path("iris", v.ID), "coefficients/w")
		if got, err := os.ReadFile(file); err != nil || string(got) != "1" {
			t.Errorf("%v: %q, %v", refusal, got, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o444 {
			t.Errorf("%v: %v, %v", refusal, info, err)
		}
		if err := b.Delete("iris", v.ID); err != nil {
			t.Error(err)
		}
		b.wantOnlyUsedBlobs(t)
	}
}

func TestDamagedBlobIsReplacedNotUsed(t *testing.T) {
	b := newBench(t, plenty)
	files := map[string]string{"coefficients/w": "right"}
	damage := func() {
		t.Helper()
		file := b.blobs.path(blob{sha256: sum("right")})
		if err := os.Remove(file); err != nil { // another inode: versions that are stored keep theirs
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("wrong"), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	b.push(t, "a", files)
	damage()
	_, _, err := b.PushFiles(t.Context(), "b", list(files))
	var missing *MissingError
	if !errors.As(err, &missing) || !slices.Equal(missing.SHA256, []string{sum("right")}) {
		t.Fatalf("a version was made of a damaged blob: %v", err)
	}
	b.upload(t, files)
	if _, created, err := b.PushFiles(t.Context(), "b", list(files)); err != nil || !created {
		t.Error(created, err)
	}
	damage()
	v, _ := b.push(t, "c", files)
	if got, _ := os.ReadFile(filepath.Join(b.path("c", v.ID), "coefficients/w")); string(got) != "right" {
		t.Errorf("a zip's version has %q", got)
	}
	b.wantOnlyUsedBlobs(t)
}

// plainVersion makes the version what it was before there were blobs: files of its own and a record
// without the halves' sizes.
func (b *bench) plainVersion(t *testing.T, v Version) {
	t.Helper()
	for _, f := range v.Files {
		file := filepath.Join(b.path(v.Model, v.ID), f.Path)
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v.CodeBytes, v.CodeNewBytes, v.CoefficientsBytes, v.CoefficientsNewBytes = 0, 0, 0, 0
	if err := b.save(v); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(b.blobs.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.blobs.dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestVersionsFromBeforeBlobsAreShared(t *testing.T) {
	b := newBench(t, plenty)
	files := map[string]string{"coefficients/w": "1"}
	v, _ := b.push(t, "iris", files)
	b.plainVersion(t, v)
	b.reopen(t)
	m, err := b.Get("iris")
	if err != nil || m.Versions[0].CodeBytes != int64(len(echoCode)) || m.Versions[0].CoefficientsNewBytes != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	if missing, err := b.Missing([]string{sum("1"), sum(echoCode)}); err != nil || len(missing) != 0 {
		t.Errorf("what an old version has is asked for again: %v, %v", missing, err)
	}
	again, created, err := b.PushFiles(t.Context(), "iris", list(files))
	if err != nil || created || again.ID != v.ID {
		t.Errorf("the same content: %v, %v, %v", again.ID, created, err)
	}
	if _, _, err := b.PushFiles(t.Context(), "tulip", list(files)); err != nil {
		t.Error(err)
	}
	b.wantOnlyUsedBlobs(t)
	if err := b.Delete("iris", v.ID); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete("tulip", v.ID); err != nil {
		t.Fatal(err)
	}
	if there := b.onDisk(t); len(there) != 0 {
		t.Errorf("left: %v", there)
	}
}

func TestFilesWithoutRecordDoNotKeepAPushFromComing(t *testing.T) {
	b := newBench(t, plenty)
	v, _ := b.push(t, "iris", nil)
	if err := b.Delete("iris", v.ID); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(b.path("iris", v.ID), "main.py")
	if err := os.MkdirAll(filepath.Dir(stale), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stale, []byte("half a"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.push(t, "iris", nil)
	if got, _ := os.ReadFile(stale); string(got) != echoCode {
		t.Errorf("the version has %q", got)
	}
}

// TestCollectionNeverTakesWhatAPushNeeds lets pushes that share files, deletes and collections
// without any grace meet.
func TestCollectionNeverTakesWhatAPushNeeds(t *testing.T) {
	b := newBench(t, plenty)
	done := make(chan struct{})
	var collector, pushers sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				b.blobs.collect(later())
			}
		}
	})
	for i := range 4 {
		pushers.Go(func() {
			name := fmt.Sprintf("m%d", i)
			for round := range 15 {
				files := map[string]string{"coefficients/w": fmt.Sprint(round % 3), "run.sh!": "#!"}
				var v Version
				var err error
				if i%2 == 0 {
					v, _, err = b.Push(t.Context(), name, bundle(t, map[string]string{"coefficients/w": fmt.Sprint(round % 3)}))
				} else {
					v, err = b.pushPatiently(t, name, files)
				}
				if err != nil {
					t.Errorf("push: %v", err)
					return
				}
				if got, err := model.Open(b.path(name, v.ID)); err != nil || got.Version.ID != v.ID {
					t.Errorf("pushed, and now: %v", err)
				}
				if round%2 == 0 {
					if err := b.Delete(name, v.ID); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	pushers.Wait()
	close(done)
	collector.Wait()
	b.wantOnlyUsedBlobs(t)
}

// pushPatiently uploads and pushes until no collection comes between: here they give no grace.
func (b *bench) pushPatiently(t *testing.T, name string, files map[string]string) (v Version, err error) {
	for range 10_000 {
		b.upload(t, files)
		var missing *MissingError
		if v, _, err = b.PushFiles(t.Context(), name, list(files)); !errors.As(err, &missing) {
			return v, err
		}
	}
	return v, err
}

func TestUploadsOfTheSameBlobDoNotDisturbEachOther(t *testing.T) {
	b := newBench(t, plenty)
	content := bytes.Repeat([]byte("x"), 100_000)
	digest := sum(string(content))
	var uploads sync.WaitGroup
	for range 8 {
		uploads.Go(func() {
			if _, err := b.StoreBlob(digest, bytes.NewReader(content)); err != nil {
				t.Error(err)
			}
		})
	}
	uploads.Wait()
	if there := b.onDisk(t); !slices.Equal(there, []blob{{digest, false}}) {
		t.Errorf("stored: %v", there)
	}
}
