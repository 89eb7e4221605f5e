package server

import (
	"bufio"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/runner"
)

// Settings are what the environment says, with every default filled in.
type Settings struct {
	Port                int
	MetricsPort         int
	SocketPath          string
	AdminSocket         string
	ModelPath           string
	Interpreter         string
	Workers             int
	StartMethod         string
	InitTimeout         time.Duration
	ExecTimeout         time.Duration
	ReadTimeout         time.Duration
	WriteTimeout        time.Duration
	HealthcheckInterval time.Duration
	DrainTimeout        time.Duration
	MaxInflight         int
	MaxBodyBytes        int64
	QueueDepth          int
	BatchMaxSize        int
	PrefixLogs          bool
	LogBufferSize       int
	LogCallID           bool
	LogFormat           string
	SuppressLock        bool
	ReadyPath           string
	Name                string
	Namespace           string
	JWTAuth             bool
	JWTAuthLocal        bool
	JWTAuthDebug        bool
	Authority           string
	AuthorityCA         string
	RevocationBound     time.Duration
}

// Setting describes one environment variable; docs/fwatchdog.md is held against this table by a test.
type Setting struct {
	Name, Default, Meaning string
	set                    func(s *Settings, value string) error
}

// Variables is every environment variable that fwatchdog reads. Durations are Go's ("30s"), or whole
// seconds as of-watchdog reads them.
var Variables = []Setting{
	{"model_path", "/home/app/function", "bundle to serve: a directory or a zip", str(func(s *Settings) *string { return &s.ModelPath })},
	{"workers", "number of cores", "workers to keep; a pushed model's replicas on the process backend", whole(func(s *Settings) *int { return &s.Workers }, 1, runner.MaxWorkers)},
	{"start_method", "the bundle's", "fork or spawn; overrides model.yml", oneOf(func(s *Settings) *string { return &s.StartMethod }, "", model.StartFork, model.StartSpawn)},
	{"interpreter", "python3 or Rscript", "program that runs the model; the default is the runtime's", str(func(s *Settings) *string { return &s.Interpreter })},
	{"init_timeout", "5m", "bound on init", duration(func(s *Settings) *time.Duration { return &s.InitTimeout })},
	{"exec_timeout", "30s", "bound on one prediction, waiting included; X-Timeout may shorten it; 0 is none", duration(func(s *Settings) *time.Duration { return &s.ExecTimeout })},
	{"read_timeout", "30s", "bound on reading a request", duration(func(s *Settings) *time.Duration { return &s.ReadTimeout })},
	{"write_timeout", "30s", "bound on writing an answer once it is there", duration(func(s *Settings) *time.Duration { return &s.WriteTimeout })},
	{"healthcheck_interval", "write_timeout", "how long to go on serving, unhealthy, after SIGTERM", duration(func(s *Settings) *time.Duration { return &s.HealthcheckInterval })},
	{"drain_timeout", "the longer of exec_timeout and write_timeout", "how long accepted requests may take to end after that; 0 is no limit", duration(func(s *Settings) *time.Duration { return &s.DrainTimeout })},
	{"max_inflight", "0", "requests served at once, beyond which 429; 0 is no limit but the queue's", whole(func(s *Settings) *int { return &s.MaxInflight }, 0, 1<<30)},
	{"max_body_bytes", "16777216", "bound on a request body, and on one NDJSON line", whole64(func(s *Settings) *int64 { return &s.MaxBodyBytes }, 1, 128<<20)},
	{"queue_depth", "256", "requests that may wait for a worker, beyond which 429", whole(func(s *Settings) *int { return &s.QueueDepth }, 1, 1<<20)},
	{"batch_max_size", "32", "requests that go to predict_batch together", whole(func(s *Settings) *int { return &s.BatchMaxSize }, 1, 4096)},
	{"port", "8080", "TCP port of the function", whole(func(s *Settings) *int { return &s.Port }, 0, 65535)},
	{"metrics_port", "8081", "TCP port of /metrics", whole(func(s *Settings) *int { return &s.MetricsPort }, 0, 65535)},
	{"socket_path", "", "Unix socket to serve the function on, instead of port and metrics_port", str(func(s *Settings) *string { return &s.SocketPath })},
	{"admin_socket", "", "Unix socket for the owner: /metrics, /ready and /workers", str(func(s *Settings) *string { return &s.AdminSocket })},
	{"prefix_logs", "true", "put time and stream before each line the model prints", boolean(func(s *Settings) *bool { return &s.PrefixLogs })},
	{"log_buffer_size", strconv.Itoa(bufio.MaxScanTokenSize), "longest line the model prints in one piece; -1 is no limit", whole(func(s *Settings) *int { return &s.LogBufferSize }, -1, 1<<30)},
	{"log_callid", "false", "log a line for each request, with its X-Call-Id", boolean(func(s *Settings) *bool { return &s.LogCallID })},
	{"log_format", "text", "the watchdog's own lines: text or json", oneOf(func(s *Settings) *string { return &s.LogFormat }, "text", "json")},
	{"suppress_lock", "false", "write no lock file for an exec health check", boolean(func(s *Settings) *bool { return &s.SuppressLock })},
	{"ready_path", "", "path answered as /_/ready is", str(func(s *Settings) *string { return &s.ReadyPath })},
	{"jwt_auth", "false", "answer only calls with a bearer token for this function", boolean(func(s *Settings) *bool { return &s.JWTAuth })},
	{"jwt_auth_local", "false", "take http://127.0.0.1:8000 for the issuer, as when a gateway's port is forwarded", boolean(func(s *Settings) *bool { return &s.JWTAuthLocal })},
	{"jwt_auth_debug", "false", "log why a call was refused", boolean(func(s *Settings) *bool { return &s.JWTAuthDebug })},
	{"authority", "http://gateway.openfaas:8080", "URL of the tokens' issuer", str(func(s *Settings) *string { return &s.Authority })},
	{"authority_ca", "", "file with the authorities (PEM) that an https authority is checked with; empty is the system's", str(func(s *Settings) *string { return &s.AuthorityCA })},
	{"revocation_bound", "10s", "how long a revoked token may still be accepted", duration(func(s *Settings) *time.Duration { return &s.RevocationBound })},
	{"OPENFAAS_NAME", "the bundle's name", "name of the function", str(func(s *Settings) *string { return &s.Name })},
	{"OPENFAAS_NAMESPACE", "", "namespace of the function", str(func(s *Settings) *string { return &s.Namespace })},
}

