// Package client is the command line's side of a running provider: it finds credentials, pushes
// bundles and asks about models. What go-sdk can do is left to go-sdk.
package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/auth/admin"
	"github.com/faas-predict/faas-predict/provider/api"
)

// Client talks to one provider.
type Client struct {
	gateway *url.URL
	auth    sdk.ClientAuth // nil: none found
	http    *http.Client
}

// New returns a client for the provider at gateway, an http or https URL.
func New(gateway string, auth sdk.ClientAuth) (*Client, error) {
	u, err := url.Parse(strings.TrimRight(gateway, "/"))
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("gateway %q: want a URL such as http://127.0.0.1:8080", gateway)
	}
	return &Client{gateway: u, auth: auth, http: &http.Client{}}, nil
}

// SetTLS says how an https provider is talked to. It must come before the first request.
func (c *Client) SetTLS(config *tls.Config) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = config
	c.http.Transport = transport
}

// SDK returns go-sdk's client for the same provider.
func (c *Client) SDK() *sdk.Client {
	if c.auth == nil {
		return sdk.NewClientWithOpts(c.gateway, c.http)
	}
	return sdk.NewClient(c.gateway, c.auth, c.http)
}

// Tokens is the client for those who register clients of the provider's issuer.
func (c *Client) Tokens() *admin.Client {
	out := &admin.Client{URL: c.Gateway(), HTTP: c.http, Refused: func(status int) error {
		if status == http.StatusUnauthorized {
			return c.otherCredentials()
		}
		return nil
	}}
	if c.auth != nil {
		out.Authorize = c.auth.Set
	}
	return out
}

func (c *Client) otherCredentials() error {
	if _, saved := c.auth.(Bearer); saved {
		return fmt.Errorf("%s does not take the saved token, which may have expired: log in again with faas-predict login, or name the provider's --data-dir", c.gateway)
	}
	return fmt.Errorf("%s wants other credentials: log in with faas-cli login or faas-predict login, give --username and --password-stdin, or name the provider's --data-dir", c.gateway)
}

// Gateway is the URL without a slash at its end.
func (c *Client) Gateway() string { return c.gateway.String() }

// Model returns one model's versions.
func (c *Client) Model(ctx context.Context, name string) (m api.Model, err error) {
	_, err = c.do(ctx, http.MethodGet, "/system/models/"+url.PathEscape(name), body{}, &m)
	return m, err
}

// Models returns every model's versions.
func (c *Client) Models(ctx context.Context) (all []api.Model, err error) {
	_, err = c.do(ctx, http.MethodGet, "/system/models", body{}, &all)
	return all, err
}

// body is what a request sends; without a Reader that is nothing.
type body struct {
	io.Reader
	size int64
	kind string // Content-Type
}

// smallBody is sent without asking first whether it is wanted: that would cost more than it saves.
const smallBody = 64 << 10

// do asks and reads the answer into out, unless that is nil. 412 is an answer like 200: what it
// lists is out's. The status is 0 when there was no answer.
func (c *Client) do(ctx context.Context, method, path string, send body, out any) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.gateway.String()+path, send.Reader)
	if err != nil {
		return 0, fmt.Errorf("ask %s: %w", c.gateway, err)
	}
	if send.Reader != nil {
		req.ContentLength = send.size
		req.Header.Set("Content-Type", send.kind)
		if send.size > smallBody {
			// Credentials and name are judged before the body is sent, not after gigabytes of it.
			req.Header.Set("Expect", "100-continue")
		}
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
		return res.StatusCode, c.otherCredentials()
	case res.StatusCode >= http.StatusMultipleChoices && res.StatusCode != http.StatusPreconditionFailed:
		return res.StatusCode, fmt.Errorf("%s answered %s: %s", c.gateway, res.Status, strings.TrimSpace(string(answer)))
	}
	if out == nil {
		return res.StatusCode, nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return res.StatusCode, fmt.Errorf("read the answer of %s: %w", c.gateway, err)
	}
	return res.StatusCode, nil
}
