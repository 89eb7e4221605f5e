package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/faas-predict/faas-predict/auth/certificate"
	"github.com/faas-predict/faas-predict/auth/config"
	"github.com/faas-predict/faas-predict/auth/forward"
	"github.com/faas-predict/faas-predict/auth/issuer"
	"github.com/faas-predict/faas-predict/auth/token"
)

// Limits on one request. Bodies are small, and nothing is slow but a client's hash.
const (
	headerTimeout  = 10 * time.Second
	requestTimeout = 30 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 64 << 10
)

// serve runs the issuer until ctx ends, then lets requests in progress end.
func serve(ctx context.Context, cfg *config.Config) (err error) {
	slog.SetDefault(logger(cfg))
	listener, err := net.Listen("tcp", net.JoinHostPort(cfg.ListenAddress, strconv.Itoa(cfg.Port)))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer listener.Close()
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	state, err := issuer.Open(issuer.Config{
		URL: cfg.URL(listener.Addr().(*net.TCPAddr).Port), Dir: cfg.DataDir, AccessTTL: cfg.AccessTTL, RefreshTTL: cfg.RefreshTTL,
		Algorithm: cfg.SigningAlgorithm, KeyRotation: cfg.KeyRotation, TrustedProxies: cfg.TrustedProxies, Metrics: metrics,
	})
	if errors.Is(err, issuer.ErrInUse) {
		return fmt.Errorf("data_dir %s is in use by another faas-auth: stop that one, or give this one its own data_dir and port", cfg.DataDir)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	if cfg.TrustFile != "" {
		stop, err := state.FollowTrust(cfg.TrustFile)
		if err != nil {
			return err
		}
		defer stop()
	}
	var tls *certificate.Server // nil: plain HTTP
	if cfg.TLS.Set() {
		if tls, err = certificate.Open(cfg.TLS, nil); err != nil {
			return err
		}
		defer tls.Close()
		metrics.MustRegister(tls.Metric())
	}

	failed := make(chan error, 3)
	adminServer, err := serveAdmin(cfg, state)
	if err != nil {
		return err
	}
	servers := []*http.Server{adminServer}
	run := func(handler http.Handler, serve func(*http.Server) error) {
		server := newServer(handler)
		servers = append(servers, server)
		go func() { failed <- serve(server) }()
	}
	if cfg.MetricsPort != 0 {
		metricsListener, err := net.Listen("tcp", net.JoinHostPort(cfg.ListenAddress, strconv.Itoa(cfg.MetricsPort)))
		if err != nil {
			return errors.Join(fmt.Errorf("listen for metrics: %w", err), shutDown(servers, 0))
		}
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
		run(mux, func(s *http.Server) error { return s.Serve(metricsListener) })
	}
	run(routes(cfg, state), func(s *http.Server) error {
		if tls != nil {
			s.TLSConfig = tls.Config()
			return s.ServeTLS(listener, "", "")
		}
		return s.Serve(listener)
	})
	slog.Info("serving", "address", listener.Addr().String(), "issuer", cfg.URL(listener.Addr().(*net.TCPAddr).Port), "data_dir", cfg.DataDir)

	select {
	case err = <-failed:
	case <-ctx.Done():
		slog.Info("shutting down: requests in progress may end", "within", cfg.DrainTimeout)
	}
	return errors.Join(err, shutDown(servers, cfg.DrainTimeout))
}

// routes are the issuer's, the health check, and what gateways ask.
func routes(cfg *config.Config, state *issuer.Issuer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", state.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("OK")) })
	validate := forward.New(forward.Config{
		Verifier: token.NewVerifier(token.Config{Keys: state.Keys(), Revocations: state.Revocations()}),
		Proxy:    forward.Proxy(cfg.ValidateProxy), Namespace: cfg.ValidateNamespace, Public: cfg.ValidatePublic,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Past the mux, which would redirect a path that is not in its shortest form.
		if path := r.URL.Path; path == forward.DefaultPath || strings.HasPrefix(path, forward.DefaultPath+"/") {
			validate.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func newServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: certificate.ErrorLog(slog.Default()),
	}
}

// serveAdmin serves those who may open data_dir, on a socket in it. Whoever calls it has the state open,
// so a socket that is there is one that a killed process left.
func serveAdmin(cfg *config.Config, state *issuer.Issuer) (*http.Server, error) {
	file := cfg.AdminSocket()
	const longest = 107 // bytes of a socket's path
	if len(file) > longest {
		return nil, fmt.Errorf("data_dir %s is too long: the path of admin.sock in it must not have more than %d bytes", cfg.DataDir, longest)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket of an earlier process: %w", err)
	}
	listener, err := net.Listen("unix", file)
	if err != nil {
		return nil, fmt.Errorf("listen for commands: %w", err)
	}
	if err := os.Chmod(file, 0o600); err != nil { // its directory is closed to others already
		return nil, errors.Join(err, listener.Close())
	}
	server := newServer(state.AdminHandler())
	go func() { _ = server.Serve(listener) }() // ends with Shutdown
	return server, nil
}

// shutDown ends all servers, and cuts off what is not done in time.
func shutDown(servers []*http.Server, within time.Duration) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for _, s := range servers {
		stopped := s.Shutdown(ctx)
		if errors.Is(stopped, context.DeadlineExceeded) {
			slog.Warn("requests were cut off: they did not end within drain_timeout")
			stopped = s.Close()
		}
		err = errors.Join(err, stopped)
	}
	return err
}

// auditing lets audit lines through whatever the level is. The handler below must let through what both
// need.
type auditing struct {
	slog.Handler
	level slog.Level
}

func (a auditing) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= a.level {
		return a.Handler.Handle(ctx, r)
	}
	audit := false
	r.Attrs(func(attr slog.Attr) bool {
		audit = attr.Key == "audit" // the first one
		return false
	})
	if !audit {
		return nil
	}
	return a.Handler.Handle(ctx, r)
}

func (a auditing) WithAttrs(attrs []slog.Attr) slog.Handler {
	return auditing{a.Handler.WithAttrs(attrs), a.level}
}

func (a auditing) WithGroup(name string) slog.Handler {
	return auditing{a.Handler.WithGroup(name), a.level}
}

func logger(cfg *config.Config) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.LogLevel)) // config allows only what this reads
	options := &slog.HandlerOptions{Level: min(level, slog.LevelInfo)}
	var handler slog.Handler = slog.NewTextHandler(os.Stderr, options)
	if cfg.LogFormat == "json" {
		handler = slog.NewJSONHandler(os.Stderr, options)
	}
	return slog.New(auditing{handler, level})
}

// quiet is the log of a command that changes state while nobody serves it: its audit lines, on stderr.
func quiet() *slog.Logger {
	return slog.New(auditing{slog.NewTextHandler(os.Stderr, nil), slog.LevelWarn})
}
