package cluster

import "context"

// Image is a container image with a model in it.
type Image struct {
	// Ref is what the engine is to run: the name with its digest where that is known.
	Ref string
	// Model and Version are what the image's labels say.
	Model, Version string
}

// Labels of an image that say what is in it.
const (
	ModelLabel   = "org.opencontainers.image.title"
	VersionLabel = "org.opencontainers.image.version"
)

// Images reads what is in an image.
type Images interface {
	// Inspect finds an image in the engine or its registry. One that is not found, or that carries no
	// version, gives backend.ErrInvalid with a sentence that says what to do.
	Inspect(ctx context.Context, image string) (Image, error)
}
