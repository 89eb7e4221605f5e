package swarm

import (
	"context"
	"log/slog"
	"reflect"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

// Swarm tells of changes of services and configs as events, but not of tasks, so tasks are listed:
// often while anything is about to change, else now and then.
const (
	oftenEvery  = 150 * time.Millisecond
	seldomEvery = time.Second
	oftenFor    = 5 * time.Second // after the last change
)

// look has the watch look at once.
func (e *Engine) look() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// Watch implements cluster.Engine.
func (e *Engine) Watch(ctx context.Context, observe func(cluster.Function)) error {
	seen := map[backend.Ref]cluster.Function{}
	if _, err := e.round(ctx, seen, observe); err != nil {
		return err
	}
	e.watches.Go(func() { e.follow(ctx, seen, observe) })
	return nil
}

func (e *Engine) follow(ctx context.Context, seen map[backend.Ref]cluster.Function, observe func(cluster.Function)) {
	e.watches.Go(func() { e.listen(ctx) })
	failing := false
	last := time.Now()
	for {
		wait := seldomEvery
		if time.Since(last) < oftenFor {
			wait = oftenEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-e.kick:
			last = time.Now()
		case <-time.After(wait):
		}
		changed, err := e.round(ctx, seen, observe)
		if changed {
			last = time.Now()
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			slog.Warn("swarm cannot be asked; calls go on to the containers that are known", "error", err)
		}
		if err == nil && failing {
			slog.Info("swarm can be asked again")
		}
		failing = err != nil
	}
}

// listen has the watch look at every event, and listens again when the engine was away.
func (e *Engine) listen(ctx context.Context) {
	filters := client.Filters{}.Add("type", "service", "config", "node", "container")
	for ctx.Err() == nil {
		events := e.docker.Events(ctx, client.EventsListOptions{Filters: filters})
		for listening := true; listening; {
			select {
			case <-events.Messages:
				e.look()
			case <-events.Err:
				listening = false
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(seldomEvery):
		}
	}
}

// roundWithin bounds one look at the swarm.
const roundWithin = 10 * time.Second

// round looks at everything and tells of what is not as it was seen.
func (e *Engine) round(ctx context.Context, seen map[backend.Ref]cluster.Function, observe func(cluster.Function)) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, roundWithin)
	defer cancel()
	configs, err := e.docker.ConfigList(ctx, client.ConfigListOptions{Filters: e.with(map[string]string{kindLabel: kindFunction})})
	if err != nil {
		return false, wrap(err, "list configs")
	}
	services, err := e.docker.ServiceList(ctx, client.ServiceListOptions{Filters: e.with(nil)})
	if err != nil {
		return false, wrap(err, "list services")
	}
	var tasks client.TaskListResult
	if len(services.Items) > 0 {
		if tasks, err = e.docker.TaskList(ctx, client.TaskListOptions{Filters: e.with(nil)}); err != nil {
			return false, wrap(err, "list tasks")
		}
	}
	now := functions(configs.Items, services.Items, tasks.Items, e.network)
	for ref := range seen {
		if _, there := now[ref]; !there {
			observe(cluster.Function{Ref: ref})
			delete(seen, ref)
			changed = true
		}
	}
	for ref, f := range now {
		if before, there := seen[ref]; !there || !reflect.DeepEqual(before, f) {
			observe(f)
			seen[ref] = f
			changed = true
		}
	}
	return changed, nil
}

// functions puts together what belongs to one function.
func functions(configs []swarm.Config, services []swarm.Service, tasks []swarm.Task, network string) map[backend.Ref]cluster.Function {
	out := map[backend.Ref]cluster.Function{}
	for ref, workloads := range statuses(services, tasks, network) {
		out[ref] = cluster.Function{Ref: ref, Workloads: workloads}
	}
	for _, c := range configs {
		record, revision := recordOf(&c)
		if record == nil {
			continue
		}
		ref := refOf(c.Spec.Labels)
		f := out[ref]
		f.Ref, f.Record, f.Revision = ref, record, revision
		out[ref] = f
	}
	return out
}
