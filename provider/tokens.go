package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/auth/issuer"
	"github.com/faas-predict/faas-predict/auth/token"
	"github.com/faas-predict/faas-predict/provider/api"
	"github.com/faas-predict/faas-predict/provider/config"
)

// tokens is what serve needs to issue and check them.
type tokens struct {
	verifier *token.Verifier
	issuer   *api.Issuer // nil: another one's tokens count
	close    func() error
}

// openTokens opens the issuer in data_dir, or begins to read another's keys. port is the one that the
// provider listens on.
func openTokens(cfg *config.Config, port int, metrics prometheus.Registerer) (*tokens, error) {
	if cfg.Authority != "" {
		authority, err := token.NewAuthority(token.AuthorityConfig{URL: cfg.Authority, RevocationBound: cfg.RevocationBound})
		if err != nil {
			return nil, fmt.Errorf("setting authority: %w", err)
		}
		return &tokens{
			verifier: token.NewVerifier(token.Config{Keys: authority, Revocations: authority}),
			close:    func() error { authority.Close(); return nil },
		}, nil
	}
	trust, err := readTrust(cfg.TrustFile)
	if err != nil {
		return nil, err
	}
	own, err := issuer.Open(issuer.Config{
		URL: issuerURL(cfg, port), Dir: filepath.Join(cfg.DataDir, "auth"), AccessTTL: cfg.AccessTTL, RefreshTTL: cfg.RefreshTTL,
		Algorithm: cfg.SigningAlgorithm, KeyRotation: cfg.KeyRotation, Trust: trust, Metrics: metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("open the issuer: %w", err)
	}
	return &tokens{
		verifier: token.NewVerifier(token.Config{Keys: own.Keys(), Revocations: own.Revocations()}),
		issuer:   &api.Issuer{Handler: own.Handler(), Admin: own.AdminHandler()},
		close:    own.Close,
	}, nil
}

func readTrust(file string) ([]issuer.Trust, error) {
	if file == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("trust_file: %w", err)
	}
	trust, err := issuer.ParseTrust(raw)
	if err != nil {
		return nil, fmt.Errorf("trust_file %s: %w", file, err)
	}
	return trust, nil
}

func issuerURL(cfg *config.Config, port int) string {
	if cfg.IssuerURL != "" {
		return cfg.IssuerURL
	}
	host := cfg.ListenAddress
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(port))
}
