package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faas-predict/faas-predict/provider/async"
	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/gateway"
	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/provider/traffic"
	"github.com/faas-predict/faas-predict/provider/upstream"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// fake answers every question with err, or with as little as it can.
type fake struct {
	annotation string
	err        error
	forward    func(w http.ResponseWriter, r *http.Request, target string) (int, error)
	scaled     uint64
	deleted    bool
	split      backend.TrafficStatus
}

func (f *fake) List(_ context.Context, namespace string) ([]types.FunctionStatus, error) {
	if f.deleted || namespace != backend.DefaultNamespace {
		return []types.FunctionStatus{}, f.err
	}
	return []types.FunctionStatus{{Name: "iris", Namespace: namespace}}, f.err
}
func (f *fake) Get(context.Context, backend.Ref, bool) (types.FunctionStatus, error) {
	return types.FunctionStatus{Name: "iris"}, f.err
}
func (f *fake) Create(context.Context, types.FunctionDeployment) error         { return f.err }
func (f *fake) Update(context.Context, types.FunctionDeployment) error         { return f.err }
func (f *fake) Scale(_ context.Context, _ backend.Ref, n uint64) error         { f.scaled = n; return f.err }
func (f *fake) Delete(context.Context, backend.Ref) error                      { f.deleted = true; return f.err }
func (f *fake) ListSecrets(context.Context, string) ([]types.Secret, error)    { return nil, f.err }
func (f *fake) CreateSecret(context.Context, types.Secret) error               { return f.err }
func (f *fake) UpdateSecret(context.Context, types.Secret) error               { return f.err }
func (f *fake) DeleteSecret(context.Context, string, string) error             { return f.err }
func (f *fake) CreateNamespace(context.Context, types.FunctionNamespace) error { return f.err }
func (f *fake) UpdateNamespace(context.Context, types.FunctionNamespace) error { return f.err }
func (f *fake) DeleteNamespace(context.Context, string) error                  { return f.err }
func (f *fake) Close(context.Context) error                                    { return nil }
func (f *fake) ListNamespaces(context.Context) ([]types.FunctionNamespace, error) {
	return []types.FunctionNamespace{{Name: backend.DefaultNamespace}, {Name: "iris"}}, f.err
}
func (f *fake) Logs(context.Context, logs.Request) (<-chan logs.Message, error) {
	out := make(chan logs.Message, 1)
	out <- logs.Message{Name: "iris", Text: "hello"}
	close(out)
	return out, f.err
}
func (f *fake) Traffic(context.Context, backend.Ref) (backend.TrafficStatus, error) {
	return f.split, f.err
}
func (f *fake) SetTraffic(_ context.Context, _ backend.Ref, s traffic.Split) (backend.TrafficStatus, error) {
	f.split.Split = s
	return f.split, f.err
}
func (f *fake) Rollback(context.Context, backend.Ref) (backend.TrafficStatus, error) {
	return f.split, f.err
}
func (f *fake) Running(string) []backend.TrafficStatus        { return []backend.TrafficStatus{f.split} }
func (f *fake) Unload(context.Context, string, string) error  { return f.err }
func (f *fake) Annotation(backend.Ref, string) (string, bool) { return f.annotation, true }

func (f *fake) Split(backend.Ref) (traffic.Split, bool) { return f.split.Split, true }

func (f *fake) Forward(_ backend.Ref, w http.ResponseWriter, r *http.Request, target, _ string, _ http.Header) (int, error) {
	if f.forward == nil {
		return 0, f.err
	}
	return f.forward(w, r, target)
}

type fakeModels struct{ err error }

func (m fakeModels) Push(_ context.Context, name string, zip io.Reader) (registry.Version, bool, error) {
	_, err := io.Copy(io.Discard, zip)
	if m.err != nil {
		err = m.err
	}
	return registry.Version{Model: name}, true, err
}
func (m fakeModels) PushFiles(_ context.Context, name string, _ []model.File) (registry.Version, bool, error) {
	return registry.Version{Model: name}, true, m.err
}
func (m fakeModels) Missing([]string) ([]string, error) { return []string{"ab"}, m.err }
func (m fakeModels) StoreBlob(_ string, content io.Reader) (bool, error) {
	_, err := io.Copy(io.Discard, content)
	if m.err != nil {
		err = m.err
	}
	return true, err
}
func (m fakeModels) List() ([]registry.Model, error)      { return nil, m.err }
func (m fakeModels) Get(n string) (registry.Model, error) { return registry.Model{Name: n}, m.err }
func (m fakeModels) Delete(string, string) error          { return m.err }
func (m fakeModels) Bundle(string, string) (*model.Bundle, func(), error) {
	return &model.Bundle{Dir: os.TempDir()}, func() {}, m.err
}

func gatewayOf(f *fake, metrics *prometheus.Registry) *gateway.Gateway {
	return gateway.New(gateway.Options{Backend: f, MaxReplicas: 256, Metrics: metrics})
}

