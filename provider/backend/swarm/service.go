package swarm

import (
	"cmp"
	"context"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
	"github.com/faas-predict/faas-predict/provider/image"
)

// functionPort is where fwatchdog serves in a container.
const functionPort = "8080"

const (
	secretsDir    = "/var/openfaas/secrets/"
	scratchBytes  = 256 << 20 // of /tmp
	restartDelay  = 500 * time.Millisecond
	nameInService = 50 // characters of a function's name in its services' names
)

// Apply implements cluster.Workloads.
func (e *Engine) Apply(ctx context.Context, w cluster.Workload) error {
	defer e.look()
	spec, err := e.serviceSpec(ctx, w)
	if err != nil {
		return err
	}
	login, err := image.Login(w.Image) // for the nodes, which pull it; changes of the service keep it
	if err != nil {
		return err
	}
	_, err = e.docker.ServiceCreate(ctx, client.ServiceCreateOptions{
		Spec: spec, QueryRegistry: strings.Contains(w.Image, "@"), EncodedRegistryAuth: login,
	})
	if isTaken(err) {
		return e.Scale(ctx, w.Ref, w.ID, w.Replicas)
	}
	return wrap(err, "create service "+spec.Name)
}

func serviceName(ref backend.Ref, id string) string {
	return strings.TrimRight(ref.Name[:min(len(ref.Name), nameInService)], "-") + "-" + id
}

// serviceSpec is the service for a workload.
func (e *Engine) serviceSpec(ctx context.Context, w cluster.Workload) (swarm.ServiceSpec, error) {
	secrets, err := e.secretReferences(ctx, w.Spec.Namespace, w.Spec.Secrets)
	if err != nil {
		return swarm.ServiceSpec{}, err
	}
	limits, err := deployment.ParseResources(w.Spec.Limits)
	if err != nil {
		return swarm.ServiceSpec{}, err
	}
	requests, err := deployment.ParseResources(w.Spec.Requests)
	if err != nil {
		return swarm.ServiceSpec{}, err
	}
	labels := map[string]string{}
	for _, given := range []*map[string]string{w.Spec.Annotations, w.Spec.Labels} {
		if given != nil {
			maps.Copy(labels, *given)
		}
	}
	maps.Copy(labels, e.labels(labelsOf(w.Ref)))
	labels[workloadLabel], labels[versionLabel], labels[modelLabel] = w.ID, w.Version, w.Model
	labels[leaseLabel] = strconv.FormatInt(w.Lease, 10)
	env := make([]string, 0, len(w.Env))
	for _, name := range slices.Sorted(maps.Keys(w.Env)) {
		env = append(env, name+"="+w.Env[name])
	}
	stop, delay, replicas := w.Grace.Whole(), restartDelay, w.Replicas
	return swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: serviceName(w.Ref, w.ID), Labels: labels},
		Mode:        swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
		// Calls go to containers, not to an address that stands for all of them.
		EndpointSpec: &swarm.EndpointSpec{Mode: swarm.ResolutionModeDNSRR},
		UpdateConfig: &swarm.UpdateConfig{Parallelism: 1, Order: swarm.UpdateOrderStartFirst, FailureAction: swarm.UpdateFailureActionPause},
		TaskTemplate: swarm.TaskSpec{
			Networks:      []swarm.NetworkAttachmentConfig{{Target: e.network}},
			RestartPolicy: &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &delay},
			Placement:     &swarm.Placement{Constraints: w.Spec.Constraints},
			Resources: &swarm.ResourceRequirements{
				Limits:       &swarm.Limit{NanoCPUs: limits.CPU * 1e6, MemoryBytes: limits.Memory},
				Reservations: &swarm.Resources{NanoCPUs: requests.CPU * 1e6, MemoryBytes: requests.Memory},
			},
			ContainerSpec: &swarm.ContainerSpec{
				Image:           w.Image,
				Env:             env,
				Labels:          map[string]string{networkLabel: e.network, namespaceLabel: w.Ref.Namespace, nameLabel: w.Ref.Name, versionLabel: w.Version},
				Secrets:         secrets,
				ReadOnly:        w.Spec.ReadOnlyRootFilesystem,
				StopGracePeriod: &stop,
				CapabilityDrop:  []string{"ALL"},
				Privileges:      &swarm.Privileges{NoNewPrivileges: true},
				Mounts: []mount.Mount{{
					Type: mount.TypeTmpfs, Target: "/tmp",
					TmpfsOptions: &mount.TmpfsOptions{SizeBytes: scratchBytes, Mode: 0o1777},
				}},
			},
		},
	}, nil
}

