package cluster

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/watchdog/link"
)

// memory is an engine whose containers are HTTP servers in the test, which take links as fwatchdog does. What a container does is in its
// image's name: "fails" never becomes ready, "slow" takes a while.
type memory struct {
	mu        sync.Mutex
	records   map[backend.Ref]stored
	workloads map[backend.Ref]map[string]*running
	revision  int
	watchers  map[int]func(Function)
	watching  sync.WaitGroup
	secrets   []types.Secret
	asked     int // containers that were asked to end
}

type stored struct {
	raw      []byte
	revision string
}

type running struct {
	w          Workload
	containers []*container
	failures   int
	reason     string
}

type container struct {
	server *httptest.Server
	links  *link.Acceptor
	name   string
}

func newMemory() *memory {
	return &memory{records: map[backend.Ref]stored{}, workloads: map[backend.Ref]map[string]*running{}, watchers: map[int]func(Function){}}
}

func (m *memory) Name() string { return "memory" }
func (m *memory) Close() error { return nil }

func (m *memory) Watch(ctx context.Context, observe func(Function)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := len(m.watchers)
	m.watchers[id] = observe
	refs := slices.Collect(maps.Keys(m.records))
	for ref := range m.workloads {
		if !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	for _, ref := range refs {
		observe(m.function(ref))
	}
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, id)
	})
	return nil
}

// tell is called with m.mu held.
func (m *memory) tell(ref backend.Ref) {
	for _, observe := range m.watchers {
		observe(m.function(ref))
	}
}

func (m *memory) function(ref backend.Ref) Function {
	out := Function{Ref: ref, Record: m.records[ref].raw, Revision: m.records[ref].revision}
	for id, r := range m.workloads[ref] {
		s := Status{ID: id, Replicas: r.w.Replicas, Lease: r.w.Lease, Reason: r.reason, Failures: r.failures}
		for _, c := range r.containers {
			s.Endpoints = append(s.Endpoints, Endpoint{Instance: c.name, Address: c.server.Listener.Addr().String()})
		}
		out.Workloads = append(out.Workloads, s)
	}
	return out
}

func (m *memory) Read(_ context.Context, ref backend.Ref) (Function, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.function(ref), nil
}

func (m *memory) Write(_ context.Context, ref backend.Ref, raw []byte, revision string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records[ref].revision != revision {
		return ErrConflict
	}
	m.revision++
	m.records[ref] = stored{raw, strconv.Itoa(m.revision)}
	m.tell(ref)
	return nil
}

func (m *memory) Erase(_ context.Context, ref backend.Ref, revision string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records[ref].revision != revision || revision == "" {
		return ErrConflict
	}
	delete(m.records, ref)
	m.tell(ref)
	return nil
}

func (m *memory) Apply(_ context.Context, w Workload) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.workloads[w.Ref] == nil {
		m.workloads[w.Ref] = map[string]*running{}
	}
	r := &running{w: w}
	m.workloads[w.Ref][w.ID] = r
	if strings.Contains(w.Image, "exits") {
		r.failures, r.reason = 1, "container ended with exit code 3"
	} else {
		r.resize(w.Replicas)
	}
	m.tell(w.Ref)
	return nil
}

func (r *running) resize(n uint64) (leaving []*container) {
	for uint64(len(r.containers)) < n {
		r.containers = append(r.containers, r.start())
	}
	leaving = r.containers[n:]
	r.containers = slices.Clone(r.containers[:n])
	return leaving
}

func (r *running) start() *container {
	c := &container{name: fmt.Sprintf("%s-%d", r.w.ID, len(r.containers))}
	readyAt := time.Now()
	if strings.Contains(r.w.Image, "slow") {
		readyAt = readyAt.Add(300 * time.Millisecond)
	}
	w := r.w
	serve := http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/_/ready" {
			if strings.Contains(w.Image, "fails") {
				rw.WriteHeader(http.StatusServiceUnavailable)
				io.WriteString(rw, `{"detail":"init raised ValueError: no\nTraceback: main.py, line 3","final":true}`)
			} else if time.Now().Before(readyAt) {
				rw.WriteHeader(http.StatusServiceUnavailable)
			}
			return
		}
		if q.URL.Path == "/sleep" {
			time.Sleep(200 * time.Millisecond)
		}
		io.Copy(io.Discard, q.Body)
		rw.Header().Set("X-Model-Version", w.Version)
		fmt.Fprintf(rw, "%s %s", w.Version, c.name)
	})
	c.links = &link.Acceptor{Handler: serve}
	c.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		if q.URL.Path == link.Path {
			c.links.ServeHTTP(rw, q)
			return
		}
		serve(rw, q)
	}))
	return c
}

// end is how a container leaves: it serves on for a while, then answers what it has.
func (c *container) end(grace Grace) {
	time.Sleep(grace.Serving)
	c.server.Config.Shutdown(context.Background())
	c.links.Shutdown(context.Background())
	c.server.Close()
}

func (m *memory) Scale(_ context.Context, ref backend.Ref, id string, replicas uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.workloads[ref][id]
	if r == nil {
		return backend.ErrNotFound
	}
	r.w.Replicas = replicas
	m.finish(r.resize(replicas), r.w.Grace)
	m.tell(ref)
	return nil
}

func (m *memory) finish(leaving []*container, grace Grace) {
	m.asked += len(leaving)
	for _, c := range leaving {
		m.watching.Go(func() { c.end(grace) })
	}
}

