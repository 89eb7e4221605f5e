// Package image reads container images that were built from the project's templates, in a registry or in a Docker
// engine's store: which version of which model one holds, for backends whose engines run it, and the model itself, for
// the backend that has no containers.
//
// Where the bundle is taken out, the image is untrusted until that has passed the rules that a pushed zip has to pass, and
// has the digests that the image's labels claim. An engine that runs the image as it is goes by the labels. Nothing here
// runs anything of an image.
package image

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Folder is where an image of the templates has its bundle.
const Folder = "home/app/function"

// Labels of an image of the templates. `faas-predict labels` prints them for a build.
const (
	ModelLabel              = "org.opencontainers.image.title"
	VersionLabel            = "org.opencontainers.image.version"
	RuntimeLabel            = "faas-predict.runtime"
	CodeLabel               = "faas-predict.code"
	CodeDigestLabel         = "faas-predict.code-digest"
	CoefficientsLabel       = "faas-predict.coefficients"
	CoefficientsDigestLabel = "faas-predict.coefficients-digest"
)

// Labels are the labels of an image that holds the version of the model.
func Labels(modelName, runtime string, v model.Version) map[string]string {
	return map[string]string{
		ModelLabel: modelName, VersionLabel: v.ID, RuntimeLabel: runtime,
		CodeLabel: v.Code, CodeDigestLabel: v.CodeDigest,
		CoefficientsLabel: v.Coefficients, CoefficientsDigestLabel: v.CoefficientsDigest,
	}
}

// labelled is the version that the labels claim. ok is false where they claim none, as on an image that nobody
// labelled, whose version is known once its bundle has been read. A title and a version without the rest claim none
// either: images inherit those of their base, which mean something else.
func labelled(labels map[string]string) (v model.Version, ok bool) {
	v = model.Version{
		ID: labels[VersionLabel], Code: labels[CodeLabel], Coefficients: labels[CoefficientsLabel],
		CodeDigest: labels[CodeDigestLabel], CoefficientsDigest: labels[CoefficientsDigestLabel],
	}
	return v, model.ValidSHA256(v.CodeDigest) && model.ValidSHA256(v.CoefficientsDigest) && traffic.All(v.ID).Check() == nil
}

// InRegistry reports whether an image's name starts with a registry's host, as docker reads names.
func InRegistry(image string) bool {
	host, _, found := strings.Cut(image, "/")
	return found && (strings.ContainsAny(host, ".:") || host == "localhost")
}

// Name is the name that an image's model has: the label's beside a version, or else the last part of the image's name.
func Name(image string, labels map[string]string) (string, error) {
	modelName := labels[ModelLabel]
	if _, ok := labelled(labels); !ok || modelName == "" {
		ref, err := name.ParseReference(image)
		if err != nil {
			return "", fmt.Errorf("%w image: %w", backend.ErrInvalid, err)
		}
		path := ref.Context().RepositoryStr()
		modelName = path[strings.LastIndex(path, "/")+1:]
	}
	return modelName, backend.CheckName("model", modelName)
}
