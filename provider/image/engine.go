package image

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/moby/moby/client"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Engine reads images that a Docker engine has.
type Engine struct {
	Docker *client.Client
	Limits model.Limits // of the bundle
	// Scratch is the folder in which Inspect unpacks bundles of images without labels; "" is the system's.
	Scratch string
}

// find gives ok = false when the engine has no such image, or there is no engine.
func (e Engine) find(ctx context.Context, ref string) (found image, ok bool, err error) {
	inspected, err := e.Docker.ImageInspect(ctx, ref)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || client.IsErrConnectionFailed(err) {
		return image{}, false, nil
	}
	if err != nil {
		return image{}, false, fmt.Errorf("look at image %.200q: %w", ref, err)
	}
	found.pinned = pin(ref, inspected.RepoDigests)
	if inspected.Config != nil {
		found.labels = inspected.Config.Labels
	}
	found.extract = func(ctx context.Context, dir string) error {
		if err := e.extract(ctx, inspected.ID, dir); err != nil {
			return fmt.Errorf("image %.200q: %w", ref, err)
		}
		return nil
	}
	return found, true, nil
}

// pin is the image's name with the digest that its registry gave, or the name as it is where none did. The engine may know
// digests of other registries too, that the image was pulled from or pushed to.
func pin(ref string, digests []string) string {
	named, err := name.ParseReference(ref)
	if err != nil {
		return ref
	}
	for _, digest := range digests {
		if known, err := name.NewDigest(digest); err == nil && known.Context().Name() == named.Context().Name() {
			return digest
		}
	}
	return ref
}

// extract makes a container, which is never started, because an engine gives one folder of a container, but of an
// image only everything.
func (e Engine) extract(ctx context.Context, id, dir string) (err error) {
	container, err := e.Docker.ContainerCreate(ctx, client.ContainerCreateOptions{Image: id})
	if err != nil {
		return err
	}
	defer func() {
		_, removeErr := e.Docker.ContainerRemove(context.WithoutCancel(ctx), container.ID, client.ContainerRemoveOptions{Force: true})
		err = errors.Join(err, removeErr)
	}()
	copied, err := e.Docker.CopyFromContainer(ctx, container.ID, client.CopyFromContainerOptions{SourcePath: "/" + Folder})
	if errdefs.IsNotFound(err) {
		return nil // as of a registry: no bundle
	}
	if err != nil {
		return err
	}
	defer copied.Content.Close()
	t, err := newTree(dir, e.Limits)
	if err != nil {
		return err
	}
	defer t.close()
	_, err = t.add(ctx, copied.Content, path.Base(Folder))
	return err
}
