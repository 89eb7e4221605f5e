package registry

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// Latest is the version that names whatever was pushed last.
const Latest = "latest"

var versionPattern = regexp.MustCompile(`^[A-Za-z0-9.-]{1,64}_[A-Za-z0-9.-]{1,64}$`)

// ParseImage reads what image: says in a stack.yml: a model's name and a version or Latest.
//
// A registry and an owner may stand in front, as in registry.example/me/iris:latest, so that one
// stack.yml serves a container engine and this registry: only the last element names the model here.
// Image digests (@sha256:…) name container images and are refused.
func ParseImage(image string) (name, version string, err error) {
	shown := image
	if len(shown) > 200 {
		shown = shown[:200] + "…"
	}
	if strings.Contains(image, "@") {
		return "", "", fmt.Errorf("%w image %q: a digest names a container image; name a pushed model as NAME, NAME:latest or NAME:VERSION", backend.ErrInvalid, shown)
	}
	last := image[strings.LastIndex(image, "/")+1:]
	name, version, tagged := strings.Cut(last, ":")
	if !tagged {
		version = Latest
	}
	if !backend.ValidName(name) {
		return "", "", fmt.Errorf("%w image %q: want NAME, NAME:latest or NAME:VERSION with a model's name as NAME", backend.ErrInvalid, shown)
	}
	if version != Latest && !versionPattern.MatchString(version) {
		return "", "", fmt.Errorf("%w image %q: %q is neither latest nor a version, which reads CODE_COEFFICIENTS", backend.ErrInvalid, shown, version)
	}
	return name, version, nil
}
