package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/faas-predict/faas-predict/tests/cluster/kube"
	"github.com/faas-predict/faas-predict/tests/cluster/modelimage"
)

// kubernetes measures functions as pods, the provider being one too, from its chart.
func (b *bench) kubernetes(ctx context.Context, iris built) (err error) {
	cluster, err := kube.Start(ctx, filepath.Join(".cache", "engines"), filepath.Join(b.dir, "cluster"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	provider, err := modelimage.Provider("bin/faas-predict")
	if err != nil {
		return err
	}
	if _, err := modelimage.Push(ctx, provider, cluster.Registry, "faas-predict:figures"); err != nil {
		return err
	}
	image, err := b.remote(iris.ref)
	if err != nil {
		return err
	}
	ref, err := modelimage.Push(ctx, image, cluster.Registry, "iris:"+version(iris))
	if err != nil {
		return err
	}
	host := cluster.Registry.Host
	if _, err := cluster.Run(ctx, "helm", "install", "faas-predict", "provider/backend/kubernetes/chart", "--namespace", "openfaas", "--create-namespace",
		"--wait", "--timeout", "2m", "--set", "image.repository="+host+"/faas-predict,image.tag=figures,functionUser=12000,settings.plain_registries="+host); err != nil {
		return err
	}
	secret, err := cluster.Client.CoreV1().Secrets("openfaas").Get(ctx, "faas-predict-basic-auth", metav1.GetOptions{})
	if err != nil {
		return err
	}
	s := system{
		password: string(secret.Data["basic-auth-password"]),
		direct: func(ctx context.Context) (string, error) {
			return pod(ctx, cluster, "openfaas-fn", "faas-predict/function="+function)
		},
	}
	if s.url, err = pod(ctx, cluster, "openfaas", "app.kubernetes.io/name=faas-predict"); err != nil {
		return err
	}
	client, err := s.client()
	if err != nil {
		return err
	}
	first, err := s.deploy(ctx, client, ref)
	if err != nil {
		return err
	}
	row("from a deployment to the first answer, an image that the node pulls, once", seconds(first))
	if err := s.deploys(ctx, "an image that the node has", ref); err != nil {
		return err
	}
	return b.throughput(ctx, s)
}

// pod is the URL of the only pod of a kind, while it is not asked to end.
func pod(ctx context.Context, cluster *kube.Cluster, namespace, selector string) (string, error) {
	pods, err := cluster.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return "", err
	}
	for _, p := range pods.Items {
		if p.Status.PodIP != "" && p.Status.Phase == corev1.PodRunning {
			return "http://" + net.JoinHostPort(p.Status.PodIP, "8080"), nil
		}
	}
	return "", errNone
}

// version is the tag of an image.
func version(image built) string { return image.ref[strings.LastIndex(image.ref, ":")+1:] }
