package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// An image with nothing but the program has no certificate authorities, so the program brings the public ones.
func TestPublicAuthoritiesAreKnownWhereTheSystemHasNone(t *testing.T) {
	if os.Getenv("SSL_CERT_FILE") != "/nothing" {
		again := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		again.Env = append(os.Environ(), "SSL_CERT_FILE=/nothing", "SSL_CERT_DIR=/nothing")
		if out, err := again.CombinedOutput(); err != nil {
			t.Fatalf("where the system has none: %v\n%s", err, out)
		}
		return
	}
	known := 0
	for root := range bundle.Roots() {
		authority, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := authority.Verify(x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
			known++
		}
	}
	if known < 50 {
		t.Errorf("%d public authorities are known", known)
	}
}
