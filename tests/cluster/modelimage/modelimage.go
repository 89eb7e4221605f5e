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
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	images "github.com/faas-predict/faas-predict/provider/image"
	"github.com/faas-predict/faas-predict/tests/cluster/engine"
	"github.com/faas-predict/faas-predict/tests/cluster/store"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Python returns the base, whose archive is kept in cache and made the first time; see engine.Base.
func Python(ctx context.Context, cache string) (v1.Image, error) {
	file, err := engine.Python.Archive(ctx, cache)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromFile(file, tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
	if err != nil {
		return nil, fmt.Errorf("read base image: %w", err)
	}
	return mutate.AppendLayers(platform, layer)
}

// platform is an image with nothing in it, for this machine.
var platform = func() v1.Image {
	out, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		panic(err) // nothing is read
	}
	return out
}()

// Provider is an image with a program and nothing else: faas-predict, from a file of this machine.
func Provider(program string) (v1.Image, error) {
	file, err := Program("/faas-predict", program)
	if err != nil {
		return nil, fmt.Errorf("make build comes first: %w", err)
	}
	layer, err := Layer(file)
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(platform, layer)
	if err != nil {
		return nil, err
	}
	return mutate.Config(image, v1.Config{Entrypoint: []string{"/faas-predict"}, Cmd: []string{"serve"}, User: "12000:0"})
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

// Bundle returns base with fwatchdog and the bundle of a folder, and the labels that say what is in it; and its version.
func Bundle(base v1.Image, fwatchdog string, bundle fs.FS) (v1.Image, string, error) {
	dir, err := os.MkdirTemp("", "bundle-")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, bundle); err != nil {
		return nil, "", err
	}
	opened, err := model.Open(dir)
	if err != nil {
		return nil, "", err
	}
	program, err := Program("/usr/bin/fwatchdog", fwatchdog)
	if err != nil {
		return nil, "", err
	}
	watchdog, err := Layer(program)
	if err != nil {
		return nil, "", err
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
		return nil, "", err
	}
	content, err := Layer(files...)
	if err != nil {
		return nil, "", err
	}
	image, err := mutate.AppendLayers(base, watchdog, content)
	if err != nil {
		return nil, "", err
	}
	image, err = mutate.Config(image, v1.Config{
		Cmd:        []string{"fwatchdog"},
		User:       "12000:0",
		WorkingDir: "/home/app/function",
		Env: []string{
			"PATH=/usr/bin:/bin", "HOME=/home/app", "PYTHONDONTWRITEBYTECODE=1", "healthcheck_interval=5s",
			"model_path=/home/app/function", "port=8080",
		},
		Labels: images.Labels(opened.Name, opened.Runtime, opened.Version),
		Healthcheck: &v1.HealthConfig{
			Test: []string{"CMD", "fwatchdog", "-run-healthcheck"}, Interval: 5 * time.Second, Timeout: 5 * time.Second, Retries: 3,
		},
	})
	return image, opened.Version.ID, err
}

// Unlabelled is the image as if nobody had labelled it.
func Unlabelled(image v1.Image) (v1.Image, error) {
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config := *file.Config.DeepCopy()
	config.Labels = nil
	return mutate.Config(image, config)
}

// Push stores an image in a registry as NAME:TAG and returns its whole name.
func Push(ctx context.Context, image v1.Image, to *store.Store, tagged string) (string, error) {
	ref := to.Host + "/" + tagged
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		return "", err
	}
	return ref, remote.Write(tag, image, remote.WithContext(ctx), remote.WithAuth(to.Login()))
}
