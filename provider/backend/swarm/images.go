package swarm

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// Inspect implements cluster.Images: it reads the labels of an image that the engine has, or pulls from
// its registry.
func (e *Engine) Inspect(ctx context.Context, image string) (cluster.Image, error) {
	found, err := e.docker.ImageInspect(ctx, image)
	if errdefs.IsNotFound(err) {
		if perr := e.pull(ctx, image); perr != nil {
			return cluster.Image{}, fmt.Errorf("%w image %.200q: this engine does not have it and cannot pull it; build it from a template and push it to a registry: %w", backend.ErrInvalid, image, perr)
		}
		found, err = e.docker.ImageInspect(ctx, image)
	}
	if err != nil {
		return cluster.Image{}, wrap(err, "look at image "+image)
	}
	out := cluster.Image{Ref: image}
	if found.Config != nil {
		out.Model, out.Version = found.Config.Labels[cluster.ModelLabel], found.Config.Labels[cluster.VersionLabel]
	}
	if out.Model == "" || out.Version == "" {
		return cluster.Image{}, fmt.Errorf("%w image %.200q: it has no labels %s and %s; build it from a template of faas-predict", backend.ErrInvalid, image, cluster.ModelLabel, cluster.VersionLabel)
	}
	if len(found.RepoDigests) > 0 {
		out.Ref = found.RepoDigests[0] // every node runs the same, whatever the tag comes to mean
	}
	return out, nil
}

func (e *Engine) pull(ctx context.Context, image string) error {
	progress, err := e.docker.ImagePull(ctx, image, client.ImagePullOptions{})
	if err != nil {
		return err
	}
	defer progress.Close()
	_, err = io.Copy(io.Discard, progress)
	return err
}
