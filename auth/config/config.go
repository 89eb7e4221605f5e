// Package config reads the settings of `faas-auth serve`: environment variables, and the same settings as
// flags. Every setting is a row of Settings, so that help, flags and documentation come from one table.
// Nothing here opens a file or a socket.
package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/faas-predict/faas-predict/auth/certificate"
	"github.com/faas-predict/faas-predict/auth/forward"
	"github.com/faas-predict/faas-predict/auth/issuer"
	"github.com/faas-predict/faas-predict/auth/setting"
	"github.com/faas-predict/faas-predict/auth/token"
)

// Setting is one row of Settings.
type Setting setting.Setting[Config]

// Config is what serve runs with.
type Config struct {
	Port                int
	ListenAddress       string
	MetricsPort         int    // 0: none
	IssuerURL           string // "": derived from the address
	DataDir             string
	AccessTTL           time.Duration
	RefreshTTL          time.Duration
	SigningAlgorithm    token.Algorithm
	KeyRotation         time.Duration
	TrustFile           string
	TrustedProxies      []netip.Prefix
	ValidateProxy       string
	ValidateNamespace   string
	ValidatePublic      []string
	TLS                 certificate.Files
	DrainTimeout        time.Duration
	LogFormat, LogLevel string
}

// Settings is every setting of serve, in the order that help shows them.
var Settings = []Setting{
	{"port", "8090", "TCP port of the endpoints.", func(c *Config, v string) (err error) {
		c.Port, err = setting.Integer(v, 0, 65535)
		return err
	}},
	{"listen_address", "", "Address to listen on, for example 127.0.0.1. Default: every address.", func(c *Config, v string) error {
		c.ListenAddress = v
		return nil
	}},
	{"metrics_port", "8091", "TCP port of /metrics; 0: none.", func(c *Config, v string) (err error) {
		c.MetricsPort, err = setting.Integer(v, 0, 65535)
		return err
	}},
	{"issuer_url", "", "The issuer's name in tokens, and the address that clients and verifiers reach it at. Default: http or https, listen_address or 127.0.0.1, and port, which serves one machine.", func(c *Config, v string) error {
		c.IssuerURL = v
		if u, err := url.Parse(v); v != "" && (err != nil || u.Host == "") {
			return fmt.Errorf("is %q, want an http or https URL", v)
		}
		return nil
	}},
	{"data_dir", setting.StateDir("faas-auth"), "Directory for clients, keys, refresh tokens and revocations. It is closed to other users. One faas-auth at a time.", func(c *Config, v string) (err error) {
		c.DataDir, err = filepath.Abs(v)
		return err
	}},
	{"access_ttl", "30m", "How long access tokens hold, from 1s to 24h.", func(c *Config, v string) (err error) {
		if c.AccessTTL, err = setting.Duration(v); err == nil && (c.AccessTTL < issuer.MinAccessTTL || c.AccessTTL > issuer.MaxAccessTTL) {
			err = fmt.Errorf("is %q, want from %s to %s", v, issuer.MinAccessTTL, issuer.MaxAccessTTL)
		}
		return err
	}},
	{"refresh_ttl", "1440h", "How long a refresh token holds that is not used: 60 days.", func(c *Config, v string) (err error) {
		c.RefreshTTL, err = setting.Duration(v)
		return err
	}},
	{"signing_algorithm", string(token.ES256), "What new keys sign with: ES256, RS256 or EdDSA. After a change the next key takes over as in a rotation.", func(c *Config, v string) error {
		if !slices.Contains(token.Algorithms, token.Algorithm(v)) {
			return fmt.Errorf("is %q, want one of %v", v, token.Algorithms)
		}
		c.SigningAlgorithm = token.Algorithm(v)
		return nil
	}},
	{"key_rotation", "720h", "How long a key signs until the next one takes over, 1h or more.", func(c *Config, v string) (err error) {
		if c.KeyRotation, err = setting.Duration(v); err == nil && c.KeyRotation < issuer.MinKeyRotation {
			err = fmt.Errorf("is %q, want 1h or more", v)
		}
		return err
	}},
	{"trust_file", "", "YAML or JSON file with the outside issuers whose tokens may be exchanged. It is read again when it changes.", func(c *Config, v string) error {
		c.TrustFile = v
		return nil
	}},
	{"trusted_proxies", "", "Addresses or networks, with commas between them, whose X-Forwarded-For is believed.", func(c *Config, v string) (err error) {
		c.TrustedProxies, err = setting.Prefixes(v)
		return err
	}},
	{"validate_proxy", "", "Which gateway asks at /validate: nginx, traefik (Caddy too) or envoy. Default: told by its headers.", func(c *Config, v string) error {
		return setting.OneOf(&c.ValidateProxy, v, "", string(forward.Nginx), string(forward.Traefik), string(forward.Envoy))
	}},
	{"validate_namespace", forward.DefaultNamespace, "Namespace of functions that are called by their name alone, for /validate. It must be the provider's.", func(c *Config, v string) error {
		c.ValidateNamespace = v
		return nil
	}},
	{"validate_public", "", "Paths, with commas between them, that /validate lets pass without a token; one that ends in / stands for all below it.", func(c *Config, v string) error {
		for _, one := range setting.List(v) {
			if !strings.HasPrefix(one, "/") {
				return fmt.Errorf("has %q, want paths that begin with /", one)
			}
			c.ValidatePublic = append(c.ValidatePublic, one)
		}
		return nil
	}},
	{"tls_cert", "", "File with the certificate and its chain (PEM). With tls_key: serve HTTPS. Files are read again when they change.", func(c *Config, v string) error {
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
	{"drain_timeout", "10s", "How long requests in progress may take to end after SIGTERM.", func(c *Config, v string) (err error) {
		c.DrainTimeout, err = setting.Duration(v)
		return err
	}},
	{"log_format", "text", "Log lines on stderr, the audit log among them: text or json.", func(c *Config, v string) error {
		return setting.OneOf(&c.LogFormat, v, "text", "json")
	}},
	{"log_level", "info", "Least level of log lines: debug, info, warn or error. Audit lines are written in any case.", func(c *Config, v string) error {
		return setting.OneOf(&c.LogLevel, v, "debug", "info", "warn", "error")
	}},
}

// Read fills a Config from the settings' values; lookup gives "" for a setting that is not given.
// The error names the setting and the rule.
func Read(lookup func(name string) string) (*Config, error) {
	c := &Config{}
	if err := setting.Read(Settings, c, lookup); err != nil {
		return nil, err
	}
	if c.RefreshTTL < c.AccessTTL {
		return nil, fmt.Errorf("setting refresh_ttl is %s, want no less than access_ttl, %s", c.RefreshTTL, c.AccessTTL)
	}
	if err := c.TLS.Check("tls_cert", "tls_key", "tls_client_ca"); err != nil {
		return nil, err
	}
	return c, nil
}

// URL is the issuer's URL when it listens on a port.
func (c *Config) URL(port int) string {
	if c.IssuerURL != "" {
		return c.IssuerURL
	}
	scheme, host := "http", c.ListenAddress
	if c.TLS.Set() {
		scheme = "https"
	}
	if address, err := netip.ParseAddr(host); host == "" || (err == nil && address.IsUnspecified()) {
		host = "127.0.0.1"
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return scheme + "://" + host + ":" + strconv.Itoa(port)
}

// AdminSocket is where a running faas-auth takes the commands for clients and keys.
func (c *Config) AdminSocket() string { return filepath.Join(c.DataDir, "admin.sock") }
