// Package store serves a registry of container images for tests, in memory, with or without a password. What may not
// enter: what is in the images.
package store

import (
	"crypto/subtle"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
)

// Store is a registry. Whoever speaks to it does so without TLS.
type Store struct {
	Host string // HOST:PORT
	// User and Password are who may read and write; "" is everyone.
	User, Password string

	server *http.Server
}

// Open serves a registry at an address of this machine until Close. With a user it asks each request who is there.
func Open(address, user, password string) (*Store, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return nil, err
	}
	s := &Store{Host: listener.Addr().String(), User: user, Password: password}
	s.server = &http.Server{
		Handler:           s.guard(registry.New(registry.Logger(log.New(io.Discard, "", 0)))),
		ReadHeaderTimeout: 10 * time.Second,
	}
	go func() { _ = s.server.Serve(listener) }()
	return s, nil
}

func (s *Store) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if s.User != "" && subtle.ConstantTimeCompare([]byte(user+":"+password), []byte(s.User+":"+s.Password)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="`+s.Host+`"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Login is who may push to it, for go-containerregistry.
func (s *Store) Login() authn.Authenticator {
	if s.User == "" {
		return authn.Anonymous
	}
	return &authn.Basic{Username: s.User, Password: s.Password}
}

// DockerConfig is a Docker configuration with the credentials, as `docker login` writes it and as a Secret of the type
// kubernetes.io/dockerconfigjson holds it.
func (s *Store) DockerConfig() []byte {
	type login struct {
		Username string `json:"username"`
		Password string `json:"password"`
	}
	raw, err := json.Marshal(map[string]any{"auths": map[string]login{s.Host: {s.User, s.Password}}})
	if err != nil {
		panic(err) // strings
	}
	return raw
}

// Close ends it. Its images are gone.
func (s *Store) Close() error { return s.server.Close() }
