// Package modelimage makes model images for tests without a container engine: a Debian with Python as the base, then
// fwatchdog, then a bundle, with the settings of template/python3-predict.
package modelimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Python returns the base, from a file in cache that is made the first time: debootstrap takes about half a minute.
func Python(ctx context.Context, cache string) (v1.Image, error) {
	file := filepath.Join(cache, "python3.tar.gz")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		if err := bootstrap(ctx, file); err != nil {
			return nil, err
		}
	}
	layer, err := tarball.LayerFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("read base image: %w", err)
	}
	return mutate.AppendLayers(empty.Image, layer)
}

// bootstrap installs a Debian with Python into a folder, from where the machine itself gets its packages, and packs it.
func bootstrap(ctx context.Context, file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	root, err := os.MkdirTemp(filepath.Dir(file), "root-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	cmd := exec.CommandContext(ctx, "bash", "-c", `set -euo pipefail
sources() { cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true; }
mirror=$(sources | sed -nE 's/^URIs: *(\S+).*/\1/p; s/^deb +(\[[^]]*\] +)?(\S+) .*/\2/p' | head -1)
debootstrap --variant=minbase --include=python3 bookworm "$1" "$mirror" >"$2.log"
tar -C "$1" --exclude=./var/cache --exclude=./var/lib/apt --exclude=./usr/share/doc --exclude=./usr/share/locale -c . | gzip -1 >"$2.part"
mv "$2.part" "$2"`, "bootstrap", root, file)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make a base image with debootstrap: %w", err)
	}
	return nil
}

// File is one file of an image.
type File struct {
	Path    string
	Mode    int64
	Content []byte
}

// Layer makes a layer of files, whose folders are made too.
func Layer(files ...File) (v1.Layer, error) {
	var raw bytes.Buffer
	zipped, err := gzip.NewWriterLevel(&raw, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	out := tar.NewWriter(zipped)
	made := map[string]bool{}
	for _, f := range files {
		path := strings.TrimPrefix(f.Path, "/")
		for i, c := range path {
			if dir := path[:i]; c == '/' && !made[dir] {
				made[dir] = true
				if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
					return nil, err
				}
			}
		}
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: f.Mode, Size: int64(len(f.Content))}); err != nil {
			return nil, err
		}
		if _, err := out.Write(f.Content); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(out.Close(), zipped.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw.Bytes())), nil })
}

// Program is a file of an image from one of this machine.
func Program(path, source string) (File, error) {
	content, err := os.ReadFile(source)
	return File{Path: path, Mode: 0o755, Content: content}, err
}

// Bundle returns base with fwatchdog and the bundle of a folder, and the labels that say what is in it.
func Bundle(base v1.Image, fwatchdog string, bundle fs.FS, labels func(model, version string) map[string]string) (v1.Image, error) {
	dir, err := os.MkdirTemp("", "bundle-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, bundle); err != nil {
		return nil, err
	}
	opened, err := model.Open(dir)
	if err != nil {
		return nil, err
	}
	program, err := Program("/usr/bin/fwatchdog", fwatchdog)
	if err != nil {
		return nil, err
	}
	watchdog, err := Layer(program)
	if err != nil {
		return nil, err
	}
	var files []File
	err = fs.WalkDir(bundle, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(bundle, path)
		files = append(files, File{"/home/app/function/" + path, 0o644, content})
		return err
	})
	if err != nil {
		return nil, err
	}
	content, err := Layer(files...)
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(base, watchdog, content)
	if err != nil {
		return nil, err
	}
	return mutate.Config(image, v1.Config{
		Cmd:        []string{"fwatchdog"},
		User:       "12000:0",
		WorkingDir: "/home/app/function",
		Env: []string{
			"PATH=/usr/bin:/bin", "HOME=/home/app", "PYTHONDONTWRITEBYTECODE=1", "healthcheck_interval=5s",
			"model_path=/home/app/function", "port=8080",
		},
		Labels: labels(opened.Name, opened.Version.ID),
	})
}

// Push stores an image in a registry and returns its name there.
func Push(ctx context.Context, image v1.Image, ref string) (string, error) {
	tag, err := name.NewTag(ref)
	if err != nil {
		return "", err
	}
	return ref, remote.Write(tag, image, remote.WithContext(ctx))
}
