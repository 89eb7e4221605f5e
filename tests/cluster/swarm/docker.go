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

// Base makes the image that models are built on, a Debian with Python, from the packages that the machine itself
// gets. It is kept in a file of the folder cache, since that takes half a minute.
func (d *Docker) Base(ctx context.Context, cache, tag string) error {
	file := filepath.Join(cache, "python3.tar.gz")
	if _, err := os.Stat(file); err != nil {
		if err := bootstrap(ctx, file); err != nil {
			return err
		}
	}
	_, err := d.Run(ctx, nil, "import", file, tag)
	return err
}

func bootstrap(ctx context.Context, file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	root, err := os.MkdirTemp(filepath.Dir(file), "root-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	out, err := exec.CommandContext(ctx, "bash", "-c", `set -euo pipefail
sources() { cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true; }
mirror=$(sources | sed -nE 's/^URIs: *(\S+).*/\1/p; s/^deb +(\[[^]]*\] +)?(\S+) .*/\2/p' | head -1)
debootstrap --variant=minbase --include=python3 bookworm "$1" "$mirror"
tar -C "$1" --exclude=./var/cache --exclude=./var/lib/apt --exclude=./usr/share/doc -c . | gzip -1 >"$2.part"
mv "$2.part" "$2"`, "bootstrap", root, file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make a base image with debootstrap: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return nil
}

// Build builds an image of files and tags it.
func (d *Docker) Build(ctx context.Context, tag string, files map[string][]byte) error {
	dir, err := os.MkdirTemp("", "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			return err
		}
	}
	_, err = d.Run(ctx, nil, "build", "--quiet", "--tag", tag, dir)
	return err
}
