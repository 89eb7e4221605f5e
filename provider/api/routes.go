// Package api is the provider's HTTP surface: the routes that OpenFaaS clients and gateways call, the
// routes for models, and the path of a function's calls.
//
// It translates between HTTP and a backend.Backend and decides who may call what. It keeps no state
// of its own, starts no process and reads no bundle. The router is our own rather than
// faas-provider's bootstrap.Serve, which leaves the namespace routes without authentication and
// registers everything on a global.
package api

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/faas-predict/faas-predict/auth/forward"
	"github.com/faas-predict/faas-predict/auth/issuer"
	"github.com/faas-predict/faas-predict/provider/async"
	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/gateway"
	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/provider/traffic"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// Route is one row of Routes.
type Route struct {
	Method  string // "" = any
	Path    string // with {parameters}, as net/http.ServeMux reads it
	Doc     string
	handler func(*Server) http.HandlerFunc
}

// Routes is every route there is. Those below /system/ ask for credentials, the others do not.
var Routes = []Route{
	{"GET", "/system/functions", "Functions of a namespace (query: namespace), as deployed, with replicas and invocations.", method((*Server).listFunctions)},
	{"POST", "/system/functions", "Deploy a new function: 202 when it is ready, 409 when it exists, 400 for a bad spec, 422 with the traceback when the model does not start.", method((*Server).createFunction)},
	{"PUT", "/system/functions", "Update a function: 200 when the new one has taken over, 404 when there is none; when the new one fails, the old one goes on.", method((*Server).updateFunction)},
	{"DELETE", "/system/functions", "Remove a function: 202, 404. Calls it has accepted are answered.", method((*Server).deleteFunction)},
	{"GET", "/system/function/{name}", "One function; with usage=1 also CPU (millicores) and memory (bytes).", method((*Server).getFunction)},
	{"POST", "/system/scale-function/{name}", "Set the number of replicas: 202 when they are there.", method((*Server).scaleFunction)},
	{"POST", "/system/alert", "Scale functions as alerts of Alertmanager say: 200 with a line for each function, 400 for a body that is no alert, 500 when nothing could be done and may be later.", method((*Server).alert)},
	{"GET", "/system/info", "Name and version of the provider.", method((*Server).info)},
	{"GET", "/system/secrets", "Names of a namespace's secrets, never their values.", method((*Server).listSecrets)},
	{"POST", "/system/secrets", "Create a secret: 201, 409 when it exists.", method((*Server).createSecret)},
	{"PUT", "/system/secrets", "Replace a secret's value: 200, 404.", method((*Server).updateSecret)},
	{"DELETE", "/system/secrets", "Delete a secret: 202, 404, 409 while a function names it.", method((*Server).deleteSecret)},
	{"GET", "/system/logs", "A function's log as lines of JSON (query: name, namespace, instance, tail, since, follow).", method((*Server).logs)},
	{"GET", "/system/namespaces", "Names of the namespaces.", method((*Server).listNamespaces)},
	{"POST", "/system/namespace/", "Create the namespace that the body names: 201, 409.", method((*Server).createNamespace)},
	{"GET", "/system/namespace/{name}", "One namespace with its labels and annotations.", method((*Server).getNamespace)},
	{"POST", "/system/namespace/{name}", "Create a namespace: 201, 409.", method((*Server).createNamespace)},
	{"PUT", "/system/namespace/{name}", "Replace a namespace's labels and annotations: 202, 404.", method((*Server).updateNamespace)},
	{"DELETE", "/system/namespace/{name}", "Delete a namespace and its secrets: 202, 404, 409 while it has functions.", method((*Server).deleteNamespace)},
	{"GET", "/system/models", "Every model with its versions.", method((*Server).listModels)},
	{"GET", "/system/models/{name}", "One model with its versions, the one pushed last first.", method((*Server).getModel)},
	{"PUT", "/system/models/{name}", "Push a bundle as a zip, or as a JSON list of files whose blobs are stored: 201 new, 200 the same content again, 409 a label with other content, 412 with the blobs that are missing, 400 or 413 refused.", method((*Server).pushModel)},
	{"GET", modelsPrefix + "{name}/versions/{version}/bundle", "A version's bundle as a zip, without compression. The credential that a pod of the version has opens this and nothing else.", method((*Server).getBundle)},
	{"DELETE", "/system/models/{name}/versions/{version}", "Delete a version: 202, 404, 409 while it is in a function's split.", method((*Server).deleteVersion)},
	{"GET", "/system/models/{name}/traffic", "The split of the function of that name (query: namespace), its versions and their states.", method((*Server).getTraffic)},
	{"PUT", "/system/models/{name}/traffic", "Split the function's calls between versions: 200 when the split holds, 404, 400 for a bad split, 422 with the traceback when a version does not start.", method((*Server).setTraffic)},
	{"POST", "/system/models/{name}/rollback", "Move the calls to the split before this one: 200, 404, 409 when there is none.", method((*Server).rollback)},
	{"POST", "/system/blobs/missing", "Which of the contents that the body names by SHA-256 are not stored.", method((*Server).missingBlobs)},
	{"PUT", "/system/blobs/{sha256}", "Store a content for a later push: 201 new, 200 there already, 400 other content than the digest says, 413 too large.", method((*Server).putBlob)},
	{"", functionPrefix + "{name}", "Call a function, as NAME or NAME.NAMESPACE.", method((*Server).invoke)},
	{"", functionPrefix + "{name}/{path...}", "Call a function with a path of its own.", method((*Server).invoke)},
	{"", asyncPrefix + "{name}", "Have a function called later: 202 with X-Call-Id once the call is stored, its result goes to X-Callback-Url; 400 for a callback that is refused, 413, 429 when the queue is full.", method((*Server).accept)},
	{"", asyncPrefix + "{name}/{path...}", "Have a function called later, with a path of its own.", method((*Server).accept)},
	{"GET", "/system/async/dead", "Asynchronous calls and results that were given up (query: function, namespace, after, limit).", method((*Server).listDead)},
	{"POST", "/system/async/dead/{id}/requeue", "Try one of them again: 202, 404.", method((*Server).requeueDead)},
	{"DELETE", "/system/async/dead/{id}", "Delete one of them: 202, 404.", method((*Server).deleteDead)},
	{"GET", "/system/debug/pprof/{profile...}", "Go's profiles of the provider, for go tool pprof: 404 unless the setting pprof is true.", method((*Server).profile)},
	{"GET", "/healthz", "200 while the provider serves, 503 once it is about to leave.", method((*Server).healthz)},
	{"GET", "/metrics", "Prometheus metrics.", func(s *Server) http.HandlerFunc {
		return promhttp.HandlerFor(s.gatherer, promhttp.HandlerOpts{}).ServeHTTP
	}},
}

