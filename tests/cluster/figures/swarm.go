package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// swarm measures functions as services of Docker Swarm, the provider being one too, from its stack file. Client and
// direct calls go to the containers' own addresses on this node.
func (b *bench) swarm(ctx context.Context, iris built) (err error) {
	docker := func(args ...string) (string, error) { return b.docker.Docker(ctx, args...) }
	if _, err := docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:0", "--default-addr-pool", "10.199.0.0/16"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			said, _ := docker("service", "ps", "--no-trunc", "faas-predict_provider")
			err = fmt.Errorf("%w\n%s", err, said)
		}
		_, left := docker("swarm", "leave", "--force")
		err = errors.Join(err, left)
		_, _ = docker("network", "rm", bridge) // its interface would stay
	}()
	const password = "figures"
	if err := b.installOnSwarm(ctx, password); err != nil {
		return err
	}
	s := system{password: password, direct: func(ctx context.Context) (string, error) {
		return b.container(ctx, "label=faas-predict.name="+function)
	}}
	if err := wait(ctx, func() (err error) {
		if s.url, err = b.container(ctx, "label=com.docker.swarm.service.name=faas-predict_provider"); err == nil {
			err = get(s.url + "/healthz")
		}
		return err
	}); err != nil {
		return err
	}
	if err := s.deploys(ctx, "an image that the node has", iris.ref); err != nil {
		return err
	}
	return b.throughput(ctx, s)
}

func (b *bench) installOnSwarm(ctx context.Context, password string) error {
	dir := filepath.Join(b.dir, "provider")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"Dockerfile":          "FROM scratch\nCOPY faas-predict /faas-predict\nENTRYPOINT [\"/faas-predict\"]\nCMD [\"serve\"]\n",
		"basic-auth-user":     "admin",
		"basic-auth-password": password,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	program, err := os.ReadFile("bin/faas-predict")
	if err != nil {
		return fmt.Errorf("make build comes first: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "faas-predict"), program, 0o755); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"build", "--quiet", "--tag", "faas-predict:figures", dir},
		{"network", "create", "--driver", "overlay", "--attachable", "faas-predict"},
		{"secret", "create", "basic-auth-user", filepath.Join(dir, "basic-auth-user")},
		{"secret", "create", "basic-auth-password", filepath.Join(dir, "basic-auth-password")},
	} {
		if _, err := b.docker.Docker(ctx, args...); err != nil {
			return err
		}
	}
	deploy := b.docker.Command(ctx, "stack", "deploy", "-c", "provider/backend/swarm/stack.yml", "faas-predict")
	deploy.Env = append(deploy.Env, "FAAS_PREDICT_IMAGE=faas-predict:figures", "FAAS_PREDICT_PORT=29830", "FAAS_PREDICT_PORT_MODE=host",
		"DOCKER_SOCKET="+strings.TrimPrefix(b.docker.Host, "unix://"))
	if out, err := deploy.CombinedOutput(); err != nil {
		return fmt.Errorf("docker stack deploy: %w: %s", err, out)
	}
	return nil
}

// bridge is the network by which a node reaches its containers.
const bridge = "docker_gwbridge"

// container is the URL of the only running container that a filter leaves.
func (b *bench) container(ctx context.Context, filter string) (string, error) {
	id, err := b.docker.Docker(ctx, "ps", "--quiet", "--no-trunc", "--filter", filter)
	if err != nil {
		return "", err
	}
	if id == "" {
		return "", errNone
	}
	raw, err := b.docker.Docker(ctx, "network", "inspect", "--format", "{{json .Containers}}", bridge)
	if err != nil {
		return "", err
	}
	var attached map[string]struct{ IPv4Address string }
	if err := json.Unmarshal([]byte(raw), &attached); err != nil {
		return "", err
	}
	address, _, err := net.ParseCIDR(attached[id].IPv4Address)
	if err != nil {
		return "", fmt.Errorf("container %s has no address yet: %w", id, err)
	}
	return "http://" + net.JoinHostPort(address.String(), "8080"), nil
}

// cores is how many this machine has.
func cores() int {
	out, err := exec.Command("nproc").Output()
	n := 1
	if err == nil {
		_, _ = fmt.Sscan(string(out), &n)
	}
	return n
}
