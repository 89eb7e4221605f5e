package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/auth/certificate"
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
		transport, err := certificate.Transport(cfg.AuthorityCA)
		if err != nil {
			return nil, fmt.Errorf("setting authority_ca: %w", err)
		}
		authority, err := token.NewAuthority(token.AuthorityConfig{URL: cfg.Authority, RevocationBound: cfg.RevocationBound, Transport: transport})
		if err != nil {
			return nil, fmt.Errorf("setting authority: %w", err)
		}
		return &tokens{
			verifier: token.NewVerifier(token.Config{Keys: authority, Revocations: authority}),
			close:    func() error { authority.Close(); return nil },
		}, nil
	}
	own, err := issuer.Open(issuer.Config{
		URL: issuerURL(cfg, port), Dir: filepath.Join(cfg.DataDir, "auth"), AccessTTL: cfg.AccessTTL, RefreshTTL: cfg.RefreshTTL,
		Algorithm: cfg.SigningAlgorithm, KeyRotation: cfg.KeyRotation, TrustedProxies: cfg.TrustedProxies, Metrics: metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("open the issuer: %w", err)
	}
	stop := func() {}
	if cfg.TrustFile != "" {
		if stop, err = own.FollowTrust(cfg.TrustFile); err != nil {
			return nil, errors.Join(err, own.Close())
		}
	}
	return &tokens{
		verifier: token.NewVerifier(token.Config{Keys: own.Keys(), Revocations: own.Revocations()}),
		issuer:   &api.Issuer{Handler: own.Handler(), Admin: own.AdminHandler()},
		close:    func() error { stop(); return own.Close() },
	}, nil
}

func issuerURL(cfg *config.Config, port int) string {
	if cfg.IssuerURL != "" {
		return cfg.IssuerURL
	}
	scheme, host := "http", cfg.ListenAddress
	if cfg.TLS.Set() {
		scheme = "https"
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(port))
}
