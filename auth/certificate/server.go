// Package certificate is TLS from files that may change while a program runs: the certificate that a server
// shows, whose clients' certificates it takes, and the authorities that a client believes.
//
// It is a leaf, for every program of the project, fwatchdog included. Who listens, and what is answered,
// is no business of its.
package certificate

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/auth/reload"
)

// Files name what a server needs, all in PEM form.
type Files struct {
	Cert string // its certificate, and those between that and the root
	Key  string // the certificate's private key
	// ClientCA has the authorities of clients' certificates. Without it none is asked for; with it a
	// client that has none is refused.
	ClientCA string
}

// Set reports whether there is anything to serve TLS with.
func (f Files) Set() bool { return f.Cert != "" }

// Check returns an error when one of the files goes with another that is not named. It opens none.
func (f Files) Check(cert, key, clientCA string) error {
	if (f.Cert == "") != (f.Key == "") {
		return fmt.Errorf("settings %s and %s go together", cert, key)
	}
	if f.ClientCA != "" && f.Cert == "" {
		return fmt.Errorf("setting %s asks clients for certificates, which takes TLS: set %s and %s as well", clientCA, cert, key)
	}
	return nil
}

// Server is a server's side of TLS. It follows its files: connections that begin after a change has been
// noticed get the new certificate, those that are open go on. Files that do not go together, or cannot be
// read, leave what held before in force.
type Server struct {
	watch   *reload.Watch
	current atomic.Pointer[tls.Config]
}

// Open reads the files and follows them until Close. log may be nil for slog.Default.
func Open(files Files, log *slog.Logger) (*Server, error) {
	names := []string{files.Cert, files.Key}
	if files.ClientCA != "" {
		names = append(names, files.ClientCA)
	}
	s := &Server{}
	var err error
	s.watch, err = reload.Start(names, log, func(contents [][]byte) error {
		pair, err := tls.X509KeyPair(contents[0], contents[1])
		if err != nil {
			return fmt.Errorf("certificate %s with key %s: %w", files.Cert, files.Key, err)
		}
		config := &tls.Config{
			Certificates: []tls.Certificate{pair},
			MinVersion:   tls.VersionTLS12,
			NextProtos:   []string{"h2", "http/1.1"},
		}
		if files.ClientCA != "" {
			if config.ClientCAs, err = pool(files.ClientCA, contents[2]); err != nil {
				return err
			}
			config.ClientAuth = tls.RequireAndVerifyClientCert
		}
		s.current.Store(config)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return s, nil
}

// Config is for an http.Server's TLSConfig, whose ServeTLS then takes no file names.
func (s *Server) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.current.Load(), nil
		},
	}
}

// Expires is when the certificate that is shown expires.
func (s *Server) Expires() time.Time {
	return s.current.Load().Certificates[0].Leaf.NotAfter
}

// Metric is the time that Expires gives, for alerts.
func (s *Server) Metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tls_certificate_not_after_seconds",
		Help: "When the certificate that is shown expires, in seconds since 1970.",
	}, func() float64 { return float64(s.Expires().Unix()) })
}

// Close ends what looks at the files. Config goes on with what they said last.
func (s *Server) Close() { s.watch.Close() }

func pool(file string, pem []byte) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: it has no certificate in PEM form", file)
	}
	return roots, nil
}

// ErrorLog is for an http.Server: handshakes that fail, which every port scanner makes, are for those who
// debug; all else, a handler's panic for one, is an error.
func ErrorLog(to *slog.Logger) *log.Logger { return log.New(errorLog{to}, "", 0) }

type errorLog struct{ to *slog.Logger }

func (e errorLog) Write(line []byte) (int, error) {
	level := slog.LevelError
	if bytes.Contains(line, []byte("TLS handshake error")) {
		level = slog.LevelDebug
	}
	e.to.Log(context.Background(), level, string(bytes.TrimSpace(line)))
	return len(line), nil
}
