package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/moby/client"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Backends whose engines run images need to know what is in one, and nothing of it.
var _, _ cluster.Images = Registries{}, Engine{}

// Inspect implements cluster.Images for an engine whose nodes pull images from registries themselves. A tag becomes the
// digest that it names now, so that every container of a version runs the same.
func (r Registries) Inspect(ctx context.Context, ref string) (cluster.Image, error) {
	found, err := r.find(ctx, ref)
	if err != nil {
		return cluster.Image{}, err
	}
	return inspect(ctx, ref, found, r.Scratch)
}

// Inspect implements cluster.Images for a Docker engine, which pulls the image if it does not have it. The image gets
// the digest that the registry gave, if any, so that every node runs the same, whatever the tag comes to mean.
func (e Engine) Inspect(ctx context.Context, ref string) (cluster.Image, error) {
	found, ok, err := e.find(ctx, ref)
	if err == nil && !ok {
		if err := e.pull(ctx, ref); err != nil {
			return cluster.Image{}, err
		}
		found, ok, err = e.find(ctx, ref)
	}
	switch {
	case err != nil:
		return cluster.Image{}, err
	case !ok:
		return cluster.Image{}, fmt.Errorf("image %.200q is %w: the engine has pulled it and lost it again", ref, backend.ErrNotReady)
	}
	return inspect(ctx, ref, found, e.Scratch)
}

// inspect says what an image holds: what its labels claim, or else what its bundle is, which is unpacked for that and
// thrown away.
func inspect(ctx context.Context, ref string, found image, scratch string) (cluster.Image, error) {
	modelName, err := Name(ref, found.labels)
	if err != nil {
		return cluster.Image{}, err
	}
	out := cluster.Image{Ref: found.pinned, Model: modelName}
	if claimed, ok := labelled(found.labels); ok {
		out.Version, out.Contents = claimed.ID, cluster.Contents(claimed)
		return out, nil
	}
	dir, err := os.MkdirTemp(scratch, "image-")
	if err != nil {
		return cluster.Image{}, fmt.Errorf("read image %.200q: %w", ref, err)
	}
	defer os.RemoveAll(dir)
	bundle, err := found.bundle(ctx, ref, dir)
	if err != nil {
		return cluster.Image{}, err
	}
	out.Version, out.Contents = bundle.Version.ID, cluster.Contents(bundle.Version)
	return out, nil
}

// bundle extracts the image's bundle into the empty folder and opens it.
func (i image) bundle(ctx context.Context, ref, dir string) (*model.Bundle, error) {
	if err := i.extract(ctx, dir); err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) == 0 {
		return nil, errors.Join(err, fmt.Errorf("%w image %.200q: it has no model in /%s; build it from a template of faas-predict", backend.ErrInvalid, ref, Folder))
	}
	bundle, err := model.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("image %.200q: %w", ref, err)
	}
	return bundle, nil
}

// pull has the engine get the image, with this program's own credentials for its registry.
func (e Engine) pull(ctx context.Context, ref string) error {
	login, err := Login(ref)
	if err != nil {
		return err
	}
	progress, err := e.Docker.ImagePull(ctx, ref, client.ImagePullOptions{RegistryAuth: login})
	if err == nil {
		err = errors.Join(progress.Wait(ctx), progress.Close())
	}
	switch {
	case err == nil:
		return nil
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("image %.200q is %w: %w", ref, backend.ErrNotReady, err)
	}
	return fmt.Errorf("%w image %.200q: this engine does not have it and cannot pull it; build it from a template, push it to a registry, and give the provider that registry's credentials if it asks for any: %w", backend.ErrInvalid, ref, err)
}
