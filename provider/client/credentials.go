package client

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/openfaas/faas-provider/auth"
	sdk "github.com/openfaas/go-sdk"
	"gopkg.in/yaml.v3"
)

// Bearer lets requests in by a token.
type Bearer string

// Set implements sdk.ClientAuth.
func (b Bearer) Set(r *http.Request) error {
	r.Header.Set("Authorization", "Bearer "+string(b))
	return nil
}

// FindCredentials returns what to log in with at gateway: what faas-cli login or Save left for it, or, for
// a provider of this machine, the admin files in adminDir; those first if they were asked for by name. nil
// means that there is nothing.
func FindCredentials(gateway, adminDir string, named bool) (sdk.ClientAuth, error) {
	if named {
		if found := fromAdminFiles(gateway, adminDir); found != nil {
			return found, nil
		}
	}
	found, err := fromFaasCLI(gateway)
	if found != nil || err != nil {
		return found, err
	}
	return fromAdminFiles(gateway, adminDir), nil
}

func fromAdminFiles(gateway, adminDir string) sdk.ClientAuth {
	if u, err := url.Parse(gateway); err != nil || !local(u.Hostname()) {
		return nil
	}
	files := auth.ReadBasicAuthFromDisk{SecretMountPath: adminDir}
	if c, err := files.Read(); err == nil {
		return &sdk.BasicAuth{Username: c.User, Password: c.Password}
	}
	return nil
}

func local(host string) bool { return host == "127.0.0.1" || host == "localhost" || host == "::1" }

// faasCLIFile is where faas-cli keeps its credentials: in OPENFAAS_CONFIG, else below the working directory
// when CI is true, else below the home directory.
func faasCLIFile() (string, error) {
	dir := os.Getenv("OPENFAAS_CONFIG")
	if ci := os.Getenv("CI"); dir == "" && (ci == "true" || ci == "1") {
		dir = ".openfaas"
	}
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(home, ".openfaas")
	}
	return filepath.Join(dir, "config.yml"), nil
}

// faasCLIConfig is that file. What else it may hold in time is kept as it is.
type faasCLIConfig struct {
	Auths []faasCLIAuth  `yaml:"auths"`
	Rest  map[string]any `yaml:",inline"`
}

type faasCLIAuth struct {
	Gateway string         `yaml:"gateway,omitempty"`
	Auth    string         `yaml:"auth,omitempty"`
	Token   string         `yaml:"token,omitempty"`
	Rest    map[string]any `yaml:",inline"`
}

// Kinds of faasCLIAuth.
const (
	basicKind  = "basic"
	oauth2Kind = "oauth2"
)

func readFaasCLI(file string) (c faasCLIConfig, err error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err == nil {
		err = yaml.Unmarshal(raw, &c)
	}
	if err != nil {
		return c, fmt.Errorf("read faas-cli's credentials in %s: %w", file, err)
	}
	return c, nil
}

func fromFaasCLI(gateway string) (sdk.ClientAuth, error) {
	file, err := faasCLIFile()
	if err != nil {
		return nil, nil
	}
	config, err := readFaasCLI(file)
	if err != nil {
		return nil, err
	}
	for _, a := range config.Auths {
		if !sameGateway(a.Gateway, gateway) {
			continue
		}
		switch a.Auth {
		case oauth2Kind:
			return Bearer(a.Token), nil
		case basicKind:
			pair, err := base64.StdEncoding.DecodeString(a.Token)
			user, password, ok := strings.Cut(string(pair), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("faas-cli's credentials for %s in %s are damaged: log in again", gateway, file)
			}
			return &sdk.BasicAuth{Username: user, Password: password}, nil
		}
	}
	return nil, nil
}

func sameGateway(a, b string) bool { return strings.TrimRight(a, "/") == strings.TrimRight(b, "/") }

// Save leaves a token where faas-cli and FindCredentials look for one, in place of what is there for the
// gateway, and returns the file. Nobody else can read it, and it is whole whatever happens meanwhile.
func (c *Client) Save(token string) (file string, err error) {
	if file, err = faasCLIFile(); err != nil {
		return "", fmt.Errorf("find faas-cli's credentials: %w", err)
	}
	config, err := readFaasCLI(file)
	if err != nil {
		return "", err
	}
	entry := faasCLIAuth{Gateway: c.Gateway(), Auth: oauth2Kind, Token: token}
	kept := []faasCLIAuth{entry}
	for _, a := range config.Auths {
		if !sameGateway(a.Gateway, entry.Gateway) {
			kept = append(kept, a)
		}
	}
	config.Auths = kept
	raw, err := yaml.Marshal(config)
	if err != nil {
		return "", fmt.Errorf("save a token for faas-cli: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", fmt.Errorf("save a token for faas-cli: %w", err)
	}
	part, err := os.CreateTemp(filepath.Dir(file), "config-*") // for this user only
	if err != nil {
		return "", fmt.Errorf("save a token for faas-cli: %w", err)
	}
	_, err = part.Write(raw)
	err = errors.Join(err, part.Close())
	if err == nil {
		err = os.Rename(part.Name(), file)
	}
	if err != nil {
		_ = os.Remove(part.Name())
		return "", fmt.Errorf("save a token for faas-cli: %w", err)
	}
	return file, nil
}
