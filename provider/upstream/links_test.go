package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/link"
)

// A container's small calls share one link where it takes links, and go by HTTP where it does not, without a difference
// to the caller.
func TestCallsToAContainerShareALink(t *testing.T) {
	for name, takes := range map[string]bool{"with links": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			var connections, plain atomic.Int64
			echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%s %s", r.URL.Path, body)
			})
			links := &link.Acceptor{Handler: echo}
			container := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == link.Path && takes:
					connections.Add(1)
					links.ServeHTTP(w, r)
				case r.URL.Path == link.Path:
					http.NotFound(w, r)
				default:
					plain.Add(1)
					echo(w, r)
				}
			}))
			f := newFrontTo(t, NewTCPPool(container.Listener.Addr().String(), 4))
			t.Cleanup(func() { // before the front's own
				f.pool.Close()
				container.Close()
				if err := links.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
			})
			for range 20 {
				if res, body := f.post(t, "/a", "x"); res.StatusCode != http.StatusOK || body != "/a x" {
					t.Fatalf("%d %s", res.StatusCode, body)
				}
			}
			wantConnections, wantPlain := int64(0), int64(20)
			if takes {
				wantConnections, wantPlain = 1, 0
			}
			if connections.Load() != wantConnections || plain.Load() != wantPlain {
				t.Errorf("%d links and %d calls by HTTP, want %d and %d", connections.Load(), plain.Load(), wantConnections, wantPlain)
			}
		})
	}
}

// A pool that is closed, since its container is to leave, lets the calls that it carries come to their end, and its link
// goes with the last.
func TestCloseLetsCallsOverALinkEnd(t *testing.T) {
	begun, end := make(chan struct{}), make(chan struct{})
	links := &link.Acceptor{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-end
		io.WriteString(w, "answered")
	})}
	container := httptest.NewServer(links)
	defer container.Close()
	f := newFrontTo(t, NewTCPPool(container.Listener.Addr().String(), 4))
	go func() {
		<-begun
		f.pool.Close()
		close(end)
	}()
	if res, body := f.post(t, "/", "x"); res.StatusCode != http.StatusOK || body != "answered" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := links.Shutdown(soon); err != nil {
		t.Errorf("the link is still there: %v", err)
	}
}
