// Package kube starts a real Kubernetes of one node for tests, and leaves nothing of it behind: etcd, the API server
// with RBAC and Pod Security admission, the controllers, the scheduler, containerd, the kubelet and kube-proxy, as
// users have them. What may not enter: anything about functions.
//
// It needs root, Debian's packages containerd, runc, containernetworking-plugins, iptables, conntrack and iproute2, and
// the programs that `make engines` builds. The node has process, mount and network namespaces of its own and is reached
// through one pair of interfaces: pods and Services by their addresses.
package kube

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/faas-predict/faas-predict/tests/cluster/store"
)

// NodeName is the name of the only node.
const NodeName = "node-0"

// Cluster is a running Kubernetes.
type Cluster struct {
	Kubeconfig string // a file, for an administrator
	Config     *rest.Config
	Client     kubernetes.Interface
	// Registry and Private are image registries that the node pulls from, without and with a password.
	Registry, Private *store.Store

	bin, dir string
	network  network
	node     *exec.Cmd
	control  sync.Mutex
	orders   io.WriteCloser
	answers  *bufio.Scanner
}

// Start returns when the node is ready. bin is the folder of the engines' programs, dir an empty one for everything that the
// cluster writes. The caller must Stop it; should the caller be killed, the node ends too.
func Start(ctx context.Context, bin, dir string) (_ *Cluster, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a node needs namespaces and mounts: run as root")
	}
	c := &Cluster{bin: bin, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	for _, sub := range []string{"logs", "pki", "etc/cni", "containerd"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	if err := c.startNode(); err != nil {
		return nil, err
	}
	if c.network, err = openNetwork(c.node.Process.Pid); err != nil {
		return nil, err
	}
	if err := c.startRegistries(); err != nil {
		return nil, err
	}
	if err := c.configure(); err != nil {
		return nil, err
	}
	if err := c.startControlPlane(ctx); err != nil {
		return nil, err
	}
	if err := c.startAgents(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Cluster) startNode() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), nodeVariable+"="+filepath.Join(c.dir, "logs"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Setpgid: true}
	cmd.Stderr = os.Stderr
	answers, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if c.orders, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start node: %w", err)
	}
	c.node, c.answers = cmd, bufio.NewScanner(answers)
	return nil
}

// startRegistries serves them where the node and this process reach them.
func (c *Cluster) startRegistries() (err error) {
	if c.Registry, err = store.Open(c.network.machineAddress(), "", ""); err != nil {
		return err
	}
	c.Private, err = store.Open(c.network.machineAddress(), "puller", rand.Text())
	return err
}

// order has the node's first process do something.
func (c *Cluster) order(fields ...string) error {
	c.control.Lock()
	defer c.control.Unlock()
	if _, err := fmt.Fprintln(c.orders, strings.Join(fields, "\t")); err != nil {
		return fmt.Errorf("%s: the node is gone: %w", fields[0], err)
	}
	if !c.answers.Scan() {
		return fmt.Errorf("%s: the node is gone", fields[0])
	}
	if answer := c.answers.Text(); answer != "ok" {
		return fmt.Errorf("%s: %s", strings.Join(fields[:2], " "), answer)
	}
	return nil
}

// Kill kills one of the node's programs (etcd, kube-apiserver, kubelet, containerd…), which is then started again.
func (c *Cluster) Kill(name string) error { return c.order("kill", name) }

// Stop ends everything and removes what a namespace does not take with it. Safe to call twice.
func (c *Cluster) Stop() error {
	if c.node != nil {
		c.orders.Close()
		_ = c.node.Process.Kill()
		_ = c.node.Wait() // it was killed
		c.node = nil
	}
	for _, s := range []*store.Store{c.Registry, c.Private} {
		if s != nil {
			_ = s.Close()
		}
	}
	c.network.close()
	return errors.Join(c.removeCgroups(), os.RemoveAll(c.dir))
}

// cgroupParent is the control group above the node's pods.
func (c *Cluster) cgroupParent() string { return "/" + c.network.name }

// controllers lists where control groups are made: a folder for each hierarchy of version 1, one in all of version 2.
func controllers() []string {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	return dirs
}

