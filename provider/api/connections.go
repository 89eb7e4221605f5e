package api

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// LimitConnections returns a listener that has at most so many connections open at a time. Those beyond wait
// in the kernel's queue, as in front of HAProxy's maxconn, until one of the others is closed: descriptors are
// left for functions and files, whatever comes. The numbers are registered in registry as metrics. Connections
// of a *net.TCPListener stay what package http1 can read.
func LimitConnections(l net.Listener, most int, registry prometheus.Registerer) net.Listener {
	out := &limitedListener{Listener: l, room: make(chan struct{}, most), closed: make(chan struct{})}
	registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "provider_open_connections", Help: "Connections of clients that are open.",
		}, func() float64 { return float64(out.open.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "provider_open_connections_limit", Help: "Connections of clients that may be open at a time (setting max_connections).",
		}, func() float64 { return float64(most) }),
	)
	return out
}

type limitedListener struct {
	net.Listener
	room   chan struct{} // holds one for each open connection
	open   atomic.Int64
	closed chan struct{}
	once   sync.Once
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	l.open.Add(1)
	release := sync.OnceFunc(func() {
		l.open.Add(-1)
		<-l.room
	})
	if tcp, ok := c.(*net.TCPConn); ok {
		return &limitedTCPConn{tcp, release}, nil
	}
	return &limitedConn{c, release}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// limitedTCPConn keeps the methods that only a *net.TCPConn has.
type limitedTCPConn struct {
	*net.TCPConn
	release func()
}

func (c *limitedTCPConn) Close() error {
	defer c.release()
	return c.TCPConn.Close()
}
