package image

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/registry"
)

const goarch = runtime.GOARCH

// Models are pushed models and those of container images. A model of an image is stored as if it had been pushed, so
// that it is there when the registry that it came from is not.
type Models struct {
	*registry.Registry
	Registries Registries
	Engine     Engine
}

var _ backend.Models = Models{}

// Resolve implements backend.Models. A name that starts with a registry's host is looked up there each time, unless the
// version that it means was pushed here: then the same stack.yml has been pushed from its folders. Another name is a
// pushed model's, or else an image's that the engine of this machine has.
func (m Models) Resolve(ctx context.Context, ref string) (backend.Model, error) {
	if InRegistry(ref) && !m.pushed(ref) {
		found, err := m.Registries.find(ctx, ref)
		if err != nil {
			return backend.Model{}, err
		}
		return m.store(ctx, ref, found)
	}
	pushed, err := m.Registry.Resolve(ctx, ref)
	if !errors.Is(err, backend.ErrInvalid) {
		return pushed, err
	}
	found, ok, engineErr := m.Engine.find(ctx, ref)
	if engineErr != nil {
		return backend.Model{}, errors.Join(err, engineErr)
	}
	if !ok {
		return backend.Model{}, err
	}
	return m.store(ctx, ref, found)
}

// pushed reports whether what ref means here was pushed, rather than taken out of an image.
func (m Models) pushed(ref string) bool {
	modelName, version, err := registry.ParseImage(ref)
	if err != nil {
		return false
	}
	stored, err := m.Get(modelName)
	if err != nil {
		return false
	}
	if version == registry.Latest {
		version = stored.Latest
	}
	return slices.ContainsFunc(stored.Versions, func(v registry.Version) bool { return v.ID == version && v.Image == "" })
}

// store pins the version that the image holds, which it stores first if need be.
func (m Models) store(ctx context.Context, ref string, found image) (backend.Model, error) {
	modelName, err := Name(ref, found.labels)
	if err != nil {
		return backend.Model{}, err
	}
	claimed, known := labelled(found.labels)
	if known {
		if stored, err := m.Get(modelName); err == nil {
			for _, v := range stored.Versions {
				if v.ID == claimed.ID && same(v.Version, claimed) {
					return m.Pin(modelName, v.ID)
				}
			}
		}
	}
	stored, _, err := m.PushImage(ctx, modelName, ref, func(dir string) error {
		bundle, err := found.bundle(ctx, ref, dir)
		if err != nil {
			return err
		}
		if known && !same(bundle.Version, claimed) {
			return fmt.Errorf("%w image %.200q: its labels say version %.100q, but it holds another (%s); build it with the labels of what is in it: faas-predict labels", backend.ErrInvalid, ref, claimed.ID, bundle.Version.ID)
		}
		return nil
	})
	if err != nil {
		return backend.Model{}, err
	}
	return m.Pin(modelName, stored.ID)
}
