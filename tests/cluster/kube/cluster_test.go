package kube_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/faas-predict/faas-predict/tests/cluster/kube"
)

func TestMain(m *testing.M) {
	kube.Main()
	os.Exit(m.Run())
}

// Pods are reached by their own address and by a Service's, their logs are read, a killed kubelet comes back without
// the pod having ended, and afterwards the machine is as it was before.
func TestClusterRunsPodsAndLeavesNothingBehind(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "cluster")
	before := traces(t, dir)
	began := time.Now()
	c, err := kube.Start(ctx, "../../../.cache/engines", dir)
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	defer func() {
		if !stopped {
			c.Stop()
		}
	}()
	t.Logf("ready after %s", time.Since(began).Round(time.Millisecond))

	program, err := kube.Build(ctx, t.TempDir(), "./testdata/web")
	if err != nil {
		t.Fatal(err)
	}
	archive, err := kube.Image{
		Name: "local/web:1", Files: map[string]string{"web": program}, Config: v1.Config{Entrypoint: []string{"/web"}},
	}.Archive(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Load(ctx, archive); err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"app": "web"}
	pods := c.Client.CoreV1().Pods("default")
	_, err = pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "local/web:1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	service := c.ServiceAddress(77)
	_, err = c.Client.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: service, Selector: labels, Ports: []corev1.ServicePort{{Port: 8080}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return expect("http://"+service+":8080", "web") })
	pod, err := pods.Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return expect("http://"+pod.Status.PodIP+":8080", "web") })
	eventually(t, func() error {
		log, err := pods.GetLogs("web", &corev1.PodLogOptions{}).DoRaw(ctx)
		if err == nil && !strings.Contains(string(log), "web is up: web") {
			err = fmt.Errorf("log %q", log)
		}
		return err
	})
	if out, err := c.Run(ctx, "kubectl", "version"); err != nil || !strings.Contains(out, "Server Version: v1.34.4") {
		t.Errorf("kubectl version: %s, %v", out, err)
	}

	if err := c.Kill("kubelet"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := pods.GetLogs("web", &corev1.PodLogOptions{}).DoRaw(ctx) // asks the kubelet
		return err
	})
	if pod, err := pods.Get(ctx, "web", metav1.GetOptions{}); err != nil || pod.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("after the kubelet was killed: %+v, %v", pod.Status, err)
	}

	stopped = true
	if err := c.Stop(); err != nil {
		t.Error("stop:", err)
	}
	eventually(t, func() error {
		if after := traces(t, dir); !slices.Equal(before, after) {
			return fmt.Errorf("left behind: before %q, after %q", before, after)
		}
		return nil
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the cluster's folder: %v, want it gone", err)
	}
}

// traces lists what clusters leave on a machine that are not cleaned up: interfaces, routes, mounts, control groups,
// network namespaces, firewall rules, processes that use dir.
func traces(t *testing.T, dir string) (out []string) {
	t.Helper()
	routes, err := exec.Command("ip", "route").Output()
	if err != nil {
		t.Fatal(err)
	}
	rules, err := exec.Command("iptables-save").Output()
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(routes) + string(rules) + string(mounts)) {
		for _, mark := range []string{"fpnode", "KUBE-", "CNI-", "kubelet", dir, "cni-"} {
			if strings.Contains(line, mark) {
				out = append(out, line)
				break
			}
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/fpnode*", "/sys/fs/cgroup/fpnode*", "/sys/class/net/fpnode*", "/run/netns/cni-*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, found...)
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range commands {
		command, _ := os.ReadFile(file) // a process that has ended is none
		if strings.Contains(string(command), dir) || strings.HasPrefix(string(command), "/pause") {
			out = append(out, string(command))
		}
	}
	return out
}

func expect(url, want string) error {
	client := http.Client{Timeout: 2 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && string(body) != want {
		err = fmt.Errorf("%s says %q, want %q", url, body, want)
	}
	return err
}

func eventually(t *testing.T, ask func() error) {
	t.Helper()
	err := ask()
	for end := time.Now().Add(time.Minute); err != nil; err = ask() {
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
