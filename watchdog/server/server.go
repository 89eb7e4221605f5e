// Package server is fwatchdog's HTTP face: predictions, streams, probes, metrics, and the way down
// after SIGTERM.
//
// It turns requests into calls of the pool and what the pool says into statuses. Workers, queues and
// frames may not enter here.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/faas-predict/faas-predict/watchdog/http1"
	"github.com/faas-predict/faas-predict/watchdog/link"
	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/pool"
	"github.com/faas-predict/faas-predict/watchdog/runner"
)

// failedLinger is how long a watchdog whose model failed to initialise stays up, so that a probe can
// read why.
const failedLinger = 5 * time.Second

// Server serves one model.
type Server struct {
	settings  Settings
	bundle    *model.Bundle
	logger    *slog.Logger
	pool      *pool.Pool
	metrics   *metrics
	guard     *guard // nil: every call may pass
	inFlight  atomic.Int64
	leaving   atomic.Bool // SIGTERM came: unhealthy, but still serving
	held      atomic.Int64
	longLines chan struct{}         // one for each that is in memory
	open      atomic.Bool           // the examples were answered as the bundle says: calls are taken
	failure   atomic.Pointer[error] // why the model will never be ready
	lock      string                // path of the lock file, "" when there is none
}

// Run serves bundle until ctx ends, then drains: every accepted request is answered. now says whether
// to skip healthcheck_interval, as for an interactive interrupt. It returns an error when the model
// failed to initialise, a port is taken, or requests were left unanswered.
func Run(ctx context.Context, settings Settings, bundle *model.Bundle, logs *Logs, now func() bool) error {
	s := &Server{settings: settings, bundle: bundle, logger: logs.Logger, longLines: make(chan struct{}, heldBodies)}
	startMethod := bundle.StartMethod
	if settings.StartMethod != "" {
		startMethod = settings.StartMethod
	}
	poolMetrics := &pool.Metrics{}
	if settings.JWTAuth {
		var err error
		if s.guard, err = newGuard(settings, s.logger); err != nil {
			return err
		}
		defer s.guard.close()
	}
	listeners, err := s.listen()
	if err != nil {
		return err
	}
	s.pool = pool.New(pool.Config{
		Runner: runner.Config{
			Bundle: bundle, StartMethod: startMethod, Interpreter: settings.Interpreter, InitTimeout: settings.InitTimeout,
			Log: logs.ModelLine, LogBuffer: settings.LogBufferSize, Logger: s.logger,
		},
		Workers: settings.Workers, QueueDepth: settings.QueueDepth, BatchMaxSize: settings.BatchMaxSize,
		Logger: s.logger, Metrics: poolMetrics,
	})
	s.metrics = newMetrics(bundle.Version, s.name(), s.pool.Stats)
	poolMetrics.Batch = func(n int) { s.metrics.batch.Observe(float64(n)) }
	poolMetrics.WorkerDeath = func(cause string) { s.metrics.deaths.WithLabelValues(cause).Inc() }
	defer s.pool.Close()
	return s.serve(ctx, listeners, now)
}

func (s *Server) name() string {
	if s.settings.Name != "" {
		return s.settings.Name
	}
	return s.bundle.Name
}

// listeners are where the function and its owner are served; owner may be nil.
type listeners struct{ function, metrics, admin net.Listener }

func (s *Server) listen() (l listeners, err error) {
	defer func() {
		if err != nil {
			for _, open := range []net.Listener{l.function, l.metrics, l.admin} {
				if open != nil {
					open.Close()
				}
			}
		}
	}()
	if s.settings.AdminSocket != "" {
		if l.admin, err = listenUnix(s.settings.AdminSocket); err != nil {
			return l, err
		}
	}
	if s.settings.SocketPath != "" {
		l.function, err = listenUnix(s.settings.SocketPath)
		return l, err
	}
	if l.function, err = net.Listen("tcp", ":"+strconv.Itoa(s.settings.Port)); err != nil {
		return l, fmt.Errorf("listen on port: %w", err)
	}
	if l.metrics, err = net.Listen("tcp", ":"+strconv.Itoa(s.settings.MetricsPort)); err != nil {
		return l, fmt.Errorf("listen on metrics_port: %w", err)
	}
	return l, nil
}

func listenUnix(path string) (net.Listener, error) {
	// Only a socket that a dead watchdog left may be replaced.
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listen on %s: another process serves there", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		_ = os.Remove(path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on a Unix socket: %w", err)
	}
	return l, nil
}

