package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// gateway compares calls that reach the provider themselves with calls through OpenFaaS's own gateway in
// front of the same provider. OF_GATEWAY is that gateway's binary, which always listens on 8080.
func (b *bench) gateway() error {
	program := os.Getenv("OF_GATEWAY")
	if program == "" {
		fmt.Println("OpenFaaS's gateway in front: left out, since OF_GATEWAY does not name its binary")
		return nil
	}
	const provider, gateway = "http://127.0.0.1:29600", "http://127.0.0.1:8080"
	data := filepath.Join(b.dir, "gateway-data")
	if _, err := b.start(provider+"/healthz", nil, "bin/faas-predict", "serve", "--port", "29600", "--listen-address", "127.0.0.1",
		"--data-dir", data); err != nil {
		return err
	}
	if out, err := exec.Command("bin/faas-predict", "deploy", "examples/iris", "--gateway", provider, "--data-dir", data).CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("deploy iris: %s", out), err)
	}
	if _, err := b.start(gateway+"/healthz", []string{"functions_provider_url=" + provider + "/", "basic_auth=false", "direct_functions=false",
		"faas_prometheus_host=127.0.0.1", "max_idle_conns=1024", "max_idle_conns_per_host=1024"}, program); err != nil {
		return err
	}
	var own, theirs []float64
	for range rounds {
		with, err := b.wrk(posting(request), gateway+"/function/iris")
		if err != nil {
			return err
		}
		without, err := b.wrk(posting(request), provider+"/function/iris")
		if err != nil {
			return err
		}
		own, theirs = append(own, without), append(theirs, with)
	}
	ratio("requests/s through faas-predict against OpenFaaS's gateway in front of it", own, theirs, 1)
	return nil
}
