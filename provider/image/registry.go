package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Registries reads images from where they were pushed to, with the credentials of a Docker configuration
// (DOCKER_CONFIG, or .docker in the home folder), if there is one.
type Registries struct {
	// Plain are the hosts, with their ports if they have any, that may be talked to without TLS. Loopback
	// addresses always may.
	Plain []string
	// MaxBytes is how much of an image is unpacked at most while its bundle is looked for.
	MaxBytes int64
	Limits   model.Limits // of the bundle
	// Scratch is the folder in which Inspect unpacks bundles of images without labels; "" is the system's.
	Scratch string
}

// maxConfigBytes bounds an image's configuration, which is read into memory. Those of large images have some
// ten kilobytes.
const maxConfigBytes = 4 << 20

// image is one that was found.
type image struct {
	pinned string // its name with the digest that it has now, where that is known
	labels map[string]string
	// extract writes the bundle into the empty folder.
	extract func(ctx context.Context, dir string) error
}

func (r Registries) find(ctx context.Context, named string) (image, error) {
	ref, err := name.ParseReference(named)
	if err != nil {
		return image{}, fmt.Errorf("%w image: %w", backend.ErrInvalid, err)
	}
	plain := slices.Contains(r.Plain, ref.Context().RegistryStr())
	if plain {
		if ref, err = name.ParseReference(named, name.Insecure); err != nil {
			return image{}, fmt.Errorf("%w image: %w", backend.ErrInvalid, err)
		}
	}
	described, err := remote.Get(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithTransport(guarded{remote.DefaultTransport, r.Plain}),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: goarch}))
	if err != nil {
		return image{}, unread(ref, err)
	}
	found, err := forPlatform(described)
	if err != nil {
		return image{}, unread(ref, err)
	}
	manifest, err := found.Manifest()
	if err != nil {
		return image{}, unread(ref, err)
	}
	if size := manifest.Config.Size; size < 0 || size > maxConfigBytes {
		return image{}, fmt.Errorf("%w image %s: its configuration has %d bytes; %d are allowed", backend.ErrInvalid, ref, size, maxConfigBytes)
	}
	config, err := found.ConfigFile()
	if err != nil {
		return image{}, unread(ref, err)
	}
	return image{
		// Not the digest of one platform's image, where there are several: nodes may differ.
		pinned: ref.Context().Digest(described.Digest.String()).String(),
		labels: config.Config.Labels,
		extract: func(ctx context.Context, dir string) error {
			if err := r.extract(ctx, found, config.Config.Labels, dir); err != nil {
				return unread(ref, err)
			}
			return nil
		},
	}, nil
}

// forPlatform is the image for this machine where there are several, or else the first for Linux: a bundle is in all of
// them, and the nodes that run them may be other machines than this one.
func forPlatform(described *remote.Descriptor) (v1.Image, error) {
	found, err := described.Image()
	if err == nil || !described.MediaType.IsIndex() {
		return found, err
	}
	index, indexErr := described.ImageIndex()
	if indexErr != nil {
		return nil, indexErr
	}
	manifest, indexErr := index.IndexManifest()
	if indexErr != nil {
		return nil, indexErr
	}
	for _, m := range manifest.Manifests {
		if m.Platform != nil && m.Platform.OS == "linux" {
			return index.Image(m.Digest)
		}
	}
	return nil, err
}

// unread says what is to be done about an image that could not be read.
func unread(ref name.Reference, err error) error {
	var answer *transport.Error
	var refused *model.RefusedError
	var plain *plainError
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("image %s: %w", ref, err)
	case errors.As(err, &plain):
		return fmt.Errorf("%w image %s: %w", backend.ErrInvalid, ref, plain)
	case errors.As(err, &answer) && answer.StatusCode < http.StatusInternalServerError && answer.StatusCode != http.StatusTooManyRequests:
		return fmt.Errorf("%w image %s: the registry does not give it: %w", backend.ErrInvalid, ref, err)
	}
	return fmt.Errorf("image %s is %w: %w", ref, backend.ErrNotReady, err)
}

// extract reads layers from the top until the bundle is what the labels say, or there are no more. Thus a labelled
// image costs its code and coefficients, and an image without labels costs its base too.
func (r Registries) extract(ctx context.Context, found v1.Image, labels map[string]string, dir string) error {
	layers, err := found.Layers()
	if err != nil {
		return err
	}
	t, err := newTree(dir, r.Limits)
	if err != nil {
		return err
	}
	defer t.close()
	want, known := labelled(labels)
	left := r.MaxBytes
	for _, layer := range slices.Backward(layers) {
		changed, err := addLayer(ctx, t, layer, &left)
		if err != nil {
			return err
		}
		if left <= 0 {
			return tooLarge("", "is in an image of more than %d bytes when unpacked, which is what is allowed", r.MaxBytes)
		}
		if t.complete() {
			return nil
		}
		if changed && known {
			if bundle, err := model.Open(dir); err == nil && same(bundle.Version, want) {
				return nil
			}
		}
	}
	return nil
}

func addLayer(ctx context.Context, t *tree, layer v1.Layer, left *int64) (bool, error) {
	content, err := layer.Uncompressed()
	if err != nil {
		return false, err
	}
	defer content.Close()
	counted := &io.LimitedReader{R: content, N: *left}
	changed, err := t.add(ctx, counted, Folder)
	if *left = counted.N; *left <= 0 {
		return changed, nil // cut off, which the caller says better than tar does
	}
	return changed, err
}

func same(a, b model.Version) bool {
	return a.CodeDigest == b.CodeDigest && a.CoefficientsDigest == b.CoefficientsDigest
}

// guarded is a transport that does not speak to other hosts without TLS, whatever a registry or a redirection says.
type guarded struct {
	next  http.RoundTripper
	plain []string
}

type plainError struct{ host string }

func (e *plainError) Error() string {
	return fmt.Sprintf("%s does not speak TLS; list it in plain_registries if that is meant", e.host)
}

// RoundTrip implements http.RoundTripper.
func (g guarded) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.URL.Scheme != "https" && !slices.Contains(g.plain, request.URL.Host) && !loopback(request.URL.Hostname()) {
		return nil, &plainError{request.URL.Host}
	}
	return g.next.RoundTrip(request)
}

func loopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