func (c *Cluster) makeCgroups() error {
	for _, dir := range controllers() {
		mine := dir + c.cgroupParent()
		if err := os.MkdirAll(mine, 0o755); err != nil {
			return err
		}
		if filepath.Base(dir) == "cpuset" {
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // a new one has none, and takes no process
				value, err := os.ReadFile(filepath.Join(dir, file))
				if err == nil {
					err = os.WriteFile(filepath.Join(mine, file), value, 0o644)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *Cluster) removeCgroups() error {
	if c.network.name == "" {
		return nil
	}
	var all error
	for _, dir := range controllers() {
		var groups []string
		err := filepath.WalkDir(dir+c.cgroupParent(), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				groups = append(groups, path)
			}
			return nil
		})
		for i := len(groups) - 1; i >= 0 && err == nil; i-- {
			for attempt := 0; ; attempt++ { // a killed process leaves its group a little later
				if err = syscall.Rmdir(groups[i]); err == nil || attempt == 50 {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if err != nil {
				err = fmt.Errorf("remove control group %s: %w", groups[i], err)
			}
		}
		all = errors.Join(all, err)
	}
	return all
}

// configure writes keys, tokens and configuration files.
func (c *Cluster) configure() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	tokens := ""
	for i, user := range users {
		tokens += fmt.Sprintf("%s,%s,%d,%s\n", rand.Text(), user.name, i, user.group)
	}
	for name, content := range map[string]string{
		"pki/sa.key":     string(private),
		"pki/sa.pub":     string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		"pki/tokens.csv": tokens,
		"etc/containerd.toml": fmt.Sprintf(containerdConfig, filepath.Join(c.dir, "containerd", "root"), "/run/containerd", c.socket(),
			filepath.Join(c.dir, "etc", "cni"), c.Registry.Host, "http://"+c.Registry.Host, c.Private.Host, "http://"+c.Private.Host),
		"etc/cni/10-ptp.conflist": fmt.Sprintf(cniConfig, c.network.pods()),
		"etc/kubelet.yaml":        fmt.Sprintf(kubeletConfig, c.cgroupParent()),
		"etc/kube-proxy.yaml":     fmt.Sprintf(proxyConfig, c.network.nodeAddress(), c.kubeconfig("system:kube-proxy"), c.network.pods(), NodeName),
	} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return c.makeCgroups()
}

// users are who has a token, and the group that the API server's own roles know them by.
var users = []struct{ name, group string }{
	{"admin", "system:masters"},
	{"system:kube-controller-manager", ""},
	{"system:kube-scheduler", ""},
	{"system:kube-proxy", ""},
	{"system:node:" + NodeName, "system:nodes"},
}

func (c *Cluster) socket() string { return filepath.Join(c.dir, "containerd.sock") }

func (c *Cluster) kubeconfig(user string) string {
	return filepath.Join(c.dir, "etc", strings.ReplaceAll(user, ":", "-")+".kubeconfig")
}

// writeKubeconfigs needs the API server's certificate, which it makes itself.
func (c *Cluster) writeKubeconfigs() error {
	tokens, err := os.ReadFile(filepath.Join(c.dir, "pki", "tokens.csv"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(tokens)) {
		fields := strings.Split(strings.TrimSpace(line), ",")
		content := fmt.Sprintf(kubeconfig, c.server(), filepath.Join(c.dir, "pki", "apiserver.crt"), fields[0])
		if err := os.WriteFile(c.kubeconfig(fields[1]), []byte(content), 0o600); err != nil {
			return err
		}
	}
	c.Kubeconfig = c.kubeconfig("admin")
	if c.Config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig); err != nil {
		return err
	}
	c.Config.QPS, c.Config.Burst = 100, 200
	c.Client, err = kubernetes.NewForConfig(c.Config)
	return err
}

func (c *Cluster) server() string { return "https://" + c.network.nodeAddress() + ":6443" }

func (c *Cluster) startControlPlane(ctx context.Context) error {
	etcd := "http://127.0.0.1:2379"
	if err := c.order("start", "etcd", filepath.Join(c.bin, "etcd"), "--data-dir="+filepath.Join(c.dir, "etcd"),
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd, "--listen-peer-urls=http://127.0.0.1:2380",
		"--unsafe-no-fsync", "--log-level=warn"); err != nil {
		return err
	}
	pki := filepath.Join(c.dir, "pki")
	if err := c.order("start", "kube-apiserver", filepath.Join(c.bin, "kube-apiserver"),
		"--etcd-servers="+etcd,
		"--bind-address="+c.network.nodeAddress(), "--advertise-address="+c.network.nodeAddress(), "--secure-port=6443",
		"--cert-dir="+pki, "--token-auth-file="+pki+"/tokens.csv",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+pki+"/sa.pub",
		"--service-account-signing-key-file="+pki+"/sa.key",
		"--authorization-mode=Node,RBAC",
		// OpenShift has the second too.
		"--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
		"--service-cluster-ip-range="+c.network.services(),
		"--kubelet-preferred-address-types=InternalIP",
		"--shutdown-delay-duration=0s"); err != nil {
		return err
	}
	if err := c.await(ctx, "the API server's certificate", func() error {
		_, err := os.Stat(filepath.Join(pki, "apiserver.crt"))
		return err
	}); err != nil {
		return err
	}
	if err := c.writeKubeconfigs(); err != nil {
		return err
	}
	if err := c.await(ctx, "the API server", func() error {
		return c.Client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}); err != nil {
		return err
	}
	if err := c.order("start", "kube-controller-manager", filepath.Join(c.bin, "kube-controller-manager"),
		"--kubeconfig="+c.kubeconfig("system:kube-controller-manager"), "--use-service-account-credentials",
		"--service-account-private-key-file="+pki+"/sa.key", "--root-ca-file="+pki+"/apiserver.crt",
		"--leader-elect=false", "--bind-address=127.0.0.1"); err != nil {
		return err
	}
	return c.order("start", "kube-scheduler", filepath.Join(c.bin, "kube-scheduler"),
		"--kubeconfig="+c.kubeconfig("system:kube-scheduler"), "--leader-elect=false", "--bind-address=127.0.0.1")
}

func (c *Cluster) startAgents(ctx context.Context) error {
	if err := c.order("start", "containerd", "/usr/bin/containerd", "--config="+filepath.Join(c.dir, "etc", "containerd.toml")); err != nil {
		return err
	}
	pause, err := pauseImage(ctx, c.dir)
	if err != nil {
		return err
	}
	if err := c.await(ctx, "containerd", func() error { return c.Load(ctx, pause) }); err != nil {
		return err
	}
	if err := c.order("start", "kubelet", filepath.Join(c.bin, "kubelet"),
		"--config="+filepath.Join(c.dir, "etc", "kubelet.yaml"), "--kubeconfig="+c.kubeconfig("system:node:"+NodeName),
		"--hostname-override="+NodeName, "--node-ip="+c.network.nodeAddress(), "--root-dir=/var/lib/kubelet",
		"--cert-dir="+filepath.Join(c.dir, "pki", "kubelet"),
		"--container-runtime-endpoint=unix://"+c.socket()); err != nil {
		return err
	}
	if err := c.order("start", "kube-proxy", filepath.Join(c.bin, "kube-proxy"),
		"--config="+filepath.Join(c.dir, "etc", "kube-proxy.yaml")); err != nil {
		return err
	}
	if err := c.await(ctx, "the default namespace's service account", func() error {
		_, err := c.Client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	}); err != nil {
		return err
	}
	return c.AwaitNode(ctx)
}

// AwaitNode returns when the node can take pods.
func (c *Cluster) AwaitNode(ctx context.Context) error {
	return c.await(ctx, "the node", func() error {
		node, err := c.Client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, taint := range node.Spec.Taints {
			return fmt.Errorf("it has the taint %s", taint.Key)
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("not ready: %+v", node.Status.Conditions)
	})
}

// await asks until there is no error any more, for a minute and a half.
func (c *Cluster) await(ctx context.Context, what string, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not come up: %w\n%s", what, err, c.logTails())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// logTails is what to look at when the cluster does not start.
func (c *Cluster) logTails() string {
	files, _ := filepath.Glob(filepath.Join(c.dir, "logs", "*.log"))
	out := ""
	for _, file := range files {
		content, _ := os.ReadFile(file)
		lines := strings.Split(strings.TrimSpace(string(content)), "\n")
		out += "== " + filepath.Base(file) + "\n" + strings.Join(lines[max(0, len(lines)-15):], "\n") + "\n"
	}
	return out
}

// Load makes the images of archives, as `docker save` writes them, known to the node.
func (c *Cluster) Load(ctx context.Context, archives ...string) error {
	for _, archive := range archives {
		cmd := exec.CommandContext(ctx, "ctr", "--address", c.socket(), "--namespace", "k8s.io", "images", "import", archive)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("load %s: %w: %s", filepath.Base(archive), err, out)
		}
	}
	return nil
}

// KillTask kills a pod's container, by the name that the pod's status has for it.
func (c *Cluster) KillTask(ctx context.Context, id string) error {
	cmd := exec.CommandContext(ctx, "ctr", "--address", c.socket(), "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL",
		strings.TrimPrefix(id, "containerd://"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kill container %s: %w: %s", id, err, out)
	}
	return nil
}

// Run runs one of the clients among the engines' programs, kubectl or helm, as the administrator, and returns its output.
func (c *Cluster) Run(ctx context.Context, name string, arguments ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, name), arguments...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "HOME="+c.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, out)
	}
	return string(out), nil
}

// ServiceAddress is an address that a Service may ask for, to be known before it exists: there is no DNS here.
func (c *Cluster) ServiceAddress(last int) string {
	return c.network.prefix + ".128." + strconv.Itoa(last)
}
