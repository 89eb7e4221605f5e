package forward

import (
	"net/http"
	"strings"

	"github.com/faas-predict/faas-predict/auth/token"
)

// Proxy is a way of telling about the original request.
type Proxy string

// The known ways. Traefik's is Caddy's too.
const (
	// Nginx has auth_request; its configuration must set the three headers, see testdata/nginx.conf.
	Nginx Proxy = "nginx"
	// Traefik sets X-Forwarded-Method, -Host and -Uri, whatever the client sent under these names, as
	// long as trustForwardHeader is off.
	Traefik Proxy = "traefik"
	// Envoy sends the original method, host and path, the path below Config.Path (its path_prefix).
	Envoy Proxy = "envoy"
)

// Each way's headers. Those that mark it are sent by nothing else, unlike X-Forwarded-Host, which any
// proxy on the way may add.
var (
	nginxHeaders   = headers{method: "X-Original-Method", host: "X-Original-Host", target: "X-Original-Uri"}
	traefikHeaders = headers{method: "X-Forwarded-Method", host: "X-Forwarded-Host", target: "X-Forwarded-Uri"}
	nginxMarks     = []string{nginxHeaders.target, nginxHeaders.method, nginxHeaders.host}
	traefikMarks   = []string{traefikHeaders.target, traefikHeaders.method}
)

type headers struct{ method, host, target string }

// original is the request that a gateway asks about.
type original struct {
	proxy        Proxy
	method, host string
	target       string // path and query, as they were sent
}

// readOriginal finds out who asks and about what. Clients can send any of these headers themselves, and
// gateways pass on those that they do not set. So a request that could be read in two ways is refused.
func readOriginal(r *http.Request, path string, only Proxy) (original, error) {
	var ways []original
	if anyOf(r.Header, nginxMarks) {
		ways = append(ways, original{proxy: Nginx})
	}
	if anyOf(r.Header, traefikMarks) {
		ways = append(ways, original{proxy: Traefik})
	}
	escaped := r.URL.EscapedPath()
	if below, found := strings.CutPrefix(escaped, path+"/"); found {
		target := "/" + below
		if r.URL.RawQuery != "" {
			target += "?" + r.URL.RawQuery
		}
		ways = append(ways, original{Envoy, r.Method, r.Host, target})
	} else if escaped != path {
		return original{}, unclear("the path of a question must be " + path + ", or begin with it")
	}
	switch {
	case len(ways) == 0:
		return original{}, unclear("nothing says which request this is about: the gateway must send X-Original-Uri (nginx), X-Forwarded-Uri (Traefik), or the path below " + path + " (Envoy)")
	case len(ways) > 1:
		return original{}, unclear("the headers of several gateways are there at once; the gateway must remove those that clients send")
	case only != "" && ways[0].proxy != only:
		return original{}, unclear("this is not how " + string(only) + " asks")
	}
	o := ways[0]
	var from headers
	switch o.proxy {
	case Envoy:
		return o, nil
	case Nginx:
		from = nginxHeaders
	case Traefik:
		from = traefikHeaders
	}
	for _, field := range []struct {
		name  string
		value *string
	}{{from.method, &o.method}, {from.host, &o.host}, {from.target, &o.target}} {
		values := r.Header[field.name]
		if len(values) != 1 || values[0] == "" {
			return original{proxy: o.proxy}, unclear("there must be one header " + field.name + ", and it must not be empty")
		}
		*field.value = values[0]
	}
	return o, nil
}

func anyOf(h http.Header, names []string) bool {
	for _, name := range names {
		if _, sent := h[name]; sent {
			return true
		}
	}
	return false
}

// unclear refuses a request because it cannot be told what is asked, which is no matter of the token.
func unclear(description string) error {
	return &token.Error{Status: http.StatusBadRequest, Description: description}
}
