package kube

import (
	"archive/tar"
	"bytes"
	"context"
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
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const pauseName = "local/pause:1"

// pauseImage builds the sandbox's image and returns its archive.
func pauseImage(ctx context.Context, dir string) (string, error) {
	program, err := Build(ctx, dir, "github.com/faas-predict/faas-predict/tests/cluster/kube/pause")
	if err != nil {
		return "", err
	}
	return Image{Name: pauseName, Files: map[string]string{"pause": program}, Config: v1.Config{Entrypoint: []string{"/pause"}}}.Archive(dir)
}

// Build builds a Go program into dir, so that it runs in an image without anything else, and returns its file.
func Build(ctx context.Context, dir, pkg string) (string, error) {
	program := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", program, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return program, nil
}

// Image is a container image made of files of this machine, without an engine.
type Image struct {
	Name   string
	Base   v1.Image          // nil: nothing below
	Files  map[string]string // path in the image → file or folder here
	Config v1.Config         // over the base's, where it is not empty
}

// Archive writes the image to a file in dir, which it returns.
func (i Image) Archive(dir string) (string, error) {
	base := i.Base
	if base == nil {
		base = empty.Image
	}
	var layer bytes.Buffer
	out := tar.NewWriter(&layer)
	for path, source := range i.Files {
		if err := addTo(out, path, source); err != nil {
			return "", err
		}
	}
	if err := out.Close(); err != nil {
		return "", err
	}
	content, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return "", err
	}
	image, err := mutate.AppendLayers(base, content)
	if err != nil {
		return "", err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return "", err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS = "amd64", "linux"
	if i.Config.Entrypoint != nil {
		file.Config.Entrypoint, file.Config.Cmd = i.Config.Entrypoint, i.Config.Cmd
	}
	file.Config.Env = append(file.Config.Env, i.Config.Env...)
	if i.Config.User != "" {
		file.Config.User = i.Config.User
	}
	if i.Config.Labels != nil {
		file.Config.Labels = i.Config.Labels
	}
	if image, err = mutate.ConfigFile(image, file); err != nil {
		return "", err
	}
	tag, err := name.NewTag(i.Name)
	if err != nil {
		return "", err
	}
	archive := filepath.Join(dir, strings.NewReplacer("/", "-", ":", "-").Replace(i.Name)+".tar")
	return archive, tarball.WriteToFile(archive, tag, image)
}

func addTo(out *tar.Writer, path, source string) error {
	return filepath.WalkDir(source, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		link := ""
		if entry.Type() == fs.ModeSymlink {
			if link, err = os.Readlink(file); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		header.Name = filepath.Join(path, relative)
		header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
		if err := out.WriteHeader(header); err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.Open(file) //nolint:gosec // the test's own files
		if err != nil {
			return err
		}
		defer content.Close()
		_, err = io.Copy(out, content)
		return err
	})
}