func method(h func(*Server, http.ResponseWriter, *http.Request)) func(*Server) http.HandlerFunc {
	return func(s *Server) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { h(s, w, r) }
	}
}

// Models is what the API needs of a registry.
type Models interface {
	Push(ctx context.Context, name string, zip io.Reader) (registry.Version, bool, error)
	PushFiles(ctx context.Context, name string, files []model.File) (registry.Version, bool, error)
	Missing(sha256 []string) ([]string, error)
	StoreBlob(sha256 string, content io.Reader) (created bool, err error)
	List() ([]registry.Model, error)
	Get(name string) (registry.Model, error)
	Delete(name, version string) error
	Bundle(name, version string) (bundle *model.Bundle, release func(), err error)
}

// Functions is where calls go; see process.Backend.Forward.
type Functions interface {
	Forward(ref backend.Ref, w http.ResponseWriter, r *http.Request, target, host string, header http.Header) (int, error)
	// Annotation is one of those that the function was deployed with, "" without it, and whether there is
	// such a function. It is asked for every call.
	Annotation(ref backend.Ref, name string) (value string, exists bool)
	// Split is how the function's calls are split, and whether there is such a function.
	Split(ref backend.Ref) (split traffic.Split, exists bool)
}

// Issuer is an issuer of tokens in this process.
type Issuer struct {
	Handler http.Handler // for clients and verifiers
	Admin   http.Handler // for administrators
}

