package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// Images reads images' labels in the registry that nodes pull them from, with the credentials of a Docker
// configuration (DOCKER_CONFIG), if there is one.
type Images struct{}

var _ cluster.Images = Images{}

// Inspect implements cluster.Images. A tag becomes the digest that it names now, so that every pod of a version runs the
// same.
func (Images) Inspect(ctx context.Context, image string) (cluster.Image, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return cluster.Image{}, fmt.Errorf("%w image: %w", backend.ErrInvalid, err)
	}
	found, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}))
	var answer *transport.Error
	switch {
	case errors.As(err, &answer) && answer.StatusCode < http.StatusInternalServerError && answer.StatusCode != http.StatusTooManyRequests:
		return cluster.Image{}, fmt.Errorf("%w image %s: the registry does not give it: %w", backend.ErrInvalid, ref, err)
	case err != nil:
		return cluster.Image{}, fmt.Errorf("image %s: %w: %w", ref, backend.ErrNotReady, err)
	}
	config, err := found.ConfigFile()
	if err != nil {
		return cluster.Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	digest, err := found.Digest()
	if err != nil {
		return cluster.Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	out := cluster.Image{
		Ref:     ref.Context().Digest(digest.String()).String(),
		Model:   config.Config.Labels[cluster.ModelLabel],
		Version: config.Config.Labels[cluster.VersionLabel],
	}
	if out.Model == "" || out.Version == "" {
		return cluster.Image{}, fmt.Errorf("%w image %s: it carries no version; build it from the project's templates", backend.ErrInvalid, ref)
	}
	return out, nil
}