// ReadSettings reads the environment. A value that breaks its rule is an error that names both: a
// typing mistake must not become a default.
func ReadSettings(getenv func(string) string) (Settings, error) {
	s := Settings{
		Port: 8080, MetricsPort: 8081, ModelPath: "/home/app/function", Workers: min(runtime.NumCPU(), runner.MaxWorkers),
		InitTimeout: 5 * time.Minute, ExecTimeout: 30 * time.Second, ReadTimeout: 30 * time.Second,
		WriteTimeout: 30 * time.Second, HealthcheckInterval: -1, DrainTimeout: -1, MaxBodyBytes: 16 << 20,
		QueueDepth: 256, BatchMaxSize: 32, PrefixLogs: true, LogBufferSize: bufio.MaxScanTokenSize, LogFormat: "text",
		RevocationBound: defaultRevocationBound,
	}
	for _, v := range Variables {
		if value := getenv(v.Name); value != "" {
			if err := v.set(&s, value); err != nil {
				return s, fmt.Errorf("%s=%q %w", v.Name, value, err)
			}
		}
	}
	if s.HealthcheckInterval < 0 {
		s.HealthcheckInterval = s.WriteTimeout
	}
	if s.DrainTimeout < 0 {
		s.DrainTimeout = max(s.ExecTimeout, s.WriteTimeout)
		if s.ExecTimeout == 0 || s.WriteTimeout == 0 {
			s.DrainTimeout = 0 // a request that may take for ever may do so while draining
		}
	}
	return s, nil
}

func str(field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, v string) error { *field(s) = v; return nil }
}

func oneOf(field func(*Settings) *string, allowed ...string) func(*Settings, string) error {
	return func(s *Settings, v string) error {
		for _, a := range allowed {
			if v == a {
				*field(s) = v
				return nil
			}
		}
		return fmt.Errorf("must be one of %s", strings.Join(allowed, " "))
	}
}

func whole(field func(*Settings) *int, low, high int) func(*Settings, string) error {
	return func(s *Settings, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < low || n > high {
			return fmt.Errorf("must be a whole number from %d to %d", low, high)
		}
		*field(s) = n
		return nil
	}
}

func whole64(field func(*Settings) *int64, low, high int64) func(*Settings, string) error {
	return func(s *Settings, v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < low || n > high {
			return fmt.Errorf("must be a whole number from %d to %d", low, high)
		}
		*field(s) = n
		return nil
	}
}

func duration(field func(*Settings) *time.Duration) func(*Settings, string) error {
	return func(s *Settings, v string) error {
		if n, err := strconv.ParseInt(v, 10, 32); err == nil && n >= 0 {
			*field(s) = time.Duration(n) * time.Second
			return nil
		}
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return fmt.Errorf("must be a duration such as 30s")
		}
		*field(s) = d
		return nil
	}
}

func boolean(field func(*Settings) *bool) func(*Settings, string) error {
	return func(s *Settings, v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("must be true or false")
		}
		*field(s) = b
		return nil
	}
}
