package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// operations compares the provider with itself: over TLS, through net/http, with an access log.
func (b *bench) operations() error {
	cert, key, err := b.selfSigned()
	if err != nil {
		return err
	}
	lines, err := os.Create(filepath.Join(b.dir, "access.log"))
	if err != nil {
		return err
	}
	defer lines.Close()
	variants := []struct {
		what, scheme string
		env          []string
		least        float64
	}{
		{what: "plain HTTP", scheme: "http"},
		{what: "by net/http alone (write_timeout=1h)", scheme: "http", env: []string{"write_timeout=1h"}, least: 0.5},
		{what: "over TLS 1.3, kept connections", scheme: "https", env: []string{"tls_cert=" + cert, "tls_key=" + key}, least: 0.4},
		{what: "with access_log=json", scheme: "http", env: []string{"access_log=json"}, least: 0.85},
		{what: "with access_log=text", scheme: "http", env: []string{"access_log=text"}, least: 0.85},
	}
	urls := make([]string, len(variants))
	for i, v := range variants {
		port := 29600 + 10*i
		url, err := b.provider(port, v.scheme, cert, lines, v.env)
		if err != nil {
			return fmt.Errorf("%s: %w", v.what, err)
		}
		urls[i] = url + "/function/iris"
	}
	rates := make([][]float64, len(variants))
	for range rounds {
		for i, url := range urls {
			rate, err := b.wrk(posting(request), url)
			if err != nil {
				return err
			}
			rates[i] = append(rates[i], rate)
		}
	}
	for i, v := range variants[1:] {
		ratio("requests/s through the provider "+v.what+", against plain HTTP", rates[i+1], rates[0], v.least)
	}
	return nil
}

// provider starts one with iris deployed, whose standard output goes to out.
func (b *bench) provider(port int, scheme, ca string, out *os.File, env []string) (url string, err error) {
	data := filepath.Join(b.dir, "data-"+strconv.Itoa(port))
	url = fmt.Sprintf("%s://127.0.0.1:%d", scheme, port)
	cmd := exec.Command("bin/faas-predict", "serve", "--port", strconv.Itoa(port), "--listen-address", "127.0.0.1", "--data-dir", data)
	cmd.Env, cmd.Stdout = append(os.Environ(), env...), out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	b.started = append(b.started, cmd)
	for range 100 {
		if err = exec.Command("curl", "-sf", "--cacert", ca, url+"/healthz").Run(); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return "", fmt.Errorf("it does not answer: %w", err)
	}
	deploy := exec.Command("bin/faas-predict", "deploy", "examples/iris", "--gateway", url, "--data-dir", data)
	if scheme == "https" {
		deploy.Args = append(deploy.Args, "--cacert", ca)
	}
	if out, err := deploy.CombinedOutput(); err != nil {
		return "", fmt.Errorf("deploy iris: %w: %s", err, out)
	}
	return url, nil
}

// selfSigned writes a certificate for 127.0.0.1 that is its own authority.
func (b *bench) selfSigned() (cert, key string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return "", "", err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	cert, key = filepath.Join(b.dir, "cert.pem"), filepath.Join(b.dir, "key.pem")
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return "", "", err
	}
	return cert, key, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600)
}
