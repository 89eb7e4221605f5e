// Package kubernetes has the tests of functions on a real Kubernetes: the provider runs in it, installed by its chart,
// with the rights that the chart gives it and no others.
package kubernetes

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/faas-predict/faas-predict/tests/cluster/kube"
	"github.com/faas-predict/faas-predict/tests/cluster/modelimage"
	"github.com/faas-predict/faas-predict/tests/cluster/store"
)

const (
	root      = "../../.."
	namespace = "openfaas-fn"
	system    = "openfaas"
	// user is as OpenShift gives them: a number that no image knows.
	user = 1000660000
)

// installed is a Kubernetes with two providers in it.
type installed struct {
	*kube.Cluster
	password  string
	replicas  int // of providers
	mu        sync.Mutex
	providers []corev1.Pod // that serve
	closed    *store.Store // a registry whose password nobody was given
}

var shared *installed

func TestMain(m *testing.M) {
	kube.Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "kubernetes-")
	if err == nil {
		defer os.RemoveAll(dir)
		shared, err = install(ctx, filepath.Join(dir, "cluster"))
	}
	if shared != nil {
		defer shared.Stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// install starts Kubernetes, pushes the provider's image, and installs the chart.
func install(ctx context.Context, dir string) (*installed, error) {
	c, err := kube.Start(ctx, filepath.Join(root, ".cache", "engines"), dir)
	if err != nil {
		return nil, err
	}
	i := &installed{Cluster: c, replicas: 2}
	address, _, err := net.SplitHostPort(c.Registry.Host)
	if err == nil {
		i.closed, err = store.Open(address, "nobody", rand.Text())
	}
	if err != nil {
		return i, err
	}
	if err := i.pushProvider(ctx); err != nil {
		return i, err
	}
	if _, err := i.Run(ctx, "kubectl", "create", "namespace", system); err != nil {
		return i, err
	}
	if err := i.giveLogin(ctx, system); err != nil {
		return i, err
	}
	if err := i.upgrade(ctx); err != nil {
		return i, err
	}
	secret, err := c.Client.CoreV1().Secrets(system).Get(ctx, "faas-predict-basic-auth", metav1.GetOptions{})
	if err != nil {
		return i, err
	}
	i.password = string(secret.Data["basic-auth-password"])
	return i, i.findProviders(ctx)
}

// upgrade installs the chart, or upgrades what is installed.
func (i *installed) upgrade(ctx context.Context, more ...string) error {
	chart := filepath.Join(root, "provider", "backend", "kubernetes", "chart")
	if _, err := i.Run(ctx, "helm", "lint", "--strict", chart); err != nil {
		return err
	}
	values := append([]string{
		"image.repository=" + i.Registry.Host + "/faas-predict", "image.tag=test", fmt.Sprintf("replicas=%d", i.replicas), "registrySecret=registry",
		`settings.plain_registries=` + i.Registry.Host + `\,` + i.Private.Host + `\,` + i.closed.Host,
		"service.clusterIP=" + i.ServiceAddress(80), fmt.Sprintf("functionUser=%d", user), "networkPolicy.enabled=true",
	}, more...)
	_, err := i.Run(ctx, "helm", "upgrade", "--install", "faas-predict", chart, "--namespace", system, "--create-namespace",
		"--wait", "--timeout", "2m", "--set", strings.Join(values, ","))
	if err != nil {
		state, _ := i.Run(ctx, "kubectl", "-n", system, "describe", "pods")
		logs, _ := i.Run(ctx, "kubectl", "-n", system, "logs", "deployment/faas-predict")
		return fmt.Errorf("%w\n%s\n%s", err, state, logs)
	}
	return nil
}

// findProviders returns when all serve, and no other is left.
func (i *installed) findProviders(ctx context.Context) error {
	return wait(ctx, func() error {
		pods, err := i.Client.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=faas-predict"})
		if err != nil {
			return err
		}
		serving := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil || !serves(p) })
		if len(serving) != i.replicas {
			return fmt.Errorf("%d providers serve, want %d", len(serving), i.replicas)
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		i.providers = serving
		return nil
	})
}

func serves(p corev1.Pod) bool {
	if p.Status.PodIP == "" {
		return false
	}
	client := http.Client{Timeout: time.Second}
	answer, err := client.Get("http://" + net.JoinHostPort(p.Status.PodIP, "8080") + "/healthz")
	if err != nil {
		return false
	}
	answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// provider is the URL of one of them.
func (i *installed) provider(n int) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return "http://" + net.JoinHostPort(i.providers[n].Status.PodIP, "8080")
}

// service is the URL of both.
func (i *installed) service() string { return "http://" + i.ServiceAddress(80) + ":8080" }

// pushProvider makes the provider's image: the program and nothing else.
func (i *installed) pushProvider(ctx context.Context) error {
	image, err := modelimage.Provider(filepath.Join(root, "bin", "faas-predict"))
	if err == nil {
		_, err = modelimage.Push(ctx, image, i.Registry, "faas-predict:test")
	}
	return err
}

// giveLogin makes a Secret with the credentials for the private registry.
func (i *installed) giveLogin(ctx context.Context, namespace string) error {
	_, err := i.Client.CoreV1().Secrets(namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "registry"},
		Type:       corev1.SecretTypeDockerConfigJson,
		Data:       map[string][]byte{corev1.DockerConfigJsonKey: i.Private.DockerConfig()},
	}, metav1.CreateOptions{})
	return err
}

// python is the base of images; reading it takes a while.
var python = sync.OnceValues(func() (v1.Image, error) {
	return modelimage.Python(context.Background(), filepath.Join(root, ".cache", "bases"))
})

// build makes an image of a bundle as the template makes it, less what the template builds.
func build(t *testing.T, bundle fs.FS) (image v1.Image, version string) {
	t.Helper()
	base, err := python()
	must(t, err)
	image, version, err = modelimage.Bundle(base, filepath.Join(root, "bin", "fwatchdog"), bundle)
	must(t, err)
	return image, version
}

// push pushes an image of a bundle.
func (i *installed) push(t *testing.T, repository string, bundle fs.FS) string {
	t.Helper()
	image, version := build(t, bundle)
	ref, err := modelimage.Push(t.Context(), image, i.Registry, repository+":"+version)
	must(t, err)
	return ref
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wait asks until there is no error any more, for two minutes.
func wait(ctx context.Context, ask func() error) error {
	err := ask()
	for end := time.Now().Add(2 * time.Minute); err != nil && time.Now().Before(end) && ctx.Err() == nil; err = ask() {
		time.Sleep(50 * time.Millisecond)
	}
	return err
}
