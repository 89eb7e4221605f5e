package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/openfaas/faas-provider/auth"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/faas-predict/faas-predict/auth/certificate"
	"github.com/faas-predict/faas-predict/provider/accesslog"
	"github.com/faas-predict/faas-predict/provider/api"
	"github.com/faas-predict/faas-predict/provider/async"
	"github.com/faas-predict/faas-predict/provider/config"
	"github.com/faas-predict/faas-predict/provider/gateway"
	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// gcPercent lets garbage grow to a few times what is live, which is little: a call leaves some ten
// kilobytes behind, and collecting them less often is worth a few percent of all calls.
const gcPercent = 400

// serve runs the provider until ctx ends, then lets calls and functions finish.
func serve(ctx context.Context, cfg *config.Config) (err error) {
	setLogger(cfg)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	syscall.Umask(0o022) // functions' users read bundles and environments; private files say so themselves
	if err := os.MkdirAll(cfg.DataDir, 0o711); err != nil {
		return fmt.Errorf("make data_dir: %w", err)
	}
	db, err := openState(filepath.Join(cfg.DataDir, "state.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	credentials, err := adminCredentials(cfg)
	if err != nil {
		return err
	}
	models, err := openModels(cfg, db)
	if err != nil {
		return err
	}
	// The address is taken before functions start: a port that is in use should cost nothing.
	listener, err := net.Listen("tcp", net.JoinHostPort(cfg.ListenAddress, strconv.Itoa(cfg.Port)))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer listener.Close()
	metrics := prometheus.NewRegistry()
	tokens, err := openTokens(cfg, listener.Addr().(*net.TCPAddr).Port, metrics)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tokens.close()) }()
	var secure *tls.Config // nil: plain HTTP
	if cfg.TLS.Set() {
		files, err := certificate.Open(cfg.TLS, nil)
		if err != nil {
			return err
		}
		defer files.Close()
		metrics.MustRegister(files.Metric())
		secure = files.Config()
	}
	functions, err := openBackend(ctx, cfg, db, models)
	if err != nil {
		return err
	}
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), functions)
	later := async.New(cfg.Async, metrics)
	front := gateway.New(gateway.Options{
		Backend:     functions,
		MaxReplicas: cfg.MaxReplicas,
		HoldTimeout: cfg.ScaleFromZeroTimeout,
		MaxHeld:     cfg.ScaleFromZeroQueue,
		Metrics:     metrics,
	})
	front.Start(ctx)
	defer front.Close()
	surface := api.New(api.Options{
		Backend:       functions,
		Functions:     functions,
		Models:        models,
		Async:         later,
		Gateway:       front,
		Access:        api.Access{Basic: credentials, Tokens: tokens.verifier, Bundles: models.Admits, Functions: cfg.JWTAuth},
		Issuer:        tokens.issuer,
		BehindGateway: cfg.BehindGateway,
		MaxBodyBytes:  cfg.MaxBodyBytes,
		Profiling:     cfg.Profiling,
		Orchestration: cfg.Backend,
		Version:       version(),
		Metrics:       metrics,
	})
	later.Start(surface)
	var handler http.Handler = surface
	if cfg.AccessLog != accesslog.Off {
		lines := accesslog.New(os.Stdout, cfg.AccessLog, cfg.TrustedProxies, metrics)
		defer lines.Close()
		handler = lines.Handler(surface)
	}
	server := api.NewHTTPServer(handler, api.Limits{
		Head: api.HeadTimeout, Read: cfg.ReadTimeout, Write: cfg.WriteTimeout, Idle: cfg.IdleTimeout,
	}, secure)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(api.LimitConnections(listener, maxConnections(cfg), metrics)) }()
	slog.Info("serving", "address", listener.Addr().String(), "data_dir", cfg.DataDir, "backend", cfg.Backend, "tls", cfg.TLS.Set(), "basic_auth", cfg.BasicAuth)

	select {
	case err = <-failed:
	case <-ctx.Done():
		surface.Leave()
		slog.Info("shutting down: calls in progress may finish", "after", cfg.DrainDelay, "within", cfg.DrainTimeout)
		select {
		case err = <-failed:
		case <-time.After(cfg.DrainDelay):
		}
	}
	ending, cancel := context.WithTimeout(context.Background(), cfg.DrainTimeout+5*time.Second)
	defer cancel()
	return errors.Join(err, shutDown(ending, server, later, functions, cfg.DrainTimeout))
}

