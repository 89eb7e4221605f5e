package cluster

import (
	"context"

	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Image is a container image with a model in it, or one with a runtime that fetches a pushed bundle.
type Image struct {
	// Ref is what the engine is to run: the name with its digest where that is known.
	Ref string
	// Model and Version are what is in it, or those of the bundle.
	Model, Version string
	// Contents are the digests of code and coefficients as one word, "" where nobody knows them.
	Contents string
	// Bundle is what a container fetches before it serves; nil where the model is in the image. It cannot be deleted
	// until Release is called, once; whoever stores a record that names it calls that afterwards.
	Bundle  *deployment.Bundle
	Release func() // nil without a bundle
}

// Contents are the digests of a version as one word, the same whether it is in an image or was pushed.
func Contents(v model.Version) string { return v.CodeDigest + "_" + v.CoefficientsDigest }

func (i Image) release() {
	if i.Release != nil {
		i.Release()
	}
}

// Images reads what is in an image.
type Images interface {
	// Inspect finds an image in the engine or its registry. One that is not found, or that holds no model, gives
	// backend.ErrInvalid with a sentence that says what to do.
	Inspect(ctx context.Context, image string) (Image, error)
}
