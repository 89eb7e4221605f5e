package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/faas-predict/faas-predict/provider/image"
	"github.com/faas-predict/faas-predict/tests/cluster/engine"
	"github.com/faas-predict/faas-predict/tests/cluster/images"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// example is a bundle of the project and how it becomes an image.
type example struct {
	folder, template   string
	base               engine.Base
	coefficients, code string // a file of each, to be changed
}

var (
	small    = example{"examples/iris", "python3-predict", engine.Python, "coefficients/iris.json", "main.py"}
	examples = []example{
		small,
		{"examples/digits", "python3-predict", engine.Python, "coefficients/digits.onnx", "main.py"},
		{"examples/ozone", "r-predict", engine.R, "coefficients/ozone.csv", "main.R"},
	}
)

// built is an image that was built and pushed.
type built struct {
	ref   string
	model string
	took  time.Duration // the build
}

// build builds the image of a bundle's folder, with its labels, and pushes it.
func (b *bench) build(ctx context.Context, e example, folder string) (built, error) {
	bundle, err := model.Open(folder)
	if err != nil {
		return built{}, err
	}
	out := built{ref: b.registry.address + "/" + bundle.Name + ":" + bundle.Version.ID, model: bundle.Name}
	function := images.Function{Language: e.template, Base: e.base, Handler: folder, Image: out.ref}
	for key, value := range image.Labels(bundle.Name, bundle.Runtime, bundle.Version) {
		function.Args = append(function.Args, "--label", key+"="+value)
	}
	began := time.Now()
	if err := images.Build(ctx, b.docker, ".", function); err != nil {
		return built{}, err
	}
	out.took = time.Since(began)
	_, err = b.docker.Docker(ctx, "push", "--quiet", out.ref)
	return out, err
}

// images prints sizes, what pushes send, and the time of builds.
func (b *bench) images(ctx context.Context) error {
	if err := b.docker.MakeBase(ctx, engine.R, bases); err != nil {
		return err
	}
	for _, e := range examples {
		dir := filepath.Join(b.dir, "bundle", filepath.Base(e.folder))
		if err := os.CopyFS(dir, os.DirFS(e.folder)); err != nil {
			return err
		}
		if _, err := b.docker.Docker(ctx, "builder", "prune", "--force", "--all"); err != nil {
			return err
		}
		// Iris has been built already; a line more in its code and its list of packages makes all of it new.
		if err := e.change(dir, e.code, "code_version"); err != nil {
			return err
		}
		first, err := b.build(ctx, e, dir)
		if err != nil {
			return err
		}
		if err := b.layers(e, first); err != nil {
			return err
		}
		row(filepath.Base(e.folder)+": build, the base and fwatchdog's image being there", seconds(first.took))
		for _, change := range []struct{ what, file, label string }{
			{"new coefficients", e.coefficients, "coefficients_version"},
			{"new code", e.code, "code_version"},
		} {
			if err := e.change(dir, change.file, change.label); err != nil {
				return err
			}
			b.registry.reset()
			next, err := b.build(ctx, e, dir)
			if err != nil {
				return err
			}
			count, bytes, err := b.pushed(next)
			if err != nil {
				return err
			}
			row(filepath.Base(e.folder)+": "+change.what, fmt.Sprintf("build %s; pushed %d layers, %s", seconds(next.took), count, size(bytes)))
		}
	}
	return nil
}

// change makes a bundle another version.
func (e example) change(dir, file, label string) error {
	path := filepath.Join(dir, file)
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !strings.HasSuffix(file, ".onnx") { // which stands nothing behind its end; its label alone changes
		content = append(content, '\n')
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return err
	}
	manifest := filepath.Join(dir, "model.yml")
	text, err := os.ReadFile(manifest)
	if err != nil {
		return err
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, label+":") {
			line = fmt.Sprintf("%s: \"at-%d\"\n", label, time.Now().UnixMilli())
		}
		lines = append(lines, line)
	}
	return os.WriteFile(manifest, []byte(strings.Join(lines, "")), 0o644)
}

func (b *bench) remote(ref string) (v1.Image, error) {
	tag, err := name.NewTag(ref)
	if err != nil {
		return nil, err
	}
	return remote.Image(tag)
}

// pushed is how many of an image's layers were sent, and their bytes.
func (b *bench) pushed(image built) (count int, bytes int64, err error) {
	pulled, err := b.remote(image.ref)
	if err != nil {
		return 0, 0, err
	}
	manifest, err := pulled.Manifest()
	if err != nil {
		return 0, 0, err
	}
	received := b.registry.received()
	for _, layer := range manifest.Layers {
		if n, new := received[layer.Digest.String()]; new {
			count++
			bytes += n
		}
	}
	return count, bytes, nil
}

// layers prints the sizes of an image's layers by what is in them, as they are on a disk and as they are sent.
func (b *bench) layers(e example, image built) error {
	pulled, err := b.remote(image.ref)
	if err != nil {
		return err
	}
	config, err := pulled.ConfigFile()
	if err != nil {
		return err
	}
	layers, err := pulled.Layers()
	if err != nil {
		return err
	}
	type amount struct{ disk, sent int64 }
	amounts := map[string]amount{}
	part, at := "base", 0
	for _, step := range config.History {
		switch {
		case strings.Contains(step.CreatedBy, "useradd"):
			part = "packages" // the user, which comes with them, takes some kB
		case strings.Contains(step.CreatedBy, " in /usr/bin/fwatchdog"):
			part = "fwatchdog"
		case strings.Contains(step.CreatedBy, " in /home/app/function") && part == "fwatchdog":
			part = "code"
		case strings.Contains(step.CreatedBy, " in /home/app/function") && part == "code":
			part = "coefficients"
		}
		if step.EmptyLayer {
			continue
		}
		sum := amounts[part]
		disk, err := bytesOnDisk(layers[at])
		if err != nil {
			return err
		}
		sent, err := layers[at].Size()
		if err != nil {
			return err
		}
		amounts[part] = amount{sum.disk + disk, sum.sent + sent}
		at++
	}
	for _, part := range []string{"base", "packages", "fwatchdog", "code", "coefficients"} {
		row(fmt.Sprintf("%s (%s): %s", filepath.Base(e.folder), e.template, part),
			fmt.Sprintf("%s, compressed %s", size(amounts[part].disk), size(amounts[part].sent)))
	}
	return nil
}

// bytesOnDisk is the size of a layer's tar.
func bytesOnDisk(layer v1.Layer) (int64, error) {
	content, err := layer.Uncompressed()
	if err != nil {
		return 0, err
	}
	defer content.Close()
	return io.Copy(io.Discard, content)
}
