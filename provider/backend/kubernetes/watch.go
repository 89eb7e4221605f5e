package kubernetes

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// cache follows the objects of one namespace.
type cache struct {
	factory     informers.SharedInformerFactory
	records     corelisters.ConfigMapNamespaceLister
	deployments appslisters.DeploymentNamespaceLister
	pods        corelisters.PodNamespaceLister
	slices      discoverylisters.EndpointSliceNamespaceLister
	handlers    []toolscache.ResourceEventHandlerRegistration
}

// Watch implements cluster.Engine. However many objects of a function change, it is observed once for all that changed
// before.
func (e *Engine) Watch(ctx context.Context, observe func(cluster.Function)) error {
	if err := e.probe(ctx); err != nil {
		return err
	}
	queue := workqueue.NewTyped[backend.Ref]()
	e.caches = map[string]*cache{}
	for _, namespace := range e.Namespaces {
		c, err := e.follow(namespace, queue)
		if err != nil {
			return err
		}
		e.caches[namespace] = c
		c.factory.Start(ctx.Done())
	}
	context.AfterFunc(ctx, queue.ShutDown)
	for _, c := range e.caches {
		for _, handler := range c.handlers {
			if !toolscache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
				return context.Cause(ctx)
			}
		}
	}
	next := func() bool {
		ref, ended := queue.Get()
		if ended {
			return false
		}
		defer queue.Done(ref)
		if f, err := e.caches[ref.Namespace].function(ref); err == nil && ctx.Err() == nil {
			observe(f)
		}
		return true
	}
	for queue.Len() > 0 { // what there was is in the queue by now
		if !next() {
			return context.Cause(ctx)
		}
	}
	e.background.Go(func() {
		for next() {
		}
	})
	return nil
}

// follow makes the cache of a namespace, whose changes put a function into the queue.
func (e *Engine) follow(namespace string, queue workqueue.TypedInterface[backend.Ref]) (*cache, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(e.client, 0,
		informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = functionLabel }),
		informers.WithTransform(trim),
	)
	core, apps, discovery := factory.Core().V1(), factory.Apps().V1(), factory.Discovery().V1()
	c := &cache{
		factory:     factory,
		records:     core.ConfigMaps().Lister().ConfigMaps(namespace),
		deployments: apps.Deployments().Lister().Deployments(namespace),
		pods:        core.Pods().Lister().Pods(namespace),
		slices:      discovery.EndpointSlices().Lister().EndpointSlices(namespace),
	}
	changed := func(object any) {
		if gone, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		if o, err := meta.Accessor(object); err == nil {
			queue.Add(backend.Ref{Namespace: namespace, Name: o.GetLabels()[functionLabel]})
		}
	}
	for _, informer := range []toolscache.SharedIndexInformer{
		core.ConfigMaps().Informer(), apps.Deployments().Informer(), core.Pods().Informer(), discovery.EndpointSlices().Informer(),
	} {
		handler, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: changed, UpdateFunc: func(_, object any) { changed(object) }, DeleteFunc: changed,
		})
		if err != nil {
			return nil, fmt.Errorf("follow namespace %s: %w", namespace, err)
		}
		c.handlers = append(c.handlers, handler)
	}
	return c, nil
}

// trim drops what nobody reads here and is half of an object.
func trim(object any) (any, error) {
	if o, err := meta.Accessor(object); err == nil {
		o.SetManagedFields(nil)
	}
	return object, nil
}

// function is what the cache knows of a function.
func (c *cache) function(ref backend.Ref) (cluster.Function, error) {
	var o objects
	var errs [4]error
	if o.record, errs[0] = c.records.Get(recordName(ref)); apierrors.IsNotFound(errs[0]) {
		o.record, errs[0] = nil, nil
	}
	mine := labels.SelectorFromSet(labels.Set{functionLabel: ref.Name})
	o.deployments, errs[1] = c.deployments.List(mine)
	o.pods, errs[2] = c.pods.List(mine)
	o.slices, errs[3] = c.slices.List(mine)
	return o.function(ref), errors.Join(errs[:]...)
}
