// Package engine starts a real Docker engine for tests, makes base images for the project's templates without pulling
// any, and leaves nothing behind but the chains that Docker makes in iptables. What may not enter: anything about functions.
//
// It needs root and Debian's packages docker.io, iptables and debootstrap (.ci/setup installs them).
package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Network is a network of the engine that containers can join; the machine reaches them by their addresses.
const Network = "functions"

// Engine is a running Docker engine.
type Engine struct {
	Host string // what DOCKER_HOST is to be

	dir    string
	daemon *exec.Cmd
	log    *os.File
}

// Start returns when the engine answers. Its state is in a temporary folder of its own; addresses, such as
// 10.214.0.0/16, are what its networks are cut from. The caller must Stop it; should the caller be killed, the engine
// gets SIGTERM.
func Start(ctx context.Context, addresses string) (_ *Engine, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("an engine needs namespaces and mounts: run as root")
	}
	// A socket's path may have 107 bytes, which a test's own folder often has already.
	dir, err := os.MkdirTemp("", "engine-")
	if err != nil {
		return nil, err
	}
	e := &Engine{Host: "unix://" + filepath.Join(dir, "docker.sock"), dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Stop())
		}
	}()
	if e.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	e.daemon = exec.Command("dockerd", "--host", e.Host, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--bridge=none", "--default-address-pool", "base="+addresses+",size=24")
	e.daemon.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	e.daemon.Stdout, e.daemon.Stderr = e.log, e.log
	e.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if e.daemon.Path, err = lookPath("dockerd"); err != nil {
		return nil, err
	}
	e.daemon.Err = nil // LookPath's, without /usr/sbin
	if err := e.daemon.Start(); err != nil {
		return nil, fmt.Errorf("start dockerd: %w", err)
	}
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err = e.Docker(ready, "info"); err == nil {
			break
		}
		if ready.Err() != nil {
			return nil, fmt.Errorf("dockerd does not answer: %w: %s", err, e.lastLog())
		}
		time.Sleep(200 * time.Millisecond)
	}
	_, err = e.Docker(ctx, "network", "create", Network)
	return e, err
}

func lookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}

// Stop removes all containers, ends the engine and removes what it wrote. Safe to call twice.
func (e *Engine) Stop() error {
	if e.daemon != nil && e.daemon.Process != nil {
		if ids, err := e.Docker(context.Background(), "ps", "--all", "--quiet"); err == nil && ids != "" {
			_, _ = e.Docker(context.Background(), append([]string{"rm", "--force"}, strings.Fields(ids)...)...)
		}
		_, _ = e.Docker(context.Background(), "network", "rm", Network) // its interface would stay
		_ = e.daemon.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(20*time.Second, func() { _ = syscall.Kill(-e.daemon.Process.Pid, syscall.SIGKILL) })
		_ = e.daemon.Wait() // it was told to end
		kill.Stop()
		e.daemon = nil
	}
	if e.log != nil {
		e.log.Close()
	}
	// A killed engine leaves its mounts.
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], e.dir+"/") {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH)
		}
	}
	return os.RemoveAll(e.dir)
}

func (e *Engine) lastLog() string {
	raw, _ := os.ReadFile(filepath.Join(e.dir, "log"))
	return string(raw[max(0, len(raw)-4000):])
}

// Environ is the environment of a program whose docker is this engine, with nobody's credentials. Builds are the classic
// builder's, which every engine has.
func (e *Engine) Environ() []string {
	return append(os.Environ(), "DOCKER_HOST="+e.Host, "DOCKER_CONFIG="+e.dir, "DOCKER_BUILDKIT=0")
}

// Command is the docker client's, for this engine.
func (e *Engine) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = e.Environ()
	return cmd
}

// Docker runs the docker client and returns what it prints, without space around it.
func (e *Engine) Docker(ctx context.Context, args ...string) (string, error) {
	cmd := e.Command(ctx, args...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s%s", strings.Join(args, " "), err, tail(problem.String()), tail(out.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// imports makes an image of a root file system.
func (e *Engine) imports(ctx context.Context, archive io.Reader, name string) error {
	cmd := e.Command(ctx, "import", "-", name)
	cmd.Stdin = archive
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("docker import %s: %w: %s", name, err, out)
	}
	return nil
}
