package certificate

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/faas-predict/faas-predict/tests/pki"
)

func TestTransportFollowsItsAuthorities(t *testing.T) {
	ca, other, dir := pki.New(t), pki.New(t), t.TempDir()
	cert, key := ca.Issue(t, "server", time.Now().Add(time.Hour)).Write(t, dir)
	url, _ := serve(t, Files{Cert: cert, Key: key})
	file := pki.WriteFile(t, dir, "ca", other.PEM)
	transport, err := Transport(file)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	ask := func() error {
		defer client.CloseIdleConnections()
		res, err := client.Get(url)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a server of an authority that is not named: %v", err)
	}
	pki.WriteFile(t, dir, "ca", ca.PEM)
	if err := ask(); err != nil {
		t.Errorf("after the file has changed: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err != nil {
		t.Errorf("after the file has gone: %v", err)
	}
	if _, err := Transport(file); err == nil {
		t.Error("a file that is missing at the start is no error")
	}
}

func TestClientConfigNamesWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	if _, err := ClientConfig(dir+"/none", "", ""); err == nil || !strings.Contains(err.Error(), "none") {
		t.Error(err)
	}
	if _, err := ClientConfig("", "cert", ""); err == nil || !strings.Contains(err.Error(), "go together") {
		t.Error(err)
	}
	if _, err := ClientConfig("", dir+"/none", dir+"/none"); err == nil || !strings.Contains(err.Error(), "none") {
		t.Error(err)
	}
}
