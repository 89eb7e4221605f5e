package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// recordKey is the ConfigMap's key that holds the record: as text, so that kubectl shows it.
const recordKey = "record.json"

// Read implements cluster.Records.
func (e *Engine) Read(ctx context.Context, ref backend.Ref) (cluster.Function, error) {
	record, err := e.client.CoreV1().ConfigMaps(ref.Namespace).Get(ctx, recordName(ref), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		record, err = nil, nil
	}
	if err != nil {
		return cluster.Function{}, translate(err)
	}
	objects := objects{record: record}
	deployments, err := e.client.AppsV1().Deployments(ref.Namespace).List(ctx, selector(ref))
	if err != nil {
		return cluster.Function{}, translate(err)
	}
	for i := range deployments.Items {
		objects.deployments = append(objects.deployments, &deployments.Items[i])
	}
	pods, err := e.client.CoreV1().Pods(ref.Namespace).List(ctx, selector(ref))
	if err != nil {
		return cluster.Function{}, translate(err)
	}
	for i := range pods.Items {
		objects.pods = append(objects.pods, &pods.Items[i])
	}
	slices, err := e.client.DiscoveryV1().EndpointSlices(ref.Namespace).List(ctx, selector(ref))
	if err != nil {
		return cluster.Function{}, translate(err)
	}
	for i := range slices.Items {
		objects.slices = append(objects.slices, &slices.Items[i])
	}
	return objects.function(ref), nil
}

// Write implements cluster.Records: the ConfigMap's resource version is the record's revision.
func (e *Engine) Write(ctx context.Context, ref backend.Ref, record []byte, revision string) error {
	if len(record) > cluster.MaxRecord || !utf8.Valid(record) {
		return fmt.Errorf("%w record of function %s: %d bytes, want UTF-8 of at most %d", backend.ErrInvalid, ref, len(record), cluster.MaxRecord)
	}
	object := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name:            recordName(ref),
			Namespace:       ref.Namespace,
			Labels:          map[string]string{managedByLabel: managedBy, functionLabel: ref.Name},
			ResourceVersion: revision,
		},
		Data: map[string]string{recordKey: string(record)},
	}
	records := e.client.CoreV1().ConfigMaps(ref.Namespace)
	if revision != "" {
		_, err := records.Update(ctx, object, metav1.UpdateOptions{})
		return conflict(err)
	}
	created, err := records.Create(ctx, object, metav1.CreateOptions{})
	if err != nil {
		return conflict(err)
	}
	// Workloads that were started before there was a record go with it from now on, whoever removes it and however.
	if err := e.adopt(ctx, ref, created); err != nil {
		slog.Warn("a function's containers do not belong to its record; removing that by hand leaves them", "function", ref.String(), "error", err)
	}
	return nil
}

// Erase implements cluster.Records.
func (e *Engine) Erase(ctx context.Context, ref backend.Ref, revision string) error {
	return conflict(e.client.CoreV1().ConfigMaps(ref.Namespace).Delete(ctx, recordName(ref),
		metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &revision}}))
}

// conflict is translate for a change that is one only if the record is as it was.
func conflict(err error) error {
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
		return fmt.Errorf("%w: %w", cluster.ErrConflict, err)
	}
	return translate(err)
}

// ownedBy is the reference that makes an object go when its owner does.
func ownedBy(apiVersion, kind string, owner metav1.Object) []metav1.OwnerReference {
	return []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: owner.GetName(), UID: owner.GetUID()}}
}

// adopt makes the record the owner of the function's Deployments that have none.
func (e *Engine) adopt(ctx context.Context, ref backend.Ref, record *corev1.ConfigMap) error {
	deployments, err := e.client.AppsV1().Deployments(ref.Namespace).List(ctx, selector(ref))
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"ownerReferences": ownedBy("v1", "ConfigMap", record)}})
	if err != nil {
		return err
	}
	var all error
	for _, d := range deployments.Items {
		if len(d.OwnerReferences) == 0 {
			_, err := e.client.AppsV1().Deployments(ref.Namespace).Patch(ctx, d.Name, types.MergePatchType, patch, metav1.PatchOptions{})
			all = errors.Join(all, err)
		}
	}
	return all
}