// updates bounds how often a change is tried that somebody else's change keeps crossing.
const updates = 10

// update changes a service from what it is now.
func (e *Engine) update(ctx context.Context, name string, change func(*swarm.ServiceSpec)) error {
	var err error
	for range updates {
		var found client.ServiceInspectResult
		if found, err = e.docker.ServiceInspect(ctx, name, client.ServiceInspectOptions{}); err != nil {
			break
		}
		spec := found.Service.Spec
		change(&spec)
		_, err = e.docker.ServiceUpdate(ctx, found.Service.ID, client.ServiceUpdateOptions{Version: found.Service.Version, Spec: spec})
		if !isOutOfSequence(err) {
			break
		}
	}
	return wrap(err, "update service "+name)
}

// Scale implements cluster.Workloads.
func (e *Engine) Scale(ctx context.Context, ref backend.Ref, id string, replicas uint64) error {
	defer e.look()
	return e.update(ctx, serviceName(ref, id), func(spec *swarm.ServiceSpec) {
		spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	})
}

// Remove implements cluster.Workloads.
func (e *Engine) Remove(ctx context.Context, ref backend.Ref, id string) error {
	defer e.look()
	_, err := e.docker.ServiceRemove(ctx, serviceName(ref, id), client.ServiceRemoveOptions{})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return wrap(err, "remove service "+serviceName(ref, id))
}

// statuses sorts services and their tasks by function.
func statuses(services []swarm.Service, tasks []swarm.Task, network string) map[backend.Ref][]cluster.Status {
	of := map[string][]swarm.Task{}
	for _, t := range tasks {
		of[t.ServiceID] = append(of[t.ServiceID], t)
	}
	out := map[backend.Ref][]cluster.Status{}
	for _, s := range services {
		id := s.Spec.Labels[workloadLabel]
		if id == "" || s.Spec.Mode.Replicated == nil {
			continue
		}
		ref := refOf(s.Spec.Labels)
		out[ref] = append(out[ref], status(id, s, of[s.ID], network))
	}
	return out
}

// status reads a service and its tasks.
func status(id string, s swarm.Service, tasks []swarm.Task, network string) cluster.Status {
	out := cluster.Status{ID: id}
	if n := s.Spec.Mode.Replicated.Replicas; n != nil {
		out.Replicas = *n
	}
	out.Lease, _ = strconv.ParseInt(s.Spec.Labels[leaseLabel], 10, 64)
	slices.SortFunc(tasks, func(x, y swarm.Task) int {
		return cmp.Or(y.Status.Timestamp.Compare(x.Status.Timestamp), strings.Compare(x.ID, y.ID))
	})
	for _, t := range tasks { // the latest first
		switch t.Status.State {
		case swarm.TaskStateStarting, swarm.TaskStateRunning:
			// One that is starting runs; Swarm waits for its health check, and we ask it ourselves.
			if address := addressOn(t, network); t.DesiredState == swarm.TaskStateRunning && address != "" {
				out.Endpoints = append(out.Endpoints, cluster.Endpoint{Instance: t.ID, Address: net.JoinHostPort(address, functionPort)})
			}
		case swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateComplete:
			out.Failures++
			if out.Reason == "" {
				out.Reason = "container " + short(t.ID) + " ended: " + cmp.Or(t.Status.Err, t.Status.Message)
			}
		case swarm.TaskStatePending:
			if out.Reason == "" {
				out.Reason = cmp.Or(t.Status.Err, t.Status.Message)
			}
		default:
		}
	}
	slices.SortFunc(out.Endpoints, func(x, y cluster.Endpoint) int { return strings.Compare(x.Instance, y.Instance) })
	return out
}

// short is how docker shows an ID.
func short(id string) string { return id[:min(len(id), 12)] }

func addressOn(t swarm.Task, network string) string {
	for _, n := range t.NetworksAttachments {
		if n.Network.Spec.Name == network && len(n.Addresses) > 0 {
			return n.Addresses[0].Addr().String()
		}
	}
	return ""
}

// services lists a function's services, the newest first.
func (e *Engine) services(ctx context.Context, ref backend.Ref) ([]swarm.Service, error) {
	found, err := e.docker.ServiceList(ctx, client.ServiceListOptions{Filters: e.with(labelsOf(ref))})
	if err != nil {
		return nil, wrap(err, "list services of "+ref.String())
	}
	slices.SortFunc(found.Items, func(x, y swarm.Service) int { return y.CreatedAt.Compare(x.CreatedAt) })
	return found.Items, nil
}
