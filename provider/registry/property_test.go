package registry

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// machine does random things to a registry and knows what should come of them.
type machine struct {
	*bench
	versions map[string]map[string]map[string]string // files by model and version
	latest   map[string]string
	blobs    map[string]bool // contents that must be there: uploaded, or used, since the last collection
}

var (
	someNames = rapid.SampledFrom([]string{"a", "a-b"})
	someCode  = rapid.SampledFrom([]string{echoCode, echoCode + "# 2\n"})
	someText  = rapid.SampledFrom([]string{"", "one", "two", echoCode})
	somePaths = rapid.SampledFrom([]string{"coefficients/w", "coefficients/deep/er/w", "run.sh", "run.sh!", "a.txt"})
)

// draw returns a bundle's files. There are few contents, so that bundles share them.
func draw(t *rapid.T) map[string]string {
	files := rapid.MapOfN(somePaths, someText, 0, 3).Draw(t, "files")
	if _, both := files["run.sh!"]; both {
		delete(files, "run.sh")
	}
	files["main.py"] = someCode.Draw(t, "code")
	if rapid.IntRange(0, 3).Draw(t, "labelled") == 0 {
		files["model.yml"] = "code_version: \"1\"\ncoefficients_version: a\n"
	}
	return files
}

// pushed checks one push against what is known, whatever way it came.
func (m *machine) pushed(t *rapid.T, name string, files map[string]string, v Version, created bool, err error) {
	id, there := m.find(name, files)
	if errors.Is(err, ErrConflict) {
		if _, labelled := files["model.yml"]; !labelled || there || m.versions[name]["1_a"] == nil {
			t.Fatalf("%s: a conflict with nothing: %v", name, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if created == there || there && v.ID != id {
		t.Fatalf("%s: created %v, version %s; it was there: %v, as %s", name, created, v.ID, there, id)
	}
	if m.versions[name] == nil {
		m.versions[name] = map[string]map[string]string{}
	}
	if other := m.versions[name][v.ID]; other != nil && !maps.Equal(other, files) {
		t.Fatalf("%s:%s has changed its meaning", name, v.ID)
	}
	m.versions[name][v.ID] = files
	m.latest[name] = v.ID
	for _, content := range files {
		m.blobs[content] = true
	}
}

func (m *machine) find(name string, files map[string]string) (id string, there bool) {
	for id, other := range m.versions[name] {
		if maps.Equal(files, other) {
			return id, true
		}
	}
	return "", false
}

func (m *machine) PushZip(t *rapid.T) {
	name, files := someNames.Draw(t, "name"), draw(t)
	v, created, err := m.Push(t.Context(), name, bytes.NewReader(zipped(t, files)))
	m.pushed(t, name, files, v, created, err)
}

// PushList uploads some of what is missing, which may be all.
func (m *machine) PushList(t *rapid.T) {
	name, files := someNames.Draw(t, "name"), draw(t)
	lacks := map[string]bool{}
	for _, content := range slices.Sorted(maps.Values(files)) {
		if rapid.IntRange(0, 4).Draw(t, "uploaded") > 0 {
			m.store(t, content)
		} else {
			lacks[sum(content)] = true
		}
	}
	for _, content := range files { // uploaded for another path
		if m.blobs[content] {
			delete(lacks, sum(content))
		}
	}
	v, created, err := m.PushFiles(t.Context(), name, list(files))
	var missing *MissingError
	if errors.As(err, &missing) {
		slices.Sort(missing.SHA256)
		if !slices.Equal(missing.SHA256, slices.Sorted(maps.Keys(lacks))) {
			t.Fatalf("missing %v, want %v", missing.SHA256, lacks)
		}
		return
	}
	if len(lacks) > 0 {
		t.Fatalf("pushed without %v: %v", lacks, err)
	}
	m.pushed(t, name, files, v, created, err)
}

func (m *machine) store(t *rapid.T, content string) {
	created, err := m.StoreBlob(sum(content), strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if created == m.blobs[content] {
		t.Fatalf("upload of %q: created %v", content, created)
	}
	m.blobs[content] = true
}

func (m *machine) Upload(t *rapid.T) { m.store(t, someText.Draw(t, "content")) }

func (m *machine) DeleteOne(t *rapid.T) {
	name := someNames.Draw(t, "name")
	ids := slices.Sorted(maps.Keys(m.versions[name]))
	if len(ids) == 0 {
		return // there is nothing to delete
	}
	id := rapid.SampledFrom(ids).Draw(t, "version")
	if err := m.Delete(name, id); err != nil {
		t.Fatal(err)
	}
	delete(m.versions[name], id)
	m.forget(t)
}

func (m *machine) CollectAll(t *rapid.T) {
	m.wantOnlyUsedBlobs(t)
	m.forget(t)
}

// forget takes what no version uses and what is not there any more off the list: whether a delete
// takes an upload with it depends on what the version had.
func (m *machine) forget(t *rapid.T) {
	used := map[string]bool{}
	for _, versions := range m.versions {
		for _, files := range versions {
			for _, content := range files {
				used[content] = true
			}
		}
	}
	for content := range m.blobs {
		missing, err := m.Missing([]string{sum(content)})
		if err != nil {
			t.Fatal(err)
		}
		if len(missing) == 0 {
			continue
		}
		if used[content] {
			t.Fatalf("%q is used and missing", content)
		}
		delete(m.blobs, content)
	}
}

func (m *machine) Reopen(t *rapid.T) {
	if err := m.db.Close(); err != nil {
		t.Fatal(err)
	}
	m.start(t)
}

func (m *machine) start(t fataler) {
	var err error
	// The disk is not what is tested here.
	if m.db, err = bbolt.Open(filepath.Join(m.root, "state.db"), 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true}); err != nil {
		t.Fatal(err)
	}
	if m.Registry, err = Open(m.db, filepath.Join(m.root, "models"), model.DefaultLimits, plenty); err != nil {
		t.Fatal(err)
	}
}

// Check holds the registry to what is known, after each step.
func (m *machine) Check(t *rapid.T) {
	for name, versions := range m.versions {
		got, err := m.Get(name)
		if (err == nil) != (len(versions) > 0) {
			t.Fatalf("%s with %d versions: %v", name, len(versions), err)
		}
		var ids []string
		for _, v := range got.Versions {
			ids = append(ids, v.ID)
			m.wantFiles(t, m.path(name, v.ID), versions[v.ID])
		}
		slices.Sort(ids)
		if !slices.Equal(ids, slices.Sorted(maps.Keys(versions))) {
			t.Fatalf("%s has %v, want %v", name, ids, versions)
		}
		if latest := m.latest[name]; versions[latest] != nil && got.Latest != latest {
			t.Fatalf("latest of %s is %s, want %s", name, got.Latest, latest)
		}
	}
	there := map[blob]bool{}
	for _, x := range m.onDisk(t) {
		there[x] = true
	}
	for _, x := range m.inRecords(t) {
		if !there[x] {
			t.Fatalf("blob %v is in a record and not on disk", x)
		}
	}
}

func TestRegistryIsWhatWasPushedLessWhatWasDeleted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp("", "registry-")
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{
			bench:    &bench{root: root},
			versions: map[string]map[string]map[string]string{}, latest: map[string]string{}, blobs: map[string]bool{},
		}
		if err := os.Mkdir(filepath.Join(root, "models"), 0o755); err != nil {
			t.Fatal(err)
		}
		m.start(t)
		defer func() {
			m.db.Close()
			os.RemoveAll(root)
		}()
		t.Repeat(map[string]func(*rapid.T){
			"push a zip": m.PushZip, "push a list": m.PushList, "upload": m.Upload, "delete": m.DeleteOne,
			"collect": m.CollectAll, "reopen": m.Reopen, "": m.Check,
		})
	})
}
