package api

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// overTLS is net/http's server for TLS. Package http1 reads and watches descriptors, on which there is only
// what is encrypted, and knows no HTTP/2. That costs short calls over HTTP/1.1 a third of their rate, and the
// encryption a seventh of the rest (docs/performance.md).
//
// Of net/http's Shutdown it makes one that loses no request: that drops what is read after it has begun, so
// the first request of a connection that was accepted just before is gone without an answer.
type overTLS struct {
	*http.Server

	mu       sync.Mutex
	gate     *gate                 // nil until Serve
	stopping bool                  // Serve comes too late
	fresh    map[net.Conn]struct{} // have not brought a request yet
}

// firstRequestWithin is how long Shutdown waits for requests on connections that were just accepted.
const firstRequestWithin = time.Second

func newOverTLS(server *http.Server) *overTLS {
	s := &overTLS{Server: server, fresh: map[net.Conn]struct{}{}}
	type key struct{}
	next := server.Handler
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Context().Value(key{}).(func())()
		next.ServeHTTP(w, r)
	})
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fresh[c] = struct{}{}
		return context.WithValue(ctx, key{}, sync.OnceFunc(func() { s.used(c) }))
	}
	server.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			s.used(c)
		}
	}
	return s
}

func (s *overTLS) used(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.fresh, c)
}

func (s *overTLS) awaited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.fresh) > 0
}

// Serve speaks TLS, with the certificate that the server's TLSConfig says. It may be called once.
func (s *overTLS) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.stopping {
		s.mu.Unlock()
		_ = l.Close()
		return http.ErrServerClosed
	}
	s.gate = &gate{Listener: l, shut: make(chan struct{}), closed: make(chan struct{}), stop: sync.OnceValue(l.Close)}
	s.mu.Unlock()
	return s.ServeTLS(s.gate, "", "")
}

// Shutdown takes no new connections, answers the requests that are in or on their way, and closes each
// connection behind its last answer. It blocks until all are closed or ctx ends. Call it once.
func (s *overTLS) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	if s.gate != nil {
		close(s.gate.shut)
		_ = s.gate.stop()
	}
	s.mu.Unlock()
	const every = 5 * time.Millisecond
	for end := time.Now().Add(firstRequestWithin); s.awaited() && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(every)
	}
	return s.Server.Shutdown(ctx)
}

// gate is a listener that can be shut without its server being told, for which Serve would return.
type gate struct {
	net.Listener
	shut, closed chan struct{}
	stop         func() error // closes the listener
	once         sync.Once
}

func (g *gate) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err == nil {
		return c, nil
	}
	select {
	case <-g.shut:
		<-g.closed
	default:
	}
	return nil, err
}

// Close is called when the server shuts down.
func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.stop()
}