// Options are what a Server is made of.
type Options struct {
	Backend   backend.Backend
	Functions Functions
	Models    Models
	Async     *async.Queue
	Gateway   *gateway.Gateway // of the same Backend
	Access    Access
	Issuer    *Issuer // nil: tokens are another issuer's
	// BehindGateway makes /system/info answer a gateway rather than a client.
	BehindGateway bool
	// MaxBodyBytes bounds the body of a call; 0 does not: a function has a bound of its own.
	MaxBodyBytes int64
	// Profiling serves net/http/pprof to administrators.
	Profiling     bool
	Orchestration string // what runs the functions
	Version       string
	Metrics       *prometheus.Registry
}

// Server answers every route. Use New.
type Server struct {
	backend       backend.Backend
	functions     Functions
	models        Models
	async         *async.Queue
	gateway       *gateway.Gateway
	behindGateway bool
	maxBodyBytes  int64
	profiling     bool
	leaving       atomic.Bool
	orchestration string
	version       string
	gatherer      prometheus.Gatherer
	metrics       *metrics
	access        Access
	system        http.Handler
	validate      http.Handler // what gateways in front ask
}

// New returns a Server whose metrics are in o.Metrics.
func New(o Options) *Server {
	s := &Server{
		backend:       o.Backend,
		functions:     o.Functions,
		models:        o.Models,
		async:         o.Async,
		gateway:       o.Gateway,
		behindGateway: o.BehindGateway,
		maxBodyBytes:  o.MaxBodyBytes,
		profiling:     o.Profiling,
		orchestration: o.Orchestration,
		version:       o.Version,
		gatherer:      o.Metrics,
		metrics:       newMetrics(o.Metrics),
		access:        o.Access,
	}
	mux := http.NewServeMux()
	for _, route := range Routes {
		pattern := strings.TrimSpace(route.Method + " " + route.Path)
		if route.Path == "/system/namespace/" {
			pattern += "{$}"
		}
		mux.HandleFunc(pattern, route.handler(s))
	}
	if o.Issuer != nil {
		for _, route := range issuer.Routes {
			mux.Handle(route.Method+" "+route.Path, o.Issuer.Handler)
		}
		for _, route := range issuer.AdminRoutes {
			mux.Handle(route.Method+" "+route.Path, o.Issuer.Admin)
		}
	}
	if o.Access.Tokens != nil {
		s.validate = forward.New(forward.Config{Verifier: o.Access.Tokens, Namespace: backend.DefaultNamespace})
	}
	s.system = s.access.administrator("/system", s.metrics.observe(mux))
	return s
}

const (
	functionPrefix = "/function/"
	modelsPrefix   = "/system/models/"
)

// Leave makes /healthz answer 503, so that whoever distributes calls sends them elsewhere, and lets each
// connection end with its next answer. All else is served as before.
func (s *Server) Leave() { s.leaving.Store(true) }

// ServeHTTP implements http.Handler. Calls of functions, and questions about them, do not pass the mux: it
// would answer a path that is not in its shortest form with a redirect, which a function's path may well be.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.leaving.Load() {
		w.Header().Set("Connection", "close")
	}
	if strings.HasPrefix(r.URL.Path, functionPrefix) {
		s.invoke(w, r)
		return
	}
	if strings.HasPrefix(r.URL.Path, asyncPrefix) {
		s.accept(w, r)
		return
	}
	if path := r.URL.Path; s.validate != nil && (path == forward.DefaultPath || strings.HasPrefix(path, forward.DefaultPath+"/")) {
		s.validate.ServeHTTP(w, r)
		return
	}
	s.system.ServeHTTP(w, r)
}
