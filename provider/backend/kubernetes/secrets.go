package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"

	"github.com/openfaas/faas-provider/types"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// secretLabel marks the Secrets that functions may name. Whoever makes one by other means sets it, so that a deployment
// does not get at every Secret of its namespace, those of service accounts and image registries among them.
const secretLabel = "faas-predict/secret"

// ListSecrets implements backend.Secrets.
func (e *Engine) ListSecrets(ctx context.Context, namespace string) ([]types.Secret, error) {
	found, err := e.client.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{LabelSelector: secretLabel})
	if err != nil {
		return nil, translate(err)
	}
	out := []types.Secret{}
	for _, s := range found.Items {
		out = append(out, types.Secret{Name: s.Name, Namespace: s.Namespace})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// CreateSecret implements backend.Secrets. The value is a file of the secret's name in the container.
func (e *Engine) CreateSecret(ctx context.Context, s types.Secret) error {
	value, err := secretValue(s)
	if err != nil {
		return err
	}
	_, err = e.client.CoreV1().Secrets(s.Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: s.Name, Namespace: s.Namespace,
			Labels: map[string]string{managedByLabel: managedBy, secretLabel: "true"},
		},
		Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{s.Name: value},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("secret %s in namespace %s %w", s.Name, s.Namespace, backend.ErrExists)
	}
	return translate(err)
}

// maxSecretBytes leaves room for the rest of the object in what etcd takes.
const maxSecretBytes = deployment.MaxSecretBytes - 4<<10

func secretValue(s types.Secret) ([]byte, error) { return deployment.SecretValue(s, maxSecretBytes) }

// UpdateSecret implements backend.Secrets. The kubelet brings the new value to the containers within about a minute; a
// model that read the old one in init keeps it.
func (e *Engine) UpdateSecret(ctx context.Context, s types.Secret) error {
	value, err := secretValue(s)
	if err != nil {
		return err
	}
	if err := e.ours(ctx, s.Name, s.Namespace); err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"data": map[string][]byte{s.Name: value}})
	if err != nil {
		return err
	}
	_, err = e.client.CoreV1().Secrets(s.Namespace).Patch(ctx, s.Name, apitypes.MergePatchType, patch, metav1.PatchOptions{})
	return translate(err)
}

// DeleteSecret implements backend.Secrets.
func (e *Engine) DeleteSecret(ctx context.Context, name, namespace string) error {
	if err := e.ours(ctx, name, namespace); err != nil {
		return err
	}
	return translate(e.client.CoreV1().Secrets(namespace).Delete(ctx, name, metav1.DeleteOptions{}))
}

// ours refuses a Secret that is not one of functions, or not there.
func (e *Engine) ours(ctx context.Context, name, namespace string) error {
	s, err := e.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && s.Labels[secretLabel] == "" {
		return fmt.Errorf("secret %s in namespace %s %w", name, namespace, backend.ErrNotFound)
	}
	return translate(err)
}
