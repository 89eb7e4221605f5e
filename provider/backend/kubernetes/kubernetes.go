// Package kubernetes runs functions on Kubernetes: it is the cluster.Engine whose records are ConfigMaps and whose
// workloads are Deployments, each with a headless Service, whose EndpointSlices say where the pods are, and a
// PodDisruptionBudget.
//
// Everything is in the functions' own namespaces, which are configured and never created, so that Roles in them are
// enough. Pods meet the Pod Security Standard "restricted", and run as any user id, as OpenShift gives them.
//
// What a function, a version or a split means is package cluster's; it may not enter here.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// Labels and annotations of every object here.
const (
	managedByLabel  = "app.kubernetes.io/managed-by"
	managedBy       = "faas-predict"
	functionLabel   = "faas-predict/function"
	workloadLabel   = "faas-predict/workload"
	leaseAnnotation = "faas-predict/lease"
	modelAnnotation = "faas-predict/model"
	versionLabel    = "faas-predict/version"
)

// Options are what an Engine is made of.
type Options struct {
	Config *rest.Config // see Connect
	// Namespaces are those that hold functions. They exist.
	Namespaces []string
	// User is the user id that functions run as; nil leaves it to the image, or to whoever admits pods, as OpenShift
	// does.
	User *int64
	// PullPolicy says when nodes pull images; "" is Kubernetes' own rule.
	PullPolicy corev1.PullPolicy
	// Bundles is where pods get pushed bundles; nil: functions are images alone.
	Bundles *Bundles
}

// Engine implements cluster.Engine.
type Engine struct {
	Options
	client     kubernetes.Interface
	caches     map[string]*cache // by namespace, once Watch was called
	background sync.WaitGroup
}

var _ cluster.Engine = (*Engine)(nil)

// Connect finds the API server: that of the pod that this runs in, or what KUBECONFIG or the user's own kubeconfig
// says.
func Connect() (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		config, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("backend kubernetes: this is no pod with a service account, and there is no kubeconfig: %w", err)
	}
	// Deployments of several functions at once come in bursts; the API server's own fairness limits the rest.
	config.QPS, config.Burst = 50, 200
	config.UserAgent = managedBy
	return config, nil
}

// Open returns an Engine. It asks the API server nothing yet.
func Open(o Options) (*Engine, error) {
	if len(o.Namespaces) == 0 {
		return nil, errors.New("backend kubernetes needs a namespace for functions")
	}
	for _, name := range o.Namespaces {
		if err := backend.CheckName("namespace", name); err != nil {
			return nil, err
		}
	}
	client, err := kubernetes.NewForConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("connect to Kubernetes: %w", err)
	}
	klog.SetSlogLogger(slog.Default())
	return &Engine{Options: o, client: client}, nil
}

// Name implements cluster.Engine.
func (e *Engine) Name() string { return "kubernetes" }

// Close implements cluster.Engine. It blocks until the watches have ended, whose context the caller has ended.
func (e *Engine) Close() error {
	for _, c := range e.caches {
		c.factory.Shutdown()
	}
	e.background.Wait()
	return nil
}

// translate gives an error of the API server the meaning that it has for callers.
func translate(err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err):
		return fmt.Errorf("%w: %w", backend.ErrInvalid, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", backend.ErrNotFound, err)
	case apierrors.IsAlreadyExists(err):
		return fmt.Errorf("%w: %w", backend.ErrExists, err)
	case apierrors.IsServerTimeout(err), apierrors.IsTooManyRequests(err), apierrors.IsServiceUnavailable(err), apierrors.IsTimeout(err):
		return fmt.Errorf("%w: %w", backend.ErrNotReady, err)
	}
	return err
}

// selector finds a function's objects.
func selector(ref backend.Ref) metav1.ListOptions {
	return metav1.ListOptions{LabelSelector: functionLabel + "=" + ref.Name}
}

// probe asks the API server for something that needs the rights and the namespaces that the rest needs, so that what is
// missing is said in a sentence at the start rather than by watches that never come up.
func (e *Engine) probe(ctx context.Context) error {
	for _, namespace := range e.Namespaces {
		_, err := e.client.CoreV1().ConfigMaps(namespace).List(ctx, metav1.ListOptions{LabelSelector: functionLabel, Limit: 1})
		if err != nil {
			return fmt.Errorf("read functions of namespace %s: %w", namespace, err)
		}
	}
	return nil
}
