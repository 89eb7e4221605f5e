package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/faas-predict/faas-predict/provider/api"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Pushed is what came of a push.
type Pushed struct {
	api.ModelVersion
	Created bool // false: the provider had the same content
	// What was sent of each half. The provider had the rest.
	CodeSent, CoefficientsSent int64
	Zipped                     bool // an older provider: everything was sent, packed
}

// maxRounds bounds how often a push uploads what the provider says is missing: blobs that no version
// uses may go while others are on their way.
const maxRounds = 3

// Push gives the provider the bundle, a directory or a zip, as a version of the model name; ""
// takes the bundle's own name. It asks first what the provider lacks and sends only that. progress,
// which may be nil, hears how many of how many bytes are sent.
func (c *Client) Push(ctx context.Context, bundle, name string, progress func(sent, total int64)) (Pushed, error) {
	scratch, err := os.MkdirTemp("", "faas-predict-push-")
	if err != nil {
		return Pushed{}, fmt.Errorf("push: %w", err)
	}
	defer os.RemoveAll(scratch)
	// A zip is opened too: what the provider would refuse after the upload is refused before it.
	b, err := model.Load(ctx, bundle, scratch, model.DefaultLimits)
	if err != nil {
		return Pushed{}, fmt.Errorf("%s: %w", bundle, err)
	}
	if name == "" {
		name = b.Name
	}
	missing, status, err := c.missing(ctx, b.Files)
	if status == http.StatusNotFound || status == http.StatusMethodNotAllowed {
		return c.pushZip(ctx, b, name, scratch, progress)
	}
	if err != nil {
		return Pushed{}, err
	}
	u := upload{client: c, bundle: b, progress: progress}
	for range maxRounds {
		if err := u.send(ctx, missing); err != nil {
			return Pushed{}, err
		}
		var done bool
		if done, missing, err = c.pushList(ctx, b, name, &u.Pushed); done || err != nil {
			return u.Pushed, err
		}
	}
	return Pushed{}, fmt.Errorf("push: %s still lacks %d files after %d uploads", c.gateway, len(missing), maxRounds)
}

// missing asks which of the files' contents the provider lacks.
func (c *Client) missing(ctx context.Context, files []model.File) ([]string, int, error) {
	asked := api.Digests{SHA256: make([]string, 0, len(files))}
	for _, f := range files {
		asked.SHA256 = append(asked.SHA256, f.SHA256)
	}
	var lacks api.Missing
	send, err := jsonBody(asked)
	if err != nil {
		return nil, 0, err
	}
	status, err := c.do(ctx, http.MethodPost, "/system/blobs/missing", send, &lacks)
	return lacks.Missing, status, err
}

func jsonBody(value any) (body, error) {
	raw, err := json.Marshal(value)
	if err != nil {
		return body{}, fmt.Errorf("push: %w", err)
	}
	return body{bytes.NewReader(raw), int64(len(raw)), "application/json"}, nil
}

// pushList makes the version of what is uploaded, or returns what is missing.
func (c *Client) pushList(ctx context.Context, b *model.Bundle, name string, out *Pushed) (done bool, missing []string, err error) {
	send, err := jsonBody(api.FileList{Files: b.Files})
	if err != nil {
		return false, nil, err
	}
	var answer json.RawMessage
	status, err := c.do(ctx, http.MethodPut, modelPath(name), send, &answer)
	if err != nil {
		return false, nil, err
	}
	if status == http.StatusPreconditionFailed {
		var lacks api.Missing
		if err := json.Unmarshal(answer, &lacks); err != nil {
			return false, nil, fmt.Errorf("read the answer of %s: %w", c.gateway, err)
		}
		return false, lacks.Missing, nil
	}
	if err := json.Unmarshal(answer, &out.ModelVersion); err != nil {
		return false, nil, fmt.Errorf("read the answer of %s: %w", c.gateway, err)
	}
	out.Created = status == http.StatusCreated
	return true, nil, nil
}

func modelPath(name string) string { return "/system/models/" + url.PathEscape(name) }

// upload sends a bundle's files.
type upload struct {
	client      *Client
	bundle      *model.Bundle
	progress    func(sent, total int64)
	sent, total int64
	Pushed      Pushed
}

// send uploads the files with these contents, each content once.
func (u *upload) send(ctx context.Context, missing []string) error {
	wanted := make(map[string]bool, len(missing))
	for _, digest := range missing {
		wanted[digest] = true
	}
	var files []model.File
	for _, f := range u.bundle.Files {
		if wanted[f.SHA256] {
			delete(wanted, f.SHA256)
			files = append(files, f)
			u.total += f.Size
		}
	}
	for _, f := range files {
		if err := u.sendFile(ctx, f); err != nil {
			return fmt.Errorf("push %s: %w", f.Path, err)
		}
		if f.Coefficient {
			u.Pushed.CoefficientsSent += f.Size
		} else {
			u.Pushed.CodeSent += f.Size
		}
	}
	return nil
}

func (u *upload) sendFile(ctx context.Context, f model.File) error {
	in, err := os.Open(filepath.Join(u.bundle.Dir, filepath.FromSlash(f.Path)))
	if err != nil {
		return err
	}
	defer in.Close()
	content := &counted{Reader: in, sent: u.sent, total: u.total, progress: u.progress}
	if _, err := u.client.do(ctx, http.MethodPut, "/system/blobs/"+f.SHA256, body{content, f.Size, "application/octet-stream"}, nil); err != nil {
		return err
	}
	u.sent += f.Size
	return nil
}

// pushZip is the push of providers that keep no blobs.
func (c *Client) pushZip(ctx context.Context, b *model.Bundle, name, scratch string, progress func(sent, total int64)) (p Pushed, err error) {
	packed, err := os.Create(filepath.Join(scratch, "bundle.zip"))
	if err != nil {
		return p, fmt.Errorf("push: %w", err)
	}
	defer packed.Close()
	if err := b.Pack(packed); err != nil {
		return p, fmt.Errorf("push: %w", err)
	}
	size, err := packed.Seek(0, io.SeekCurrent)
	if err != nil {
		return p, fmt.Errorf("push: %w", err)
	}
	if _, err := packed.Seek(0, io.SeekStart); err != nil {
		return p, fmt.Errorf("push: %w", err)
	}
	content := &counted{Reader: packed, total: size, progress: progress}
	status, err := c.do(ctx, http.MethodPut, modelPath(name), body{content, size, "application/zip"}, &p.ModelVersion)
	p.Created, p.Zipped = status == http.StatusCreated, true
	return p, err
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