func (m *memory) Remove(_ context.Context, ref backend.Ref, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.workloads[ref][id]
	if r == nil {
		return nil
	}
	delete(m.workloads[ref], id)
	if len(m.workloads[ref]) == 0 {
		delete(m.workloads, ref)
	}
	m.finish(r.containers, r.w.Grace)
	m.tell(ref)
	return nil
}

// crash ends one container of a function without a word.
func (m *memory) crash(ref backend.Ref) { m.crashed(ref, 1) }

// crashed is crash for several.
func (m *memory) crashed(ref backend.Ref, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.workloads[ref] {
		for _, c := range r.containers[:n] {
			c.server.CloseClientConnections()
			now, cancel := context.WithCancel(context.Background())
			cancel()
			c.links.Shutdown(now)
			c.server.Close()
		}
		return
	}
}

// replace has a new container in the place of one that crash has ended.
func (m *memory) replace(ref backend.Ref) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.workloads[ref] {
		c := r.start()
		c.name += "-again"
		r.containers[0] = c
	}
	m.tell(ref)
}

func (m *memory) left() (records, workloads int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workloads {
		workloads += len(w)
	}
	return len(m.records), workloads
}

func (m *memory) Tail(context.Context, backend.Ref, string, int) (string, error) {
	return "Traceback: main.py, line 7", nil
}

func (m *memory) Logs(ctx context.Context, q logs.Request) (<-chan logs.Message, error) {
	out := make(chan logs.Message)
	go func() {
		defer close(out)
		if q.Follow {
			<-ctx.Done()
		}
	}()
	return out, nil
}

func (m *memory) ListSecrets(_ context.Context, namespace string) ([]types.Secret, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.secrets), func(s types.Secret) bool { return s.Namespace != namespace }), nil
}

func (m *memory) CreateSecret(_ context.Context, s types.Secret) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets = append(m.secrets, s)
	return nil
}
func (m *memory) UpdateSecret(context.Context, types.Secret) error               { return nil }
func (m *memory) DeleteSecret(context.Context, string, string) error             { return nil }
func (m *memory) CreateNamespace(context.Context, types.FunctionNamespace) error { return nil }
func (m *memory) UpdateNamespace(context.Context, types.FunctionNamespace) error { return nil }
func (m *memory) DeleteNamespace(context.Context, string) error                  { return nil }
func (m *memory) ListNamespaces(context.Context) ([]types.FunctionNamespace, error) {
	return []types.FunctionNamespace{{Name: backend.DefaultNamespace}}, nil
}

// tags reads the version from the image's tag, NAME:VERSION, and the contents from what may follow it:
// NAME:VERSION--CONTENTS.
type tags struct{}

func (tags) Inspect(_ context.Context, image string) (Image, error) {
	name, version, ok := strings.Cut(image, ":")
	if !ok {
		return Image{}, fmt.Errorf("%w image %q: it carries no version", backend.ErrInvalid, image)
	}
	version, contents, _ := strings.Cut(version, "--")
	return Image{Ref: image, Model: name, Version: version, Contents: contents}, nil
}

// provider is a backend on an engine, called over HTTP.
type provider struct {
	*Backend
	url string
}

func open(t *testing.T, m *memory) *provider {
	t.Helper()
	b, err := Open(t.Context(), Options{
		Engine: m, Images: tags{}, MaxReplicas: 16, MaxIdleConns: 64, KeepWarm: 1,
		DeployTimeout: 10 * time.Second, DrainTimeout: 5 * time.Second, Serving: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{Backend: b}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := b.Forward(iris, w, r, r.URL.Path, "iris", r.Header); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}))
	p.url = server.URL
	t.Cleanup(func() {
		server.Close()
		if err := b.Close(context.Background()); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
		probe.CloseIdleConnections()
	})
	return p
}

// newEngine is a memory that is empty, and everything ended, when the test ends.
func newEngine(t *testing.T) *memory {
	m := newMemory()
	t.Cleanup(func() {
		m.mu.Lock()
		for _, w := range m.workloads {
			for _, r := range w {
				for _, c := range r.containers {
					c.server.Close()
				}
			}
		}
		m.mu.Unlock()
		m.watching.Wait()
	})
	return m
}

var iris = backend.Ref{Namespace: backend.DefaultNamespace, Name: "iris"}

func spec(image string, annotations ...string) types.FunctionDeployment {
	set := map[string]string{}
	for i := 0; i < len(annotations); i += 2 {
		set[annotations[i]] = annotations[i+1]
	}
	return types.FunctionDeployment{Service: "iris", Image: image, Annotations: &set}
}

// call returns the answer's status and the version that answered.
func (p *provider) call(t *testing.T, header ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url+"/", strings.NewReader("5.1,3.5"))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	if answer.StatusCode != http.StatusOK {
		return answer.StatusCode, string(body)
	}
	return answer.StatusCode, answer.Header.Get("X-Model-Version")
}

// load calls until stop and returns how many calls there were and which were not answered.
func (p *provider) load(t *testing.T) (stop func() (calls int, failed []string)) {
	var mu sync.Mutex
	var all sync.WaitGroup
	ended := make(chan struct{})
	calls, failed := 0, []string(nil)
	for range 8 {
		all.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				status, said := p.call(t)
				mu.Lock()
				if calls++; status != http.StatusOK {
					failed = append(failed, said)
				}
				mu.Unlock()
			}
		})
	}
	return func() (int, []string) {
		close(ended)
		all.Wait()
		return calls, failed
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("it does not come to this: %s", what)
}
