package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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
	raw, err := json.Marshal(split)
	if err != nil {
		return backend.TrafficStatus{}, fmt.Errorf("split the calls of %s: %w", ref, err)
	}
	return c.traffic(ctx, http.MethodPut, ref, "traffic", raw)
}

// Rollback moves a function's calls to the split before.
func (c *Client) Rollback(ctx context.Context, ref backend.Ref) (backend.TrafficStatus, error) {
	return c.traffic(ctx, http.MethodPost, ref, "rollback", nil)
}

func (c *Client) traffic(ctx context.Context, method string, ref backend.Ref, what string, split []byte) (out backend.TrafficStatus, err error) {
	path := modelPath(ref.Name) + "/" + what + "?namespace=" + url.QueryEscape(ref.Namespace)
	var send body
	if split != nil {
		send = body{bytes.NewReader(split), int64(len(split)), "application/json"}
	}
	_, err = c.do(ctx, method, path, send, &out)
	return out, err
}
