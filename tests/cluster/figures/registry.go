package main

import (
	"io"
	"log"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	standard "github.com/google/go-containerregistry/pkg/registry"
)

// registry is a real one in memory, which counts what it is sent.
type registry struct {
	address string
	server  *http.Server

	mu      sync.Mutex
	uploads map[string]int64 // bytes so far, by the upload's path
	blobs   map[string]int64 // that came since reset, by digest
}

func startRegistry() (*registry, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{address: listener.Addr().String(), uploads: map[string]int64{}, blobs: map[string]int64{}}
	handler := standard.New(standard.Logger(log.New(io.Discard, "", 0)))
	r.server = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if !strings.Contains(request.URL.Path, "/blobs/uploads/") || request.Method != http.MethodPatch && request.Method != http.MethodPut {
			handler.ServeHTTP(w, request)
			return
		}
		counted := &counter{ReadCloser: request.Body}
		request.Body = counted
		handler.ServeHTTP(w, request)
		r.sent(path.Base(request.URL.Path), request.URL.Query().Get("digest"), counted.bytes)
	})}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

func (r *registry) stop() { _ = r.server.Close() }

// sent notes bytes of an upload, which has come to its end where a digest is given.
func (r *registry) sent(upload, digest string, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uploads[upload] += bytes
	if digest != "" {
		r.blobs[digest] = r.uploads[upload]
		delete(r.uploads, upload)
	}
}

// reset forgets what came before.
func (r *registry) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.blobs)
}

// received is what came since reset, by digest.
func (r *registry) received() map[string]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]int64{}
	for digest, bytes := range r.blobs {
		out[digest] = bytes
	}
	return out
}

type counter struct {
	io.ReadCloser
	bytes int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.bytes += int64(n)
	return n, err
}
