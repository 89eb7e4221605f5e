package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// process measures functions as the provider's children.
func (b *bench) process(ctx context.Context, iris built) error {
	const provider, watchdog = 29800, 29810
	data := filepath.Join(b.dir, "data")
	at := fmt.Sprintf("http://127.0.0.1:%d", provider)
	stop, err := start(ctx, at+"/healthz", []string{"data_dir=" + data, "port=" + strconv.Itoa(provider), "listen_address=127.0.0.1"},
		"bin/faas-predict", "serve")
	if err != nil {
		return err
	}
	defer stop()
	password, err := os.ReadFile(filepath.Join(data, "admin", "basic-auth-password"))
	if err != nil {
		return err
	}
	push := exec.CommandContext(ctx, "bin/faas-predict", "push", "examples/iris", "--gateway", at, "--data-dir", data)
	if out, err := push.CombinedOutput(); err != nil {
		return fmt.Errorf("push: %w: %s", err, out)
	}
	s := system{
		url: at, password: string(password),
		// A replica is a worker here, and one for each core what a container has of itself.
		labels: map[string]string{"com.openfaas.scale.min": strconv.Itoa(cores())},
		direct: func(context.Context) (string, error) { return "", errNone },
	}
	if err := s.deploys(ctx, "a pushed bundle", "iris"); err != nil {
		return err
	}
	// A removed function holds its version until its processes have ended.
	s.forget = func(ctx context.Context) error { return wait(ctx, func() error { return forget(ctx, s, iris) }) }
	if err := s.deploys(ctx, "an image in a registry", iris.ref); err != nil {
		return err
	}
	folder, err := filepath.Abs("examples/iris")
	if err != nil {
		return err
	}
	direct := fmt.Sprintf("http://127.0.0.1:%d", watchdog)
	stopWatchdog, err := start(ctx, direct+"/_/ready", []string{"model_path=" + folder, "port=" + strconv.Itoa(watchdog), "metrics_port=" + strconv.Itoa(watchdog+1),
		"workers=" + strconv.Itoa(cores()), "suppress_lock=true", "healthcheck_interval=0s"}, "bin/fwatchdog")
	if err != nil {
		return err
	}
	defer stopWatchdog()
	s.direct = func(context.Context) (string, error) { return direct, nil }
	return b.throughput(ctx, s)
}

// forget removes the version of an image.
func forget(ctx context.Context, s system, image built) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodDelete, s.url+"/system/models/"+image.model+"/versions/"+version(image), nil)
	if err != nil {
		return err
	}
	r.SetBasicAuth("admin", s.password)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusAccepted && response.StatusCode != http.StatusNotFound {
		said, _ := io.ReadAll(response.Body)
		return fmt.Errorf("forget the version: %s %s", response.Status, said)
	}
	return nil
}

// start runs a program until stop is called, and returns when url answers with 200.
func start(ctx context.Context, url string, env []string, program string, args ...string) (stop func(), err error) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make build comes first: %w", err)
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	if err := wait(ctx, func() error { return get(url) }); err != nil {
		stop()
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	return stop, nil
}
