package api

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/faas-predict/faas-predict/auth/certificate"
	"github.com/faas-predict/faas-predict/watchdog/http1"
)

// Limits on what a client can hold open or send.
const (
	headTimeout    = 10 * time.Second // a TLS handshake has as long
	idleTimeout    = 3 * time.Minute
	maxHeaderBytes = 256 << 10
)

// HTTPServer serves connections until Shutdown, which lets calls end, or Close.
type HTTPServer interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
	Close() error
}

// NewHTTPServer returns a server for the handler with limits on everything a client can hold open. read and
// write are 0 for no limit; secure is nil for plain HTTP.
func NewHTTPServer(h http.Handler, read, write time.Duration, secure *tls.Config) HTTPServer {
	rest := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headTimeout,
		ReadTimeout:       read,
		WriteTimeout:      write,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          certificate.ErrorLog(slog.Default()),
		TLSConfig:         secure,
	}
	if secure != nil {
		return overTLS{rest}
	}
	return &http1.Server{
		Handler: h,
		Takes: func(r *http.Request) bool {
			// Only net/http bounds the time until an answer is there.
			return write == 0 && strings.HasPrefix(r.URL.Path, functionPrefix)
		},
		HeadTimeout: headTimeout,
		ReadTimeout: read,
		IdleTimeout: idleTimeout,
		Logger:      slog.Default(),
		Rest:        rest,
	}
}

// overTLS is net/http's server. Package http1 reads and watches descriptors, on which there is only what is
// encrypted, and knows no HTTP/2; what it saves is little beside the encryption.
type overTLS struct{ *http.Server }

// Serve speaks TLS, with the certificate that the server's TLSConfig says.
func (s overTLS) Serve(l net.Listener) error { return s.ServeTLS(l, "", "") }
