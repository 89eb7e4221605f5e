// Package config reads the settings of `faas-predict serve`: environment variables with the names that
// OpenFaaS providers use, where they have one, and the same settings as flags.
//
// Every setting is a row of Settings, so that the help text, the flags and the documentation come
// from one table. Nothing here opens a file or a socket.
package config

import (
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/faas-predict/faas-predict/auth/certificate"
	"github.com/faas-predict/faas-predict/auth/issuer"
	"github.com/faas-predict/faas-predict/auth/setting"
	"github.com/faas-predict/faas-predict/auth/token"
	"github.com/faas-predict/faas-predict/provider/accesslog"
	"github.com/faas-predict/faas-predict/provider/async"
	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/watchdog/runner"
)

// Setting is one row of Settings.
type Setting setting.Setting[Config]

// UIDRange is the closed range that functions' user ids come from when the provider runs as root.
type UIDRange struct{ First, Last int }

// Config is what serve runs with. A zero duration means no limit unless the field says otherwise.
type Config struct {
	Port                int
	ListenAddress       string
	DataDir             string
	Backend             string
	SwarmNetwork        string
	FwatchdogPath       string // "" = beside the provider's binary, then PATH
	BasicAuth           bool
	SecretMountPath     string // "" = admin below DataDir, generated when empty
	ReadTimeout         time.Duration
	WriteTimeout        time.Duration
	IdleTimeout         time.Duration
	MaxBodyBytes        int64 // 0 = no limit
	MaxConnections      int   // 0 = half of what files may be open
	TrustedProxies      []netip.Prefix
	MaxIdleConns        int // to one function
	DeployTimeout       time.Duration
	DrainTimeout        time.Duration
	DrainDelay          time.Duration
	KeepWarm            int // versions without calls that a function keeps loaded
	MaxModelBytes       int64
	MaxImageBytes       int64
	PlainRegistries     []string
	MaxReplicas         uint64
	LogBufferBytes      int
	UIDRange            UIDRange
	Python              string // "" = python3 on PATH
	Rscript             string // "" = Rscript on PATH
	BehindGateway       bool
	JWTAuth             bool   // functions want a token unless their annotation says otherwise
	Authority           string // "" = the issuer in this process
	AuthorityCA         string // "" = the system's certificates
	IssuerURL           string // "" = derived from address and port
	AccessTTL           time.Duration
	RefreshTTL          time.Duration
	SigningAlgorithm    token.Algorithm
	KeyRotation         time.Duration
	TrustFile           string
	RevocationBound     time.Duration
	TLS                 certificate.Files
	LogFormat, LogLevel string
	AccessLog           string
	Profiling           bool

	KubernetesNamespaces []string
	KubernetesUser       *int64 // nil = the image's, or the platform's
	KubernetesPullPolicy string // "" = Kubernetes' rule
	ProviderURL          string // "" = pods cannot fetch pushed bundles
	ProviderCA           string // "" = the system's certificates
	RuntimeImagePython   string
	RuntimeImageR        string
	Async                async.Settings

	ScaleFromZeroTimeout time.Duration // 0 = no call waits
	ScaleFromZeroQueue   int           // calls of one function that may wait
}

// Values of Backend.
const (
	Process    = "process"
	Swarm      = "swarm"
	Kubernetes = "kubernetes"
)

// DefaultSwarmNetwork is the overlay network that functions and providers meet on.
const DefaultSwarmNetwork = "faas-predict"

var networkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// Settings is every setting of serve, in the order that help shows them.
var Settings = []Setting{
	{"port", "8080", "TCP port of the API and of the functions.", func(c *Config, v string) (err error) {
		c.Port, err = setting.Integer(v, 0, 65535)
		return err
	}},
	{"listen_address", "", "Address to listen on, for example 127.0.0.1. Default: every address.", func(c *Config, v string) error {
		c.ListenAddress = v
		return nil
	}},
	{"data_dir", setting.StateDir("faas-predict"), "Directory that holds all state: models, functions, secrets, environments. One provider at a time.", func(c *Config, v string) (err error) {
		if v == "" {
			return fmt.Errorf("must name a directory")
		}
		c.DataDir, err = filepath.Abs(v)
		return err
	}},
	{"backend", Process, "What runs the functions: process, children of this provider on Unix sockets; swarm, services of Docker Swarm; or kubernetes, pods.", func(c *Config, v string) error {
		return setting.OneOf(&c.Backend, v, Process, Swarm, Kubernetes)
	}},
	{"swarm_network", DefaultSwarmNetwork, "With backend swarm: the overlay network that functions run on and this provider is attached to; it is made if need be. Functions of another network are another provider's.", func(c *Config, v string) error {
		if !networkName.MatchString(v) {
			return fmt.Errorf("is %q, want 1 to 64 of letters, digits, _, . and -", v)
		}
		c.SwarmNetwork = v
		return nil
	}},
	{"kubernetes_namespaces", backend.DefaultNamespace, "Namespaces that hold functions, separated by commas. They exist, and the provider has a Role in each.", func(c *Config, v string) error {
		c.KubernetesNamespaces = nil
		for name := range strings.SplitSeq(v, ",") {
			name = strings.TrimSpace(name)
			if !backend.ValidName(name) {
				return fmt.Errorf("is %q, want names of namespaces separated by commas", v)
			}
			if !slices.Contains(c.KubernetesNamespaces, name) {
				c.KubernetesNamespaces = append(c.KubernetesNamespaces, name)
			}
		}
		return nil
	}},
	{"kubernetes_user", "", "User id of functions' pods. Default: the image's, or the one that the platform gives, as OpenShift does.", func(c *Config, v string) error {
		if v == "" {
			c.KubernetesUser = nil
			return nil
		}
		id, err := setting.Integer(v, 1, math.MaxInt32)
		c.KubernetesUser = new(int64(id))
		return err
	}},
	{"kubernetes_pull_policy", "", "When nodes pull functions' images: Always, IfNotPresent or Never. Default: Kubernetes' own rule.", func(c *Config, v string) error {
		return setting.OneOf(&c.KubernetesPullPolicy, v, "", "Always", "IfNotPresent", "Never")
	}},
	{"provider_url", "", "With backend kubernetes: URL at which pods reach this provider, to fetch the pushed bundles that they serve. Default: functions are container images alone.", func(c *Config, v string) error {
		if v == "" {
			c.ProviderURL = ""
			return nil
		}
		u, err := url.Parse(v)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("want http:// or https://, a host, and no user, query or fragment")
		}
		c.ProviderURL = strings.TrimRight(v, "/")
		return nil
	}},
	{"provider_ca", "", "File with the authorities (PEM) that pods check the certificate of provider_url with. Default: those of their images.", func(c *Config, v string) error {
		c.ProviderCA = v
		return nil
	}},
	{"runtime_image_python3", "ghcr.io/faas-predict/runtime-python3:latest", "Image that pushed bundles in Python run on: fwatchdog, a python3 with venv, and no model.", func(c *Config, v string) error {
		c.RuntimeImagePython = v
		return nil
	}},
	{"runtime_image_r", "ghcr.io/faas-predict/runtime-r:latest", "Image that pushed bundles in R run on: fwatchdog, Rscript, and the packages that bundles ask for.", func(c *Config, v string) error {
		c.RuntimeImageR = v
		return nil
	}},
	{"fwatchdog_path", "", "The fwatchdog program. Default: beside this program, then on PATH.", func(c *Config, v string) error {
		c.FwatchdogPath = v
		return nil
	}},
	{"basic_auth", "true", "Ask for user and password on every /system route: true or false.", func(c *Config, v string) (err error) {
		c.BasicAuth, err = setting.Boolean(v)
		return err
	}},
	{"secret_mount_path", "", "Directory with the files basic-auth-user and basic-auth-password. Default: admin below data_dir, where a password is generated at the first start.", func(c *Config, v string) error {
		c.SecretMountPath = v
		return nil
	}},
	{"read_timeout", "0s", "Longest time to read one request, body included. 0s: no limit, so that long uploads and streams pass; headers must always come within 10s.", func(c *Config, v string) (err error) {
		c.ReadTimeout, err = setting.Duration(v)
		return err
	}},
	{"write_timeout", "0s", "Longest time until an answer is written. 0s: no limit; a function's own exec_timeout rules. Log streams are exempt.", func(c *Config, v string) (err error) {
		c.WriteTimeout, err = setting.Duration(v)
		return err
	}},
	{"idle_timeout", "3m", "How long a client's connection may wait for its next request. 0s: no limit.", func(c *Config, v string) (err error) {
		c.IdleTimeout, err = setting.Duration(v)
		return err
	}},
	{"max_body_bytes", "0", "Largest body of a call, in bytes, streams included. 0: no limit but a function's own max_body_bytes.", func(c *Config, v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("is %q, want a number of bytes, or 0 for no limit", v)
		}
		c.MaxBodyBytes = n
		return nil
	}},
	{"max_connections", "0", "Most connections of clients at a time; others wait until one is closed. 0: half of the files that this process may have open.", func(c *Config, v string) (err error) {
		c.MaxConnections, err = setting.Integer(v, 0, 1<<20)
		return err
	}},
	{"trusted_proxies", "", "Addresses or networks, with commas between them, whose X-Forwarded-For is believed: by the access log, and by the issuer, which limits failed attempts by address.", func(c *Config, v string) (err error) {
		c.TrustedProxies, err = setting.Prefixes(v)
		return err
	}},
	{"max_idle_conns", "1024", "Idle connections kept open to one function.", func(c *Config, v string) (err error) {
		c.MaxIdleConns, err = setting.Integer(v, 1, 1<<20)
		return err
	}},
	{"deploy_timeout", "10m", "Longest time a deployment may take, from building its Python environment to being ready.", func(c *Config, v string) (err error) {
		c.DeployTimeout, err = setting.Duration(v)
		return err
	}},
	{"drain_timeout", "60s", "How long a replaced or removed function may finish what it has accepted.", func(c *Config, v string) (err error) {
		c.DrainTimeout, err = setting.Duration(v)
		return err
	}},
	{"drain_delay", "0s", "How long to go on after SIGTERM, with /healthz at 503 and connections closed behind their next answer, before no more are accepted: the time that a load balancer takes to notice.", func(c *Config, v string) (err error) {
		c.DrainDelay, err = setting.Duration(v)
		return err
	}},
	{"keep_warm", "1", "How many versions of earlier splits a function keeps loaded, so that a rollback finds them ready.", func(c *Config, v string) (err error) {
		c.KeepWarm, err = setting.Integer(v, 0, 16)
		return err
	}},
	{"max_model_bytes", "2147483648", "Largest zip, or single file of a bundle, that a push may send, in bytes.", func(c *Config, v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 1 {
			return fmt.Errorf("is %q, want a positive number of bytes", v)
		}
		c.MaxModelBytes = n
		return nil
	}},
	{"max_image_bytes", "34359738368", "With backends process and kubernetes: most bytes, unpacked, that are read of a container image to find its model.", func(c *Config, v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 1 {
			return fmt.Errorf("is %q, want a positive number of bytes", v)
		}
		c.MaxImageBytes = n
		return nil
	}},
	{"plain_registries", "", "With backends process and kubernetes: registries of container images, HOST or HOST:PORT with commas between them, that may be talked to without TLS. Loopback addresses always may.", func(c *Config, v string) (err error) {
		c.PlainRegistries, err = hosts(v)
		return err
	}},
	{"max_replicas", strconv.Itoa(runner.MaxWorkers), fmt.Sprintf("Most replicas (workers) that one function may have; at most %d, which is what fwatchdog can run.", runner.MaxWorkers), func(c *Config, v string) error {
		n, err := setting.Integer(v, 1, runner.MaxWorkers)
		if err != nil {
			return fmt.Errorf("%w: a replica is a worker, and fwatchdog runs no more", err)
		}
		c.MaxReplicas = uint64(n)
		return nil
	}},
	{"scale_from_zero_timeout", "1m", "How long a call may wait for its function, of label " + deployment.ScaleZeroLabel + ", to come back from zero replicas. 0s: none waits; it gets 503, and the function stays at zero.", func(c *Config, v string) (err error) {
		c.ScaleFromZeroTimeout, err = setting.Duration(v)
		return err
	}},
	{"scale_from_zero_queue", "128", "How many calls of one function may wait for it to come back from zero replicas; more get 429. Keep it well below the queue_depth of functions.", func(c *Config, v string) (err error) {
		c.ScaleFromZeroQueue, err = setting.Integer(v, 1, 1<<20)
		return err
	}},
	{"log_buffer_bytes", "1048576", "Log text kept per function, in bytes; the oldest lines go first. Logs are in memory and start anew with the provider.", func(c *Config, v string) (err error) {
		c.LogBufferBytes, err = setting.Integer(v, 4096, 1<<30)
		return err
	}},
	{"uid_range", "50000-59999", "When the provider runs as root, each function runs as a user id of its own from this range; the first one builds Python environments.", func(c *Config, v string) (err error) {
		c.UIDRange, err = uidRange(v)
		return err
	}},
	{"python", "", "Python 3 that models without a requirements.txt run on and environments are made from. Default: python3 on PATH, or /usr/bin/python3 where a function's user may not run that.", func(c *Config, v string) error {
		c.Python = v
		return nil
	}},
	{"rscript", "", "Rscript that models in R run on. Default: Rscript on PATH, or /usr/bin/Rscript where a function's user may not run that.", func(c *Config, v string) error {
		c.Rscript = v
		return nil
	}},
	{"behind_gateway", "false", "true: /system/info answers in the form that an OpenFaaS gateway reads from its provider; false: in the form that clients read from a gateway.", func(c *Config, v string) (err error) {
		c.BehindGateway, err = setting.Boolean(v)
		return err
	}},
	{"jwt_auth", "false", "true: every function wants a bearer token, except one with the annotation " + backend.AccessAnnotation + ": " + backend.AccessOpen + ". false: only functions with " + backend.AccessAnnotation + ": " + backend.AccessToken + " do.", func(c *Config, v string) (err error) {
		c.JWTAuth, err = setting.Boolean(v)
		return err
	}},
	{"authority", "", "URL of the issuer whose tokens count. Default: this provider issues them itself.", func(c *Config, v string) error {
		c.Authority = v
		return nil
	}},
	{"authority_ca", "", "File with the authorities (PEM) that the certificate of authority is checked with. It is read at each connection. Default: the system's.", func(c *Config, v string) error {
		c.AuthorityCA = v
		return nil
	}},
	{"issuer_url", "", "URL at which clients and functions reach this provider's issuer; it is the name in its tokens. Default: http or https, listen_address or 127.0.0.1, and port.", func(c *Config, v string) error {
		c.IssuerURL = v
		return nil
	}},
	{"access_ttl", issuer.DefaultAccessTTL.String(), "How long an access token holds.", func(c *Config, v string) (err error) {
		c.AccessTTL, err = setting.DurationWithin(v, issuer.MinAccessTTL, issuer.MaxAccessTTL)
		return err
	}},
	{"refresh_ttl", issuer.DefaultRefreshTTL.String(), "How long a refresh token holds that is not used.", func(c *Config, v string) (err error) {
		c.RefreshTTL, err = setting.DurationWithin(v, issuer.MinAccessTTL, setting.Forever)
		return err
	}},
	{"signing_algorithm", string(issuer.DefaultAlgorithm), "What new signing keys are for: ES256, RS256 or EdDSA. Stock of-watchdog cannot check EdDSA.", func(c *Config, v string) error {
		return setting.OneOf((*string)(&c.SigningAlgorithm), v, string(token.ES256), string(token.RS256), string(token.EdDSA))
	}},
	{"key_rotation", issuer.DefaultKeyRotation.String(), "How long a signing key signs before the next one does.", func(c *Config, v string) (err error) {
		c.KeyRotation, err = setting.DurationWithin(v, issuer.MinKeyRotation, setting.Forever)
		return err
	}},
	{"trust_file", "", "File that lists outside OpenID Connect issuers whose tokens may be exchanged. It is read again when it changes.", func(c *Config, v string) error {
		c.TrustFile = v
		return nil
	}},
	{"revocation_bound", "10s", "With authority: how long a revoked token may still be accepted. This provider's own issuer is asked at once.", func(c *Config, v string) (err error) {
		c.RevocationBound, err = setting.DurationWithin(v, time.Second, setting.Forever)
		return err
	}},
	{"tls_cert", "", "File with the certificate and its chain (PEM). With tls_key: the port speaks HTTPS only. Files are read again when they change.", func(c *Config, v string) error {
		c.TLS.Cert = v
		return nil
	}},
	{"tls_key", "", "File with the certificate's private key (PEM).", func(c *Config, v string) error {
		c.TLS.Key = v
		return nil
	}},
	{"tls_client_ca", "", "File with authorities (PEM): only clients with a certificate of theirs may connect.", func(c *Config, v string) error {
		c.TLS.ClientCA = v
		return nil
	}},
	{"log_format", "text", "The provider's own log lines on stderr: text or json.", func(c *Config, v string) error {
		return setting.OneOf(&c.LogFormat, v, "text", "json")
	}},
	{"log_level", "info", "Least level of the provider's own log lines: debug, info, warn or error.", func(c *Config, v string) error {
		return setting.OneOf(&c.LogLevel, v, "debug", "info", "warn", "error")
	}},
	{"access_log", accesslog.Off, "A line on stdout for each request that was answered: off, text or json.", func(c *Config, v string) error {
		return setting.OneOf(&c.AccessLog, v, accesslog.Off, accesslog.Text, accesslog.JSON)
	}},
	{"pprof", "false", "true: administrators get Go's profiles at /system/debug/pprof/.", func(c *Config, v string) (err error) {
		c.Profiling, err = setting.Boolean(v)
		return err
	}},
	{"nats_url", "", "URL of the NATS that keeps asynchronous calls, such as nats://host:4222 or tls://host:4222. Default: one in this process, with its files in data_dir.", func(c *Config, v string) error {
		c.Async.URL = v
		return nil
	}},
	{"nats_credentials", "", "File with the credentials for nats_url (JWT and seed, as nsc writes it).", func(c *Config, v string) error {
		c.Async.Credentials = v
		return nil
	}},
	{"nats_ca", "", "File with the authorities (PEM) that the certificate of nats_url is checked with. Default: the system's.", func(c *Config, v string) error {
		c.Async.CA = v
		return nil
	}},
	{"async_sync", "1s", "How often accepted calls are flushed to disk, which is what a power cut may cost; a killed process loses none. always: before each 202.", func(c *Config, v string) (err error) {
		if v == "always" {
			return nil
		}
		c.Async.Sync, err = setting.DurationWithin(v, time.Millisecond, time.Hour)
		return err
	}},
	{"async_max_messages", "100000", "Most asynchronous calls that wait to be executed, and most results that wait to be reported. Beyond: 429.", func(c *Config, v string) (err error) {
		c.Async.MaxMessages, err = integer64(v, 1, 1<<40)
		return err
	}},
	{"async_max_bytes", "1073741824", "Most bytes that these calls take, and likewise results and dead letters. Beyond: 429.", func(c *Config, v string) (err error) {
		c.Async.MaxBytes, err = integer64(v, 1<<20, 1<<50)
		return err
	}},
	{"async_max_body_bytes", "8388608", "Largest body of an asynchronous call, and of its result, in bytes. An outside NATS may allow less (max_payload).", func(c *Config, v string) (err error) {
		c.Async.MaxBodyBytes, err = integer64(v, 1, 48<<20)
		return err
	}},
	{"async_concurrency", "8", "How many asynchronous calls of one function are in progress at a time, and how many of its reports.", func(c *Config, v string) (err error) {
		c.Async.Concurrency, err = setting.Integer(v, 1, 1024)
		return err
	}},
	{"async_max_attempts", "10", "How often an asynchronous call is executed that the function answers with 429 or 5xx, and how often its result is reported, before it is a dead letter.", func(c *Config, v string) (err error) {
		c.Async.MaxAttempts, err = setting.Integer(v, 1, 1000)
		return err
	}},
	{"async_retry_max_wait", "1m", "Longest wait between two attempts, which begins at 1s and doubles. A Retry-After of up to an hour is kept in any case.", func(c *Config, v string) (err error) {
		c.Async.RetryMaxWait, err = setting.DurationWithin(v, time.Millisecond, 24*time.Hour)
		return err
	}},
	{"async_callback_timeout", "30s", "Longest time for one attempt to report a result.", func(c *Config, v string) (err error) {
		c.Async.CallbackTimeout, err = setting.DurationWithin(v, time.Millisecond, time.Hour)
		return err
	}},
	{"async_callback_allow_private", "false", "true: callbacks may be on loopback, private and other addresses that the Internet does not reach.", func(c *Config, v string) (err error) {
		c.Async.AllowPrivate, err = setting.Boolean(v)
		return err
	}},
	{"async_dead_max", "10000", "Most dead letters that are kept; the oldest go first.", func(c *Config, v string) (err error) {
		c.Async.DeadMax, err = integer64(v, 1, 1<<30)
		return err
	}},
	{"async_dead_age", "168h", "How long a dead letter is kept.", func(c *Config, v string) (err error) {
		c.Async.DeadAge, err = setting.DurationWithin(v, time.Second, setting.Forever)
		return err
	}},
}

