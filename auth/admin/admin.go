// Package admin is the client of issuer.AdminHandler: functions that call it, and the commands `client` and
// `key` on top of them, which every program that can reach such a handler has in common.
//
// It opens no state and knows no credentials; where the handler is, and what lets in, is the caller's.
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/faas-predict/faas-predict/auth/issuer"
)

// Client calls an AdminHandler.
type Client struct {
	// URL is what the handler's paths are added to, without a slash at the end.
	URL string
	// HTTP sends the requests; http.DefaultClient if nil.
	HTTP *http.Client
	// Refused says what an answer means that lets nobody in, or is of another server; nil: the answer's text.
	Refused func(status int) error
	// Authorize adds to each request what lets it in; nothing if nil.
	Authorize func(*http.Request) error
}

// maxAnswer bounds an answer: all clients with their patterns.
const maxAnswer = 64 << 20

// Add registers a client. Of the client's fields, Name, Functions, Admin and AccessTTLSeconds count.
func (c *Client) Add(ctx context.Context, wanted issuer.Client) (out issuer.ClientSecret, err error) {
	return out, c.do(ctx, http.MethodPost, "/system/clients", map[string]any{
		"name": wanted.Name, "functions": wanted.Functions, "admin": wanted.Admin, "access_ttl_seconds": wanted.AccessTTLSeconds,
	}, &out)
}

// List returns all clients.
func (c *Client) List(ctx context.Context) (out []issuer.Client, err error) {
	return out, c.do(ctx, http.MethodGet, "/system/clients", nil, &out)
}

// Remove removes a client and takes back its tokens.
func (c *Client) Remove(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/system/clients/"+url.PathEscape(name), nil, nil)
}

// ResetSecret gives a client a new secret and takes back its tokens.
func (c *Client) ResetSecret(ctx context.Context, name string) (out issuer.ClientSecret, err error) {
	return out, c.do(ctx, http.MethodPost, "/system/clients/"+url.PathEscape(name)+"/secret", nil, &out)
}

// SetDisabled disables a client and takes back its tokens, or enables it again.
func (c *Client) SetDisabled(ctx context.Context, name string, disabled bool) error {
	verb := "/enable"
	if disabled {
		verb = "/disable"
	}
	return c.do(ctx, http.MethodPost, "/system/clients/"+url.PathEscape(name)+verb, nil, nil)
}

// RevokeTokens takes back every token of a client id.
func (c *Client) RevokeTokens(ctx context.Context, clientID string) error {
	return c.do(ctx, http.MethodPost, "/system/revocations", map[string]string{"client_id": clientID}, nil)
}

// Keys returns the published signing keys.
func (c *Client) Keys(ctx context.Context) (out []issuer.KeyInfo, err error) {
	return out, c.do(ctx, http.MethodGet, "/system/keys", nil, &out)
}

// RotateKeys makes the next signing key.
func (c *Client) RotateKeys(ctx context.Context) (out issuer.KeyInfo, err error) {
	return out, c.do(ctx, http.MethodPost, "/system/keys", nil, &out)
}

// RevokeKey revokes a signing key and every token signed with it.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/system/keys/"+url.PathEscape(id), nil, nil)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(raw)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.URL+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.Authorize != nil {
		if err := c.Authorize(r); err != nil {
			return err
		}
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	switch {
	case err != nil:
		return err
	case res.StatusCode >= 300:
		if c.Refused != nil {
			if err := c.Refused(res.StatusCode); err != nil {
				return err
			}
		}
		if text := strings.TrimSpace(string(raw)); text != "" && res.StatusCode != http.StatusUnauthorized {
			return errors.New(text)
		}
		return fmt.Errorf("%s %s: %s", method, path, res.Status)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("%s %s: the answer is not what it should be: %w", method, path, err)
	}
	return nil
}
