package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Issued is a token that the provider's issuer gave.
type Issued struct {
	AccessToken string
	Expires     time.Time
	Scope       string
}

// maxTokenAnswer bounds the issuer's answer.
const maxTokenAnswer = 64 << 10

// Token asks the issuer at the gateway for an access token as a registered client: for all that the client
// may do, or for the scope and the functions (namespace:name) named. go-sdk's own
// ClientCredentialsTokenSource says neither when its token expires nor why one was refused.
func (c *Client) Token(ctx context.Context, client, secret, scope string, audience []string) (Issued, error) {
	form := url.Values{"grant_type": {"client_credentials"}}
	if scope != "" {
		form.Set("scope", scope)
	}
	for _, function := range audience {
		form.Add("audience", function)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.Gateway()+"/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		return Issued{}, fmt.Errorf("ask for a token: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(url.QueryEscape(client), url.QueryEscape(secret)) // RFC 6749, section 2.3.1
	res, err := c.http.Do(req)
	if err != nil {
		return Issued{}, fmt.Errorf("ask for a token: %w", err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxTokenAnswer))
	if err != nil {
		return Issued{}, fmt.Errorf("ask for a token: %w", err)
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
		Scope       string `json:"scope"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	err = json.Unmarshal(raw, &answer)
	switch {
	case err == nil && answer.Error != "":
		return Issued{}, fmt.Errorf("%s gave no token: %s: %s", c.gateway, answer.Error, answer.Description)
	case res.StatusCode == http.StatusNotFound:
		return Issued{}, fmt.Errorf("%s issues no tokens: ask the issuer that its setting authority names", c.gateway)
	case res.StatusCode != http.StatusOK:
		return Issued{}, fmt.Errorf("%s gave no token: %s", c.gateway, res.Status)
	case err != nil || answer.AccessToken == "" || answer.ExpiresIn <= 0:
		return Issued{}, errors.New("the answer to a request for a token is not what it should be")
	}
	return Issued{answer.AccessToken, time.Now().Add(time.Duration(answer.ExpiresIn) * time.Second), answer.Scope}, nil
}