func server(f *fake, m fakeModels, behindGateway bool) *Server {
	metrics := prometheus.NewRegistry()
	return New(Options{
		Async: async.New(async.Settings{}, metrics), Backend: f, Functions: f, Models: m, Gateway: gatewayOf(f, metrics),
		Access:        Access{Basic: NewCredentials("admin", "secret")},
		BehindGateway: behindGateway, Profiling: true, Version: "v1", Metrics: metrics,
	})
}

func ask(s http.Handler, method, target, body string, authorised bool) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if authorised {
		r.SetBasicAuth("admin", "secret")
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// example fills a route's parameters in.
var example = strings.NewReplacer("{name}", "iris", "{version}", "1_2", "{sha256}", "ab", "{path...}", "p", "{profile...}", "heap")

func TestEverySystemRouteAsksForCredentials(t *testing.T) {
	s := server(&fake{}, fakeModels{}, false)
	checked := 0
	for _, route := range Routes {
		path := example.Replace(route.Path)
		if !strings.HasPrefix(path, "/system") {
			continue
		}
		checked++
		wrong := map[string]func(*http.Request){
			"none":           func(*http.Request) {},
			"wrong password": func(r *http.Request) { r.SetBasicAuth("admin", "Secret") },
			"wrong user":     func(r *http.Request) { r.SetBasicAuth("Admin", "secret") },
			"empty":          func(r *http.Request) { r.SetBasicAuth("", "") },
			"bearer":         func(r *http.Request) { r.Header.Set("Authorization", "Bearer secret") },
		}
		for name, give := range wrong {
			r := httptest.NewRequest(route.Method, path, strings.NewReader("{}"))
			give(r)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s with %s: %d", route.Method, path, name, w.Code)
			}
		}
		if w := ask(s, route.Method, path, "{}", true); w.Code == http.StatusUnauthorized || w.Code == http.StatusNotFound || w.Code == http.StatusMethodNotAllowed {
			t.Errorf("%s %s with credentials: %d", route.Method, path, w.Code)
		}
	}
	if checked < 20 {
		t.Errorf("only %d routes", checked)
	}
	for _, path := range []string{"/system", "/system/", "/system/unknown", "/%73ystem/functions", "/system/../system/functions"} {
		if w := ask(s, "GET", path, "", false); w.Code != http.StatusUnauthorized {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestErrorsHaveTheStatusThatClientsExpect(t *testing.T) {
	for want, err := range map[int]error{
		http.StatusBadRequest:            fmt.Errorf("%w name", backend.ErrInvalid),
		http.StatusNotFound:              fmt.Errorf("function %w", backend.ErrNotFound),
		http.StatusConflict:              fmt.Errorf("function %w", backend.ErrExists),
		http.StatusUnprocessableEntity:   fmt.Errorf("%w: Traceback", backend.ErrFailed),
		http.StatusServiceUnavailable:    backend.ErrNotReady,
		http.StatusInternalServerError:   io.ErrUnexpectedEOF,
		http.StatusRequestEntityTooLarge: &model.RefusedError{Rule: "is too large", Err: model.ErrTooLarge},
	} {
		w := ask(server(&fake{err: err}, fakeModels{err}, false), "PUT", "/system/functions", `{"service":"iris"}`, true)
		if w.Code != want || !strings.Contains(w.Body.String(), err.Error()) {
			t.Errorf("%v: %d %s", err, w.Code, w.Body)
		}
	}
	refusal := &model.RefusedError{File: "main.py", Rule: "does not define predict"}
	if w := ask(server(&fake{}, fakeModels{refusal}, false), "PUT", "/system/models/iris", "zip", true); w.Code != http.StatusBadRequest {
		t.Errorf("refused bundle: %d", w.Code)
	}
	if w := ask(server(&fake{}, fakeModels{registry.ErrConflict}, false), "PUT", "/system/models/iris", "zip", true); w.Code != http.StatusConflict {
		t.Errorf("label with other content: %d", w.Code)
	}
}

func TestStatusOfSuccess(t *testing.T) {
	s := server(&fake{}, fakeModels{}, false)
	for request, want := range map[string]int{
		`POST /system/functions {"service":"iris"}`:        http.StatusAccepted,
		`PUT /system/functions {"service":"iris"}`:         http.StatusOK,
		`DELETE /system/functions {"functionName":"iris"}`: http.StatusAccepted,
		`POST /system/scale-function/iris {"replicas":0}`:  http.StatusAccepted,
		`POST /system/scale-function/iris {}`:              http.StatusBadRequest,
		`POST /system/alert {"alerts":[]}`:                 http.StatusOK,
		`POST /system/alert {}`:                            http.StatusBadRequest,
		`POST /system/alert x`:                             http.StatusBadRequest,
		`POST /system/secrets {"name":"a"}`:                http.StatusCreated,
		`PUT /system/secrets {"name":"a"}`:                 http.StatusOK,
		`POST /system/namespace/ {"name":"a"}`:             http.StatusCreated,
		`PUT /system/namespace/a {"name":"b"}`:             http.StatusBadRequest,
		`POST /system/functions {`:                         http.StatusBadRequest,
		`PATCH /system/functions {}`:                       http.StatusMethodNotAllowed,
		`GET /system/logs?name=iris&tail=x -`:              http.StatusBadRequest,
		`GET /system/logs?follow=1 -`:                      http.StatusBadRequest,
		`PUT /system/models/Iris zip`:                      http.StatusBadRequest,
		`PUT /system/models/iris zip`:                      http.StatusCreated,
		`GET /healthz -`:                                   http.StatusOK,
	} {
		parts := strings.SplitN(request, " ", 3)
		if w := ask(s, parts[0], parts[1], parts[2], true); w.Code != want {
			t.Errorf("%s: %d %s", request, w.Code, w.Body)
		}
	}
	if w := ask(s, "POST", "/system/functions", `{"service":"`+strings.Repeat("x", maxJSONBody)+`"}`, true); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("huge body: %d", w.Code)
	}
}

func TestInfoSuitsClientsOrAGateway(t *testing.T) {
	var client sdk.SystemInfo
	if err := json.Unmarshal(ask(server(&fake{}, fakeModels{}, false), "GET", "/system/info", "", true).Body.Bytes(), &client); err != nil || client.Provider.Provider != Name {
		t.Errorf("%+v, %v", client, err)
	}
	var gateway types.ProviderInfo
	if err := json.Unmarshal(ask(server(&fake{}, fakeModels{}, true), "GET", "/system/info", "", true).Body.Bytes(), &gateway); err != nil || gateway.Name != Name {
		t.Errorf("%+v, %v", gateway, err)
	}
}

func TestCallsKeepTheirPathAndGetACallID(t *testing.T) {
	var target, callID, forwardedFor string
	f := &fake{forward: func(w http.ResponseWriter, r *http.Request, to string) (int, error) {
		target, callID, forwardedFor = to, r.Header.Get("X-Call-Id"), r.Header.Get("X-Forwarded-For")
		return http.StatusOK, nil
	}}
	s := server(f, fakeModels{}, false)
	for path, want := range map[string]string{
		"/function/iris":                    "/",
		"/function/iris/":                   "/",
		"/function/iris.openfaas-fn/a//b?q": "/a//b?q",
		"/function/iris/a%2Fb/../c":         "/a%2Fb/../c",
	} {
		w := ask(s, "POST", path, "x", false)
		if w.Code != http.StatusOK || target != want || callID == "" || w.Header().Get("X-Call-Id") != callID || forwardedFor == "" {
			t.Errorf("%s: %d, target %q, call id %q, forwarded for %q", path, w.Code, target, callID, forwardedFor)
		}
	}
}

func TestFailedCallsAreProblems(t *testing.T) {
	for want, err := range map[int]error{
		http.StatusNotFound:           backend.ErrNotFound,
		http.StatusServiceUnavailable: fmt.Errorf("function iris is %w", backend.ErrScaledOff),
		http.StatusBadGateway:         upstream.ErrBroken,
	} {
		w := ask(server(&fake{err: err}, fakeModels{}, false), "POST", "/function/iris", "x", false)
		var problem struct {
			Status int
			Detail string
		}
		if json.Unmarshal(w.Body.Bytes(), &problem) != nil || w.Code != want || problem.Status != want || problem.Detail == "" || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%v: %d %s", err, w.Code, w.Body)
		}
	}
	for _, path := range []string{"/function/", "/function/..", "/function/IRIS", "/function/a.b.c"} {
		if w := ask(server(&fake{}, fakeModels{}, false), "POST", path, "x", false); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestAnswerCutShortCutsTheConnection(t *testing.T) {
	f := &fake{forward: func(w http.ResponseWriter, _ *http.Request, _ string) (int, error) {
		w.WriteHeader(http.StatusOK)
		return http.StatusOK, upstream.ErrAborted
	}}
	front := httptest.NewServer(server(f, fakeModels{}, false))
	defer front.Close()
	res, err := http.Post(front.URL+"/function/iris", "text/plain", nil)
	if err == nil {
		_, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	if err == nil {
		t.Error("the client got a clean answer")
	}
}

func TestCallsAreCountedByFunctionAndCode(t *testing.T) {
	s := server(&fake{forward: func(http.ResponseWriter, *http.Request, string) (int, error) { return http.StatusOK, nil }}, fakeModels{}, false)
	ask(s, "POST", "/function/iris", "", false)
	metrics := ask(s, "GET", "/metrics", "", false).Body.String()
	for _, want := range []string{
		`gateway_function_invocation_total{code="200",function_name="iris.openfaas-fn"} 1`,
		`gateway_functions_seconds_count{code="200",function_name="iris.openfaas-fn"} 1`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	ask(s, "DELETE", "/system/functions", `{"functionName":"iris"}`, true)
	if metrics := ask(s, "GET", "/metrics", "", false).Body.String(); strings.Contains(metrics, "iris") {
		t.Error("a deleted function's series stay")
	}
}

func TestEveryRouteIsDocumented(t *testing.T) {
	for _, route := range Routes {
		if !strings.HasSuffix(route.Doc, ".") {
			t.Errorf("%s %s: %q", route.Method, route.Path, route.Doc)
		}
	}
}
