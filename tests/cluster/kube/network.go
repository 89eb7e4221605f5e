package kube

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// network is how the machine reaches the node: a pair of interfaces, and routes to pods and Services through it. It
// ends with the node's network namespace.
type network struct {
	name   string // of the interface on the machine, and of the cluster's control groups
	prefix string // the first two numbers of every address
}

func (n network) machineAddress() string { return n.prefix + ".255.1" }
func (n network) nodeAddress() string    { return n.prefix + ".255.2" }
func (n network) pods() string           { return n.prefix + ".0.0/17" }
func (n network) services() string       { return n.prefix + ".128.0/18" }

// openNetwork connects the namespace of a process. Clusters of several tests on one machine each have their own.
func openNetwork(pid int) (n network, err error) {
	for i := range 32 {
		n = network{name: "fpnode" + strconv.Itoa(i), prefix: "10." + strconv.Itoa(200+i)}
		if err = ip("link", "add", n.name, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(pid)); err == nil {
			break
		}
	}
	if err != nil {
		return network{}, err
	}
	inside := func(arguments ...string) error {
		return run("nsenter", append([]string{"--net=/proc/" + strconv.Itoa(pid) + "/ns/net", "--"}, arguments...)...)
	}
	err = errors.Join(
		ip("address", "add", n.machineAddress()+"/30", "dev", n.name),
		ip("link", "set", n.name, "up"),
		ip("route", "add", n.pods(), "via", n.nodeAddress()),
		ip("route", "add", n.services(), "via", n.nodeAddress()),
		inside("ip", "link", "set", "lo", "up"),
		inside("ip", "address", "add", n.nodeAddress()+"/30", "dev", "eth0"),
		inside("ip", "link", "set", "eth0", "up"),
		inside("ip", "route", "add", "default", "via", n.machineAddress()),
		inside("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"),
	)
	return n, err
}

// close removes the interface, which goes by itself a moment after the last process of the node.
func (n network) close() {
	if n.name != "" {
		ip("link", "del", n.name) //nolint:errcheck // gone already is as well
	}
}

func ip(arguments ...string) error { return run("ip", arguments...) }

func run(name string, arguments ...string) error {
	if out, err := exec.Command(name, arguments...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
