package bundle

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// others are container images, of which there are none on Docker Hub.
type others struct{}

func (others) Inspect(_ context.Context, image string) (cluster.Image, error) {
	if !strings.Contains(image, "/") {
		return cluster.Image{}, fmt.Errorf("%w image %s: the registry does not give it", backend.ErrInvalid, image)
	}
	return cluster.Image{Ref: image + "@sha256:x", Model: "iris", Version: "9_9"}, nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func images(t *testing.T) Images {
	t.Helper()
	dir := t.TempDir()
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	must(t, os.Mkdir(filepath.Join(dir, "models"), 0o755))
	r, err := registry.Open(db, filepath.Join(dir, "models"), model.DefaultLimits, 1<<20)
	must(t, err)
	return Images{Registry: r, Others: others{}, Runtimes: map[string]string{"python3": "runtime-python3", "r": "runtime-r"}, Served: true}
}

// push pushes a version whose coefficients have the label.
func push(t *testing.T, i Images, name, label string, files map[string]string) registry.Version {
	t.Helper()
	var packed bytes.Buffer
	archive := zip.NewWriter(&packed)
	files["model.yml"] = "code_version: \"1\"\ncoefficients_version: \"" + label + "\"\n"
	files["weights.bin"] = label
	for name, text := range files {
		entry, err := archive.Create(name)
		must(t, err)
		_, err = entry.Write([]byte(text))
		must(t, err)
	}
	must(t, archive.Close())
	v, _, err := i.Registry.Push(t.Context(), name, &packed)
	must(t, err)
	return v
}

const python = "def predict(r): return r\n"

func TestAPushedModelComesBeforeAnImageOfItsBareName(t *testing.T) {
	i := images(t)
	push(t, i, "iris", "1", map[string]string{"main.py": python})
	push(t, i, "iris", "2", map[string]string{"main.py": python})
	for image, want := range map[string]string{
		"iris":                      "runtime-python3 1_2",
		"iris:latest":               "runtime-python3 1_2",
		"iris:1_1":                  "runtime-python3 1_1",
		"registry.example/iris":     "registry.example/iris@sha256:x 9_9",
		"registry.example/iris:1_1": "registry.example/iris:1_1@sha256:x 9_9",
		"library/iris":              "library/iris@sha256:x 9_9",
	} {
		got, err := i.Inspect(t.Context(), image)
		must(t, err)
		if got.Ref+" "+got.Version != want || (got.Bundle != nil) != strings.HasPrefix(want, "runtime") {
			t.Errorf("%s is %+v, want %s", image, got, want)
		}
	}
	for image, want := range map[string]string{
		"iris:1_3":  "no such model was pushed",
		"iris:1.2":  "is neither latest nor a version",
		"rose":      "the registry does not give it; nor has a model of that name been pushed: faas-predict push DIR --name rose",
		"rose:1_1":  "faas-predict push DIR --name rose",
		"iris@sha:": "the registry does not give it",
	} {
		if _, err := i.Inspect(t.Context(), image); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v, want %q", image, err, want)
		}
	}
}

func TestABundleIsDescribedAsItWasPushed(t *testing.T) {
	i := images(t)
	for n, c := range []struct {
		files    map[string]string
		image    string
		packages bool
	}{
		{map[string]string{"main.py": python}, "runtime-python3", false},
		{map[string]string{"main.py": python, "requirements.txt": "# none\n"}, "runtime-python3", false},
		{map[string]string{"main.py": python, "requirements.txt": "six\n"}, "runtime-python3", true},
		{map[string]string{"main.R": "predict <- function(r) r\n", "packages.txt": "jsonlite\n"}, "runtime-r", false},
	} {
		v := push(t, i, "plant", fmt.Sprint(n), c.files)
		got, err := i.Inspect(t.Context(), "plant")
		must(t, err)
		b := got.Bundle
		if got.Ref != c.image || got.Contents != cluster.Contents(v.Version) || b.CodeDigest != v.CodeDigest || b.CoefficientsDigest != v.CoefficientsDigest || b.Bytes != v.Bytes || b.Files != len(v.Files) || b.Packages != c.packages {
			t.Errorf("%v: %+v %+v", c.files, got, b)
		}
		got.Release()
	}
}

// Between reading what a version is and storing that a function runs it, nobody may delete it.
func TestAVersionStaysUntilItIsReleased(t *testing.T) {
	i := images(t)
	v := push(t, i, "iris", "1", map[string]string{"main.py": python})
	got, err := i.Inspect(t.Context(), "iris")
	must(t, err)
	if err := i.Registry.Delete("iris", v.ID); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("deleted: %v", err)
	}
	got.Release()
	must(t, i.Registry.Delete("iris", v.ID))
}

func TestAProviderThatPodsDoNotReachSaysSo(t *testing.T) {
	i := images(t)
	push(t, i, "iris", "1", map[string]string{"main.py": python})
	i.Served = false
	if _, err := i.Inspect(t.Context(), "iris"); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "set provider_url") {
		t.Errorf("got %v", err)
	}
	i.Served, i.Runtimes = true, nil
	if _, err := i.Inspect(t.Context(), "iris"); err == nil || !strings.Contains(err.Error(), "set runtime_image_python3") {
		t.Errorf("got %v", err)
	}
	if err := i.Registry.Delete("iris", "1_1"); err != nil {
		t.Error("what was refused holds the version:", err)
	}
}