func (s *Server) serve(ctx context.Context, l listeners, now func() bool) error {
	const idle, head = 2 * time.Minute, 10 * time.Second
	handler := s.functionHandler()
	links := &link.Acceptor{Handler: handler}
	// What may be called here may be called over a link as well. A request for one is never a short call.
	rest := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == link.Path && r.Header.Get("Upgrade") == link.Protocol {
			links.ServeHTTP(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	})
	function := &http1.Server{
		Handler: handler, Takes: func(r *http.Request) bool { return !isStream(r) },
		HeadTimeout: head, ReadTimeout: s.settings.ReadTimeout, WriteTimeout: s.settings.WriteTimeout, IdleTimeout: idle,
		Logger: s.logger,
		Rest: &http.Server{
			Handler: rest, ReadHeaderTimeout: head, ReadTimeout: s.settings.ReadTimeout, IdleTimeout: idle,
			MaxHeaderBytes: 1 << 20, ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
		},
	}
	owner := http.NewServeMux()
	owner.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	ended := make(chan error, 3)
	start := func(server interface{ Serve(net.Listener) error }, listener net.Listener) {
		go func() {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				ended <- fmt.Errorf("serve: %w", err)
			}
		}()
	}
	var side []*http.Server
	if l.metrics != nil {
		side = append(side, &http.Server{Handler: owner, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second})
		start(side[len(side)-1], l.metrics)
	}
	if l.admin != nil {
		admin := http.NewServeMux()
		admin.Handle("GET /metrics", owner)
		admin.HandleFunc("GET /ready", s.ready)
		admin.HandleFunc("GET /workers", s.readWorkers)
		admin.HandleFunc("PUT /workers", s.writeWorkers)
		admin.Handle("GET "+link.Path, links)
		side = append(side, &http.Server{Handler: admin, ReadHeaderTimeout: 5 * time.Second})
		start(side[len(side)-1], l.admin)
	}
	defer func() {
		for _, server := range side {
			server.Close()
		}
	}()
	if err := s.writeLock(); err != nil {
		l.function.Close()
		return err
	}
	defer s.removeLock()
	start(function, l.function)
	s.logger.Info("serving", "address", l.function.Addr().String(), "model", s.name(), "version", s.bundle.Version.ID,
		"workers", s.settings.Workers)
	failed, stopWatching := s.watchInit()
	defer stopWatching()
	select {
	case <-ctx.Done():
	case err := <-ended:
		return err
	case <-failed:
		select {
		case <-ctx.Done():
		case <-time.After(failedLinger):
		}
		function.Close()
		return *s.failure.Load()
	}
	return s.drain(function, links, now, failed)
}

// watchInit logs how init ended, and closes failed if it failed for good.
func (s *Server) watchInit() (failed <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	closed := make(chan struct{})
	began := time.Now()
	go func() {
		for {
			changed := s.pool.Changed()
			err := s.pool.Failed()
			up := err == nil && s.pool.Ready() == nil
			if up {
				// A version that answers its own examples wrongly never gets a call.
				err = CheckExamples(ctx, s.pool, s.bundle, s.settings.ExecTimeout)
			}
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				s.failure.Store(&err)
				s.logger.Error("the model cannot be served", "error", err)
				close(closed)
				return
			}
			if up {
				s.open.Store(true)
				s.logger.Info("ready", "took", time.Since(began).Round(time.Millisecond).String(), "runtime", s.pool.Stats().Runtime)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return closed, cancel
}

// drain is of-watchdog's way down: unhealthy for healthcheck_interval so that load balancers look
// elsewhere, then no new connections, then the end once everything accepted is answered.
func (s *Server) drain(function *http1.Server, links *link.Acceptor, now func() bool, failed <-chan struct{}) error {
	s.leaving.Store(true)
	s.removeLock()
	select {
	case <-failed:
		function.Close()
		return *s.failure.Load()
	default:
	}
	if wait := s.settings.HealthcheckInterval; wait > 0 && !now() {
		s.logger.Info("leaving: serving on, unhealthy, for healthcheck_interval", "interval", wait.String())
		for end := time.Now().Add(wait); time.Now().Before(end) && !now(); {
			time.Sleep(50 * time.Millisecond)
		}
	}
	s.logger.Info("draining", "requests", s.inFlight.Load())
	ctx := context.Background()
	if s.settings.DrainTimeout > 0 {
		limited, cancel := context.WithTimeout(ctx, s.settings.DrainTimeout)
		defer cancel()
		ctx = limited
	}
	if err := errors.Join(function.Shutdown(ctx), links.Shutdown(ctx)); err != nil {
		return fmt.Errorf("%d requests did not end within drain_timeout (%s)", s.inFlight.Load(), s.settings.DrainTimeout)
	}
	if err := s.pool.Drain(ctx); err != nil {
		return err
	}
	s.logger.Info("drained")
	return nil
}

// LockPath is the file that says to an exec health check that the watchdog accepts requests, where
// of-watchdog has it.
func LockPath() string { return filepath.Join(os.TempDir(), ".lock") }

func (s *Server) writeLock() error {
	if s.settings.SuppressLock {
		return nil
	}
	if err := os.WriteFile(LockPath(), nil, 0o660); err != nil {
		return fmt.Errorf("cannot write the lock file (suppress_lock=true does without): %w", err)
	}
	s.lock = LockPath()
	return nil
}

func (s *Server) removeLock() {
	if s.lock != "" {
		_ = os.Remove(s.lock)
	}
}

func (s *Server) functionHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		switch {
		case path == "/_/ready" || (s.settings.ReadyPath != "" && path == s.settings.ReadyPath):
			s.probe(w, r, s.ready)
		case path == "/_/health":
			s.probe(w, r, s.health)
		case path == "/_/version":
			s.probe(w, r, s.version)
		case len(path) >= 3 && path[:3] == "/_/":
			s.stamp(w, callID(r))
			stampTimes(w.Header(), 0, 0, 0)
			writeProblem(w, newProblem(http.StatusNotFound, path+" is not one of /_/health, /_/ready, /_/version"))
		default:
			s.predict(w, r)
		}
	})
}

