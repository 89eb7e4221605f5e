// Package bundle makes pushed bundles something that a container engine can run: an image that has a runtime and no
// model, and what its containers have to fetch.
//
// How they fetch it is the engine's, and may not enter here.
package bundle

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/packages"
)

// Images are pushed bundles, and container images for names that mean none.
type Images struct {
	Registry *registry.Registry
	Others   cluster.Images
	Runtimes map[string]string // the image that bundles of a runtime run on
	// Served reports whether containers can fetch from this provider.
	Served bool
}

var _ cluster.Images = Images{}

// Inspect implements cluster.Images. A name without a slash, as push gives them, means a pushed model if there is one of
// that name, whatever version it asks for; every other name is a container image's. A tag is then "latest", which is
// what was pushed last, or a version.
func (i Images) Inspect(ctx context.Context, image string) (cluster.Image, error) {
	pushed, err := i.pushed(image)
	if err != nil {
		return cluster.Image{}, err
	}
	if pushed {
		return i.bundle(ctx, image)
	}
	found, err := i.Others.Inspect(ctx, image)
	if name, _, _ := strings.Cut(image, ":"); err != nil && backend.ValidName(name) {
		err = fmt.Errorf("%w; nor has a model of that name been pushed: faas-predict push DIR --name %s", err, name)
	}
	return found, err
}

// pushed reports whether an image's name means a pushed model.
func (i Images) pushed(image string) (bool, error) {
	name, _, _ := strings.Cut(image, ":")
	if !backend.ValidName(name) { // it has a slash, or is no model's for another reason
		return false, nil
	}
	_, err := i.Registry.Get(name)
	if errors.Is(err, backend.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (i Images) bundle(ctx context.Context, image string) (cluster.Image, error) {
	if !i.Served {
		return cluster.Image{}, fmt.Errorf("%w image %q: it is a pushed model, and pods cannot fetch it from this provider; set provider_url, which the Helm chart does with persistence.enabled=true, or write a container image with its registry", backend.ErrInvalid, image)
	}
	pinned, err := i.Registry.Resolve(ctx, image)
	if err != nil {
		return cluster.Image{}, err
	}
	out, err := i.describe(pinned)
	if err != nil {
		pinned.Release()
		return cluster.Image{}, err
	}
	out.Release = pinned.Release
	return out, nil
}

func (i Images) describe(pinned backend.Model) (cluster.Image, error) {
	stored, release, err := i.Registry.Bundle(pinned.Name, pinned.Version)
	if err != nil {
		return cluster.Image{}, err
	}
	defer release()
	runtime := pinned.Runtime
	if runtime == "" {
		runtime = model.RuntimePython
	}
	out := cluster.Image{
		Ref: i.Runtimes[runtime], Model: pinned.Name, Version: pinned.Version, Contents: cluster.Contents(stored.Version),
		Bundle: &deployment.Bundle{
			CodeDigest: stored.Version.CodeDigest, CoefficientsDigest: stored.Version.CoefficientsDigest, Files: len(stored.Files),
		},
	}
	if out.Ref == "" {
		return cluster.Image{}, fmt.Errorf("%w image %q: there is no image for models of runtime %s; set runtime_image_%s", backend.ErrInvalid, pinned.Name, runtime, runtime)
	}
	for _, f := range stored.Files {
		out.Bundle.Bytes += f.Size
	}
	if runtime == model.RuntimePython {
		list, err := packages.Requirements(pinned.Dir)
		if err != nil {
			return cluster.Image{}, err
		}
		out.Bundle.Packages = list != nil
	}
	return out, nil
}
