package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// Apply implements cluster.Workloads. Whatever is there already stays; what is missing is made.
func (e *Engine) Apply(ctx context.Context, w cluster.Workload) error {
	m, err := e.manifest(w)
	if err != nil {
		return err
	}
	record, err := e.client.CoreV1().ConfigMaps(w.Ref.Namespace).Get(ctx, recordName(w.Ref), metav1.GetOptions{})
	switch {
	case err == nil:
		m.deployment.OwnerReferences = ownedBy("v1", "ConfigMap", record)
	case !apierrors.IsNotFound(err):
		return translate(err)
	}
	deployments := e.client.AppsV1().Deployments(w.Ref.Namespace)
	made, err := deployments.Create(ctx, m.deployment, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		patch, encodeErr := json.Marshal(map[string]any{
			"metadata": map[string]any{"annotations": map[string]string{leaseAnnotation: strconv.FormatInt(w.Lease, 10)}},
			"spec":     map[string]any{"replicas": w.Replicas},
		})
		if encodeErr != nil {
			return encodeErr
		}
		made, err = deployments.Patch(ctx, m.deployment.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return fmt.Errorf("deployment %s: %w", m.deployment.Name, translate(err))
	}
	owner := ownedBy("apps/v1", "Deployment", made)
	if m.secret != nil { // first: pods wait for it
		m.secret.OwnerReferences = owner
		_, err = e.client.CoreV1().Secrets(w.Ref.Namespace).Create(ctx, m.secret, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("workload %s: %w", m.deployment.Name, translate(err))
		}
	}
	m.service.OwnerReferences, m.budget.OwnerReferences = owner, owner
	_, err = e.client.CoreV1().Services(w.Ref.Namespace).Create(ctx, m.service, metav1.CreateOptions{})
	if err == nil || apierrors.IsAlreadyExists(err) {
		_, err = e.client.PolicyV1().PodDisruptionBudgets(w.Ref.Namespace).Create(ctx, m.budget, metav1.CreateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("workload %s: %w", m.deployment.Name, translate(err))
	}
	return nil
}

// Scale implements cluster.Workloads.
func (e *Engine) Scale(ctx context.Context, ref backend.Ref, id string, replicas uint64) error {
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	_, err := e.client.AppsV1().Deployments(ref.Namespace).Patch(ctx, objectName(ref, id), types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("scale %s: %w", objectName(ref, id), translate(err))
	}
	return nil
}

// Remove implements cluster.Workloads. What else there is belongs to the Deployment; it is named here for a
// workload that was never made as a whole.
func (e *Engine) Remove(ctx context.Context, ref backend.Ref, id string) error {
	name := objectName(ref, id)
	background := metav1.DeletePropagationBackground
	options := metav1.DeleteOptions{PropagationPolicy: &background}
	var all error
	for what, err := range map[string]error{
		"deployment": e.client.AppsV1().Deployments(ref.Namespace).Delete(ctx, name, options),
		"service":    e.client.CoreV1().Services(ref.Namespace).Delete(ctx, name, options),
		"budget":     e.client.PolicyV1().PodDisruptionBudgets(ref.Namespace).Delete(ctx, name, options),
		"secret":     e.client.CoreV1().Secrets(ref.Namespace).Delete(ctx, name, options),
	} {
		if err != nil && !apierrors.IsNotFound(err) {
			all = errors.Join(all, fmt.Errorf("remove %s %s: %w", what, name, translate(err)))
		}
	}
	return all
}
