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

// Limits bound what a client can hold open or send. Zero is no limit.
type Limits struct {
	Head  time.Duration // for a TLS handshake, and for a request's head
	Read  time.Duration // for a whole request
	Write time.Duration // until an answer is written, from the request's head on
	Idle  time.Duration // between two requests
}

// HeadTimeout is Limits.Head in production.
const HeadTimeout = 10 * time.Second

// maxHeaderBytes bounds a request's head. A longer one gets 431.
const maxHeaderBytes = 256 << 10

// HTTPServer serves connections until Shutdown, which lets calls end, or Close.
type HTTPServer interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
	Close() error
}

// NewHTTPServer returns a server for the handler. secure is nil for plain HTTP.
func NewHTTPServer(h http.Handler, limits Limits, secure *tls.Config) HTTPServer {
	rest := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: limits.Head,
		ReadTimeout:       limits.Read,
		WriteTimeout:      limits.Write,
		IdleTimeout:       limits.Idle,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          certificate.ErrorLog(slog.Default()),
		TLSConfig:         secure,
	}
	if secure != nil {
		return newOverTLS(rest)
	}
	return &http1.Server{
		Handler: h,
		Takes: func(r *http.Request) bool {
			// Only net/http bounds the time until an answer is there.
			return limits.Write == 0 && strings.HasPrefix(r.URL.Path, functionPrefix)
		},
		HeadTimeout: limits.Head,
		ReadTimeout: limits.Read,
		IdleTimeout: limits.Idle,
		Logger:      slog.Default(),
		Rest:        rest,
	}
}
