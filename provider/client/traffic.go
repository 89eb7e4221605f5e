package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// Traffic returns the split of a function and the states of its versions.
func (c *Client) Traffic(ctx context.Context, ref backend.Ref) (backend.TrafficStatus, error) {
	return c.traffic(ctx, http.MethodGet, ref, "traffic", nil)
}

// SetTraffic splits a function's calls. It returns when the split holds, or why it does not.
func (c *Client) SetTraffic(ctx context.Context, ref backend.Ref, split traffic.Split) (backend.TrafficStatus, error) {
	body, err := json.Marshal(split)
	if err != nil {
		return backend.TrafficStatus{}, fmt.Errorf("split the calls of %s: %w", ref, err)
	}
	return c.traffic(ctx, http.MethodPut, ref, "traffic", body)
}

// Rollback moves a function's calls to the split before.
func (c *Client) Rollback(ctx context.Context, ref backend.Ref) (backend.TrafficStatus, error) {
	return c.traffic(ctx, http.MethodPost, ref, "rollback", nil)
}

func (c *Client) traffic(ctx context.Context, method string, ref backend.Ref, what string, body []byte) (out backend.TrafficStatus, err error) {
	path := fmt.Sprintf("/system/models/%s/%s?namespace=%s", ref.Name, what, url.QueryEscape(ref.Namespace))
	var content io.Reader
	if body != nil {
		content = bytes.NewReader(body)
	}
	_, err = c.do(ctx, method, path, content, int64(len(body)), &out)
	return out, err
}
