package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
)

// ClientConfig is what a client talks TLS with: the authorities in the file ca, or the system's if that is
// "", and the certificate that it shows to a server that asks for one, none if cert and key are "". The
// files are read once.
func ClientConfig(ca, cert, key string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		var err error
		if config.RootCAs, err = readPool(ca); err != nil {
			return nil, err
		}
	}
	if (cert == "") != (key == "") {
		return nil, fmt.Errorf("a client's certificate and its key go together")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", cert, key, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// Transport returns net/http's, with connections of its own, that believes the authorities in the file ca.
// The file is read at each connection, so that it may change; while it cannot be read, what it said last
// holds. With ca "" it believes the system's.
func Transport(ca string) (*http.Transport, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if ca == "" {
		return transport, nil
	}
	roots, err := readPool(ca)
	if err != nil {
		return nil, err
	}
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots} // through a proxy, which does not ask below
	var last atomic.Pointer[x509.CertPool]
	last.Store(roots)
	dialer := &net.Dialer{}
	transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if roots, err := readPool(ca); err == nil {
			last.Store(roots)
		}
		return (&tls.Dialer{NetDialer: dialer, Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: last.Load()}}).DialContext(ctx, network, address)
	}
	return transport, nil
}

func readPool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("certificates of authorities: %w", err)
	}
	return pool(file, pem)
}
