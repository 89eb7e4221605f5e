// Package client is the command line's side of a running provider: it finds credentials, pushes
// bundles and asks about models. What go-sdk can do is left to go-sdk.
package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/openfaas/faas-provider/auth"
	sdk "github.com/openfaas/go-sdk"
	"gopkg.in/yaml.v3"

	"github.com/faas-predict/faas-predict/provider/api"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Client talks to one provider.
type Client struct {
	gateway *url.URL
	auth    *sdk.BasicAuth // nil: none found
	http    *http.Client
}

// New returns a client for the provider at gateway, an http or https URL.
func New(gateway string, auth *sdk.BasicAuth) (*Client, error) {
	u, err := url.Parse(strings.TrimRight(gateway, "/"))
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("gateway %q: want a URL such as http://127.0.0.1:8080", gateway)
	}
	return &Client{gateway: u, auth: auth, http: &http.Client{}}, nil
}

// SDK returns go-sdk's client for the same provider.
func (c *Client) SDK() *sdk.Client {
	if c.auth == nil {
		return sdk.NewClientWithOpts(c.gateway, c.http)
	}
	return sdk.NewClient(c.gateway, c.auth, c.http)
}

// Gateway is the URL without a slash at its end.
func (c *Client) Gateway() string { return c.gateway.String() }

// FindCredentials returns what to log in with at gateway: what faas-cli login saved for it, or, for a
// provider of this machine, the admin files in adminDir. nil means that there is nothing.
func FindCredentials(gateway, adminDir string) (*sdk.BasicAuth, error) {
	found, err := fromFaasCLI(gateway)
	if found != nil || err != nil {
		return found, err
	}
	if u, err := url.Parse(gateway); err != nil || !local(u.Hostname()) {
		return nil, nil
	}
	files := auth.ReadBasicAuthFromDisk{SecretMountPath: adminDir}
	if c, err := files.Read(); err == nil {
		return &sdk.BasicAuth{Username: c.User, Password: c.Password}, nil
	}
	return nil, nil
}

func local(host string) bool { return host == "127.0.0.1" || host == "localhost" || host == "::1" }

// fromFaasCLI reads the file that faas-cli login writes.
func fromFaasCLI(gateway string) (*sdk.BasicAuth, error) {
	dir := os.Getenv("OPENFAAS_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil
		}
		dir = filepath.Join(home, ".openfaas")
	}
	file := filepath.Join(dir, "config.yml")
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read faas-cli's credentials: %w", err)
	}
	var config struct {
		Auths []struct{ Gateway, Auth, Token string }
	}
	if err := yaml.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("read faas-cli's credentials in %s: %w", file, err)
	}
	for _, a := range config.Auths {
		if a.Auth != "basic" || strings.TrimRight(a.Gateway, "/") != strings.TrimRight(gateway, "/") {
			continue
		}
		pair, err := base64.StdEncoding.DecodeString(a.Token)
		user, password, ok := strings.Cut(string(pair), ":")
		if err != nil || !ok {
			return nil, fmt.Errorf("faas-cli's credentials for %s in %s are damaged: log in again", gateway, file)
		}
		return &sdk.BasicAuth{Username: user, Password: password}, nil
	}
	return nil, nil
}

// Push sends the bundle, a directory or a zip, as a version of the model name; "" takes the bundle's
// own name. progress hears how many of how many bytes are sent. created is false when the provider
// had the same content.
func (c *Client) Push(ctx context.Context, bundle, name string, progress func(sent, total int64)) (v api.ModelVersion, created bool, err error) {
	scratch, err := os.MkdirTemp("", "faas-predict-push-")
	if err != nil {
		return v, false, fmt.Errorf("push: %w", err)
	}
	defer os.RemoveAll(scratch)
	// A zip is opened too: what the provider would refuse after the upload is refused before it.
	b, err := model.Load(ctx, bundle, scratch, model.DefaultLimits)
	if err != nil {
		return v, false, fmt.Errorf("%s: %w", bundle, err)
	}
	if name == "" {
		name = b.Name
	}
	packed, err := os.Create(filepath.Join(scratch, "bundle.zip"))
	if err != nil {
		return v, false, fmt.Errorf("push: %w", err)
	}
	defer packed.Close()
	if err := b.Pack(packed); err != nil {
		return v, false, fmt.Errorf("push: %w", err)
	}
	size, err := packed.Seek(0, io.SeekCurrent)
	if err != nil {
		return v, false, fmt.Errorf("push: %w", err)
	}
	if _, err := packed.Seek(0, io.SeekStart); err != nil {
		return v, false, fmt.Errorf("push: %w", err)
	}
	body := &counted{Reader: packed, total: size, progress: progress}
	status, err := c.do(ctx, http.MethodPut, "/system/models/"+url.PathEscape(name), body, size, &v)
	return v, status == http.StatusCreated, err
}

// counted reports what is read. It hides Close: the transport must not close the file.
type counted struct {
	io.Reader
	sent, total int64
	progress    func(sent, total int64)
}

func (r *counted) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.sent += int64(n); n > 0 && r.progress != nil {
		r.progress(r.sent, r.total)
	}
	return n, err
}

// Model returns one model's versions.
func (c *Client) Model(ctx context.Context, name string) (m api.Model, err error) {
	_, err = c.do(ctx, http.MethodGet, "/system/models/"+url.PathEscape(name), nil, 0, &m)
	return m, err
}

// Models returns every model's versions.
func (c *Client) Models(ctx context.Context) (all []api.Model, err error) {
	_, err = c.do(ctx, http.MethodGet, "/system/models", nil, 0, &all)
	return all, err
}

func (c *Client) do(ctx context.Context, method, path string, body io.Reader, size int64, out any) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.gateway.String()+path, body)
	if err != nil {
		return 0, fmt.Errorf("ask %s: %w", c.gateway, err)
	}
	if body != nil {
		req.ContentLength = size
		req.Header.Set("Content-Type", "application/zip")
		// Credentials and name are judged before the body is sent, not after gigabytes of it.
		req.Header.Set("Expect", "100-continue")
	}
	if c.auth != nil {
		if err := c.auth.Set(req); err != nil {
			return 0, fmt.Errorf("ask %s: %w", c.gateway, err)
		}
	}
	res, err := c.http.Do(req)
	if err != nil {
		return 0, fmt.Errorf("ask %s: %w", c.gateway, err)
	}
	defer res.Body.Close()
	const maxAnswer = 64 << 20
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return res.StatusCode, fmt.Errorf("read the answer of %s: %w", c.gateway, err)
	}
	switch {
	case res.StatusCode == http.StatusUnauthorized:
		return res.StatusCode, fmt.Errorf("%s wants other credentials: log in with faas-cli login, or give --username and --password-stdin", c.gateway)
	case res.StatusCode >= http.StatusMultipleChoices:
		return res.StatusCode, fmt.Errorf("%s answered %s: %s", c.gateway, res.Status, strings.TrimSpace(string(answer)))
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return res.StatusCode, fmt.Errorf("read the answer of %s: %w", c.gateway, err)
	}
	return res.StatusCode, nil
}
