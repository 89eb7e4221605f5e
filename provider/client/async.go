package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/faas-predict/faas-predict/provider/async"
	"github.com/faas-predict/faas-predict/provider/backend"
)

// DeadLetters calls each with every dead letter, of one function unless its Name is "", the oldest first. An
// error of each ends it.
func (c *Client) DeadLetters(ctx context.Context, ref backend.Ref, each func(async.DeadLetter) error) error {
	query := url.Values{}
	if ref.Name != "" {
		query.Set("function", ref.String())
	}
	for {
		var page async.DeadPage
		if _, err := c.do(ctx, http.MethodGet, "/system/async/dead?"+query.Encode(), body{}, &page); err != nil {
			return err
		}
		for _, letter := range page.Dead {
			if err := each(letter); err != nil {
				return err
			}
		}
		if page.Next == 0 {
			return nil
		}
		query.Set("after", strconv.FormatUint(page.Next, 10))
	}
}

// RequeueDead has a dead letter tried again.
func (c *Client) RequeueDead(ctx context.Context, id uint64) error {
	_, err := c.do(ctx, http.MethodPost, fmt.Sprintf("/system/async/dead/%d/requeue", id), body{}, nil)
	return err
}

// DeleteDead deletes a dead letter.
func (c *Client) DeleteDead(ctx context.Context, id uint64) error {
	_, err := c.do(ctx, http.MethodDelete, fmt.Sprintf("/system/async/dead/%d", id), body{}, nil)
	return err
}
