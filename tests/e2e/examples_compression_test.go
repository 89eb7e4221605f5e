package e2e

import (
	"bytes"
	"crypto/rand"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The example of compressed storage as its README tells it: two versions of one model by their training
// sets, a store that asks with a token, a split, and a rollback.
func TestTheStoreAsksItsModelWithATokenWhicheverVersionAnswers(t *testing.T) {
	t.Parallel()
	const example = "../../examples/compression"
	dir := t.TempDir()
	store := filepath.Join(dir, "store")
	if out, err := exec.Command("go", "build", "-o", store, example+"/store").CombinedOutput(); err != nil {
		t.Fatalf("build the store: %v\n%s", err, out)
	}
	first := filepath.Join(dir, "compression")
	if err := os.CopyFS(first, os.DirFS(example+"/model")); err != nil {
		t.Fatal(err)
	}
	replace(t, filepath.Join(first, "coefficients", "codec.json"), func([]byte) []byte {
		raw, err := os.ReadFile(example + "/documents/codec.json")
		if err != nil {
			t.Fatal(err)
		}
		return raw
	})
	replace(t, filepath.Join(first, "model.yml"), func(raw []byte) []byte {
		return bytes.Replace(raw, []byte(`"system"`), []byte(`"documents"`), 1)
	})
	files, want := storedFiles(t)

	p := startProvider(t)
	p.push("compression", first)
	p.deployWith("compression", tokenFor, nil)
	p.push("compression", example+"/model")
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(p.register("store", "--functions", "openfaas-fn:compression")), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(store, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("store %s: %v\n%s", args, err, out)
		}
		return string(out)
	}
	data := filepath.Join(dir, "data")
	put := func() string {
		t.Helper()
		out := run("put", "--store", data, "--gateway", p.url(""), "--secret-file", secret, files)
		if strings.Contains(out, "no model answered") {
			t.Fatalf("%s", out)
		}
		return out
	}
	const one, two = "1.0.0_documents", "1.0.0_system"
	if out := put(); !strings.Contains(out, one) || strings.Contains(out, two) {
		t.Errorf("the first version was deployed, and %s", out)
	}
	for _, step := range []struct{ command, versions []string }{
		{[]string{"traffic", "compression", one + "=50", two + "=50"}, []string{one, two}},
		{[]string{"traffic", "compression", two + "=100"}, []string{two}},
		{[]string{"rollback", "compression"}, []string{one, two}},
	} {
		if out, err := p.run(step.command...); err != nil {
			t.Fatalf("%s: %v\n%s", step.command, err, out)
		}
		answered := ""
		for range 64 { // a version with half of the calls is missed by all of them with 2^-63
			answered += put()
			if slices.ContainsFunc(step.versions, func(v string) bool { return !strings.Contains(answered, v) }) {
				continue
			}
			break
		}
		for _, version := range []string{one, two} {
			if strings.Contains(answered, version) != slices.Contains(step.versions, version) {
				t.Errorf("after %s: %s", step.command, answered)
			}
		}
	}
	if out := run("verify", "--store", data); !strings.Contains(out, "all as they were") {
		t.Errorf("%s", out)
	}
	to := filepath.Join(dir, "to")
	run("restore", "--store", data, "--to", to)
	for path, raw := range want {
		if got, err := os.ReadFile(filepath.Join(to, path)); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: %d bytes came back as %d: %v", path, len(raw), len(got), err)
		}
	}
	p.wantStatus(http.StatusUnauthorized, "compression", "")
}

func replace(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(raw), 0o644); err != nil {
		t.Fatal(err)
	}
}

// storedFiles is a directory with text, code, a program and noise, and what is in its files.
func storedFiles(t *testing.T) (dir string, want map[string][]byte) {
	t.Helper()
	dir, want = t.TempDir(), map[string][]byte{}
	if err := os.CopyFS(filepath.Join(dir, "docs"), os.DirFS("../../docs")); err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 300<<10)
	_, _ = rand.Read(noise)
	program, err := os.ReadFile(built.fwatchdog)
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"noise": noise, "program": program[:min(len(program), 1<<20)], "empty": {}} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		want[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir, want
}