func (s *Server) probe(w http.ResponseWriter, r *http.Request, handle http.HandlerFunc) {
	s.stamp(w, callID(r))
	stampTimes(w.Header(), 0, 0, 0)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeProblem(w, newProblem(http.StatusMethodNotAllowed, "a probe is a GET"))
		return
	}
	handle(w, r)
}

// health is nil as long as the watchdog accepts requests, whatever the model does.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	if s.leaving.Load() {
		writeProblem(w, newProblem(http.StatusServiceUnavailable, "the watchdog is shutting down"))
		return
	}
	if s.lock != "" {
		if _, err := os.Stat(s.lock); err != nil {
			writeProblem(w, newProblem(http.StatusServiceUnavailable, "the lock file is gone"))
			return
		}
	}
	_, _ = io.WriteString(w, "OK")
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if s.leaving.Load() {
		writeProblem(w, newProblem(http.StatusServiceUnavailable, "the watchdog is shutting down"))
		return
	}
	if err := s.accepts(); err != nil {
		p := problemOf(err)
		p.Final = s.failure.Load() != nil
		writeProblem(w, p)
		return
	}
	if err := s.pool.Ready(); err != nil {
		writeProblem(w, problemOf(err))
		return
	}
	if err := s.guard.ready(); err != nil {
		writeProblem(w, newProblem(http.StatusServiceUnavailable, err.Error()))
		return
	}
	if limit := int64(s.settings.MaxInflight); limit > 0 && s.inFlight.Load() >= limit {
		writeProblem(w, newProblem(http.StatusTooManyRequests, "max_inflight is reached"))
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
}

// accepts is nil once the model is up and answered its examples.
func (s *Server) accepts() error {
	if s.open.Load() {
		return nil
	}
	if failure := s.failure.Load(); failure != nil {
		return &pool.NotReadyError{Reason: (*failure).Error()}
	}
	if err := s.pool.Ready(); err != nil {
		return err
	}
	return &pool.NotReadyError{Reason: "the bundle's examples are being checked"}
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	stats := s.pool.Stats()
	writeJSON(w, http.StatusOK, struct {
		Name string `json:"name"`
		model.Version
		CodeLabel         string `json:"code_version,omitempty"`
		CoefficientsLabel string `json:"coefficients_version,omitempty"`
		Runtime           string `json:"runtime"`
		Interpreter       string `json:"interpreter,omitempty"`
		Workers           int    `json:"workers"`
	}{s.name(), s.bundle.Version, s.bundle.CodeVersion, s.bundle.CoefficientsVersion, s.bundle.Runtime, stats.Runtime, stats.Workers})
}

type workersState struct {
	Workers int `json:"workers"`
	Ready   int `json:"ready"`
}

func (s *Server) readWorkers(w http.ResponseWriter, _ *http.Request) {
	stats := s.pool.Stats()
	writeJSON(w, http.StatusOK, workersState{stats.Workers, stats.Ready})
}

func (s *Server) writeWorkers(w http.ResponseWriter, r *http.Request) {
	var want workersState
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<10)).Decode(&want); err != nil {
		writeProblem(w, newProblem(http.StatusBadRequest, `the body must be like {"workers": 8}`))
		return
	}
	if want.Workers < 1 || want.Workers > runner.MaxWorkers {
		writeProblem(w, newProblem(http.StatusBadRequest, fmt.Sprintf("workers must be 1 to %d", runner.MaxWorkers)))
		return
	}
	if err := s.pool.Resize(r.Context(), want.Workers); err != nil {
		writeProblem(w, problemOf(err))
		return
	}
	s.logger.Info("resized", "workers", want.Workers)
	s.readWorkers(w, r)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		writeProblem(w, newProblem(http.StatusInternalServerError, err.Error()))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
