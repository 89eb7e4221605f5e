// Package swarm starts a Docker engine of its own, a swarm of one node, for tests of functions as its services.
package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Docker is an engine that is a swarm. It leaves other engines of the machine alone: its socket, its state
// and its networks are its own.
type Docker struct {
	dir    string
	daemon *exec.Cmd
	ended  chan struct{}
	log    *os.File
}

// Start starts an engine with its state in dir, and makes it a swarm.
func Start(ctx context.Context, dir string) (*Docker, error) {
	d := &Docker{dir: dir}
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	_, err := d.Run(ctx, nil, "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:0", "--default-addr-pool", "10.217.0.0/16")
	if err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// Socket is where the engine serves.
func (d *Docker) Socket() string { return filepath.Join(d.dir, "docker.sock") }

func (d *Docker) start(ctx context.Context) error {
	var err error
	if d.log, err = os.OpenFile(filepath.Join(d.dir, "dockerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	d.daemon = exec.Command("dockerd", "-H", "unix://"+d.Socket(), "--data-root", filepath.Join(d.dir, "root"),
		"--exec-root", filepath.Join(d.dir, "exec"), "--pidfile", filepath.Join(d.dir, "pid"), "--bridge", "none",
		"--default-address-pool", "base=10.216.0.0/16,size=24")
	d.daemon.Stdout, d.daemon.Stderr = d.log, d.log
	// An interrupt of the tests is not for the engine: they stop it themselves.
	d.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.daemon.Start(); err != nil {
		return fmt.Errorf("start dockerd: %w", err)
	}
	ended := make(chan struct{})
	d.ended = ended
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(ended)
	}(d.daemon)
	for {
		if _, err := d.Run(ctx, nil, "info"); err == nil {
			return nil
		}
		select {
		case <-d.ended:
			said, _ := os.ReadFile(d.log.Name())
			return fmt.Errorf("dockerd ended:\n%s", said[max(0, len(said)-2000):])
		case <-ctx.Done():
			return fmt.Errorf("dockerd does not answer: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Run runs docker.
func (d *Docker) Run(ctx context.Context, input []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.Socket(), "DOCKER_CONFIG="+d.dir, "DOCKER_BUILDKIT=0")
	cmd.Stdin = bytes.NewReader(input)
	var out, wrong bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &wrong
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, wrong.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// Restart ends the engine and starts it again, as an upgrade does. Its containers end with it.
func (d *Docker) Restart(ctx context.Context) error {
	d.end()
	return d.start(ctx)
}

func (d *Docker) end() {
	if d.daemon == nil || d.daemon.Process == nil {
		return
	}
	_ = d.daemon.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(time.Minute):
		_ = d.daemon.Process.Kill()
		<-d.ended
	}
	d.log.Close()
}

// Stop removes the swarm with all that it runs, and ends the engine.
func (d *Docker) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := d.Run(ctx, nil, "swarm", "leave", "--force")
	d.end()
	// What an overlay network leaves mounted.
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], d.dir+"/") {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH)
		}
	}
	return err
}