// Read fills a Config from the settings' values; lookup gives "" for a setting that is not given.
// The error names the setting and the rule.
func Read(lookup func(name string) string) (*Config, error) {
	c := &Config{}
	if err := setting.Read(Settings, c, lookup); err != nil {
		return nil, err
	}
	if c.SecretMountPath == "" {
		c.SecretMountPath = c.AdminDir()
	}
	if c.Authority != "" && (c.IssuerURL != "" || c.TrustFile != "") {
		return nil, fmt.Errorf("settings issuer_url and trust_file are for this provider's own issuer, and with authority it has none")
	}
	if c.AuthorityCA != "" && c.Authority == "" {
		return nil, fmt.Errorf("setting authority_ca is for the certificate of authority, which is not set")
	}
	if c.ProviderCA != "" && !strings.HasPrefix(c.ProviderURL, "https://") {
		return nil, fmt.Errorf("setting provider_ca is for the certificate of provider_url, which is not https")
	}
	if err := c.TLS.Check("tls_cert", "tls_key", "tls_client_ca"); err != nil {
		return nil, err
	}
	if c.Async.URL == "" && (c.Async.Credentials != "" || c.Async.CA != "") {
		return nil, fmt.Errorf("settings nats_credentials and nats_ca are for nats_url, which is not set")
	}
	c.Async.Dir = filepath.Join(c.DataDir, "async")
	if c.RefreshTTL < c.AccessTTL {
		return nil, fmt.Errorf("setting refresh_ttl is %s, want no less than access_ttl, %s", c.RefreshTTL, c.AccessTTL)
	}
	return c, nil
}

// AdminDir is where the provider keeps the credentials that it generates.
func (c *Config) AdminDir() string { return filepath.Join(c.DataDir, "admin") }

func integer64(v string, least, most int64) (int64, error) {
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("is %q, want a whole number from %d to %d", v, least, most)
	}
	return n, nil
}

// hosts reads HOST or HOST:PORT with commas between them.
func hosts(v string) (out []string, err error) {
	for host := range strings.SplitSeq(v, ",") {
		if host = strings.TrimSpace(host); host == "" {
			continue
		}
		if strings.ContainsAny(host, "/@ ") {
			return nil, fmt.Errorf("has %q, want HOST or HOST:PORT", host)
		}
		out = append(out, host)
	}
	return out, nil
}

func uidRange(v string) (UIDRange, error) {
	first, last, found := strings.Cut(v, "-")
	a, errA := strconv.Atoi(first)
	b, errB := strconv.Atoi(last)
	if !found || errA != nil || errB != nil || a < 1000 || b <= a || b > 1<<31-2 {
		return UIDRange{}, fmt.Errorf("is %q, want FIRST-LAST with 1000 or more as FIRST", v)
	}
	return UIDRange{a, b}, nil
}
