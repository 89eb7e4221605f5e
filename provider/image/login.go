package image

import (
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// Login is what a Docker engine is told to pull an image with: the credentials for its registry that this program has in
// its Docker configuration (see Registries), encoded as the engine's API wants them. "" is nobody's.
func Login(ref string) (string, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return "", fmt.Errorf("%w image: %w", backend.ErrInvalid, err)
	}
	host := parsed.Context().Registry
	found, err := authn.DefaultKeychain.Resolve(host)
	if err != nil {
		return "", fmt.Errorf("read the credentials for %s: %w", host, err)
	}
	if found == authn.Anonymous {
		return "", nil
	}
	login, err := found.Authorization()
	if err != nil {
		return "", fmt.Errorf("read the credentials for %s: %w", host, err)
	}
	return authconfig.Encode(registry.AuthConfig{
		Username: login.Username, Password: login.Password, ServerAddress: host.RegistryStr(),
		IdentityToken: login.IdentityToken, RegistryToken: login.RegistryToken,
	})
}