// maxConnections leaves the other half of the files for functions, models and the database.
func maxConnections(cfg *config.Config) int {
	const few = 512 // where the limit is unknown
	var files syscall.Rlimit
	if cfg.MaxConnections > 0 {
		return cfg.MaxConnections
	}
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return few
	}
	return int(max(1, min(files.Cur/2, 1<<20)))
}

// shutDown ends in this order: no new requests, then log streams (which Close of the backend ends),
// then functions once their calls are answered, those for which nobody waits included.
func shutDown(ctx context.Context, server api.HTTPServer, later *async.Queue, functions running, drain time.Duration) error {
	functions.EndStreams()
	quiet, cancel := context.WithTimeout(ctx, drain)
	defer cancel()
	stored := make(chan struct{})
	go func() {
		defer close(stored)
		if err := later.Close(quiet); err != nil {
			slog.Warn("asynchronous calls were cut off", "error", err)
		}
	}()
	err := server.Shutdown(quiet)
	if errors.Is(err, context.DeadlineExceeded) {
		slog.Warn("calls were cut off: they did not end within drain_timeout")
		err = server.Close()
	}
	<-stored
	return errors.Join(err, functions.Close(ctx))
}

func setLogger(cfg *config.Config) {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.LogLevel)) // config allows only what this reads
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(os.Stderr, options)
	if cfg.LogFormat == "json" {
		handler = slog.NewJSONHandler(os.Stderr, options)
	}
	slog.SetDefault(slog.New(handler))
}

// openState opens the database, whose lock also keeps a second provider out of data_dir.
func openState(file string) (*bbolt.DB, error) {
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("data_dir %s is in use by another faas-predict serve: stop that one, or give this one its own data_dir and port", filepath.Dir(file))
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	return db, nil
}

func openModels(cfg *config.Config, db *bbolt.DB) (*registry.Registry, error) {
	dir := filepath.Join(cfg.DataDir, "models")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make models directory: %w", err)
	}
	return registry.Open(db, dir, model.DefaultLimits, cfg.MaxModelBytes)
}

// adminCredentials reads user and password as faas-provider does. In its own directory below
// data_dir the provider makes them at the first start; in one that somebody named, it expects them.
func adminCredentials(cfg *config.Config) (*api.Credentials, error) {
	if !cfg.BasicAuth {
		slog.Warn("basic_auth is false: everyone who reaches this port may deploy and delete")
		return nil, nil
	}
	if cfg.SecretMountPath == cfg.AdminDir() {
		if err := generateCredentials(cfg.SecretMountPath); err != nil {
			return nil, fmt.Errorf("generate admin password: %w", err)
		}
	}
	files := auth.ReadBasicAuthFromDisk{SecretMountPath: cfg.SecretMountPath}
	c, err := files.Read()
	if err != nil {
		return nil, fmt.Errorf("basic_auth needs the files basic-auth-user and basic-auth-password in secret_mount_path: %w", err)
	}
	if c.User == "" || c.Password == "" {
		return nil, fmt.Errorf("basic_auth needs a user and a password that are not empty in %s", cfg.SecretMountPath)
	}
	slog.Info("the API asks for credentials", "user", c.User, "password_file", filepath.Join(cfg.SecretMountPath, passwordFile))
	return api.NewCredentials(c.User, c.Password), nil
}

const (
	userFile     = "basic-auth-user"
	passwordFile = "basic-auth-password"
)

// generateCredentials writes the files unless they are there. Each appears complete or not at all.
func generateCredentials(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, value := range map[string]string{userFile: "admin", passwordFile: rand.Text()} {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); err == nil {
			continue
		}
		if err := os.WriteFile(file+".part", []byte(value), 0o600); err != nil {
			return err
		}
		if err := os.Rename(file+".part", file); err != nil {
			return err
		}
	}
	return nil
}
