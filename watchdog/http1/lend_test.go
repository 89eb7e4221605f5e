package http1

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// callOf is a short call, or a long one, of a path.
func callOf(path, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: f\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

// lending is a server whose handler takes what is not under /rest.
func lending(t *testing.T, h http.HandlerFunc) (s *Server, dial func() net.Conn, fast func() int64) {
	t.Helper()
	var all int64
	calls := make(chan struct{}, 1)
	calls <- struct{}{}
	s, dial, rest := serve(t, "tcp", func(w http.ResponseWriter, r *http.Request) {
		<-calls
		all++
		calls <- struct{}{}
		h(w, r)
	}, func(s *Server) {
		s.Takes = func(r *http.Request) bool { return !strings.HasPrefix(r.URL.Path, "/rest") }
		s.HeadTimeout, s.ReadTimeout, s.IdleTimeout = 5*time.Second, 5*time.Second, 5*time.Second
		s.Rest.ReadHeaderTimeout, s.Rest.ReadTimeout, s.Rest.IdleTimeout = 5*time.Second, 5*time.Second, 5*time.Second
	})
	return s, dial, func() int64 {
		<-calls
		defer func() { calls <- struct{}{} }()
		return all - rest.Load()
	}
}

func TestAConnectionComesBackFromNetHTTP(t *testing.T) {
	_, dial, fast := lending(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.URL.Path, " ", n, " ", err)
	})
	c := dial()
	in := bufio.NewReader(c)
	large := strings.Repeat("x", 3*maxRequest)
	for round := range 3 {
		for _, call := range []struct{ path, body string }{{"/a", "1"}, {"/rest", "22"}, {"/b", ""}, {"/c", large}, {"/rest", large}, {"/d", "333"}} {
			if _, err := io.WriteString(c, callOf(call.path, call.body)); err != nil {
				t.Fatal(err)
			}
			if _, got := read(t, in); got != fmt.Sprint(call.path, " ", len(call.body), " <nil>") {
				t.Fatalf("%s with %d bytes: %q", call.path, len(call.body), got)
			}
		}
		if got, want := fast(), int64(3*(round+1)); got != want {
			t.Fatalf("%d calls were answered without net/http, want %d", got, want)
		}
	}
}

func TestPipelinedCallsStayInOrderAcrossNetHTTP(t *testing.T) {
	_, dial, fast := lending(t, told)
	c := dial()
	in := bufio.NewReader(c)
	large := strings.Repeat("y", maxRequest)
	all := callOf("/rest", "1") + callOf("/rest", "2") + callOf("/a", "3") + callOf("/b", large) + callOf("/c", "4") + callOf("/rest", "5")
	go io.WriteString(c, all+all)
	for range 2 {
		for _, want := range []string{`"1"`, `"2"`, `"3"`, large, `"4"`, `"5"`} {
			if _, got := read(t, in); !strings.Contains(got, want) {
				t.Fatalf("got %.200q, want %.20q in it", got, want)
			}
		}
	}
	if got := fast(); got != 4 {
		t.Errorf("%d calls were answered without net/http, want 4", got)
	}
}

func TestALentCallsContextEndsWhenTheCallerIsGoneAndNotBefore(t *testing.T) {
	began, ends := make(chan struct{}), make(chan error, 1)
	var gone atomic.Bool
	_, dial, _ := lending(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // net/http looks for the caller's end once it has the whole request
		if r.URL.Path != "/rest/wait" {
			return
		}
		began <- struct{}{}
		patience := 100 * time.Millisecond // to see that nothing happens
		if gone.Load() {
			patience = 10 * time.Second
		}
		select {
		case <-r.Context().Done():
			ends <- nil
		case <-time.After(patience):
			ends <- context.DeadlineExceeded
		}
	})
	c := dial()
	in := bufio.NewReader(c)
	io.WriteString(c, callOf("/rest/wait", "1"))
	<-began
	io.WriteString(c, callOf("/a", "2")) // the next one is no end of this one
	if err := <-ends; err == nil {
		t.Error("the context ended while the caller was there")
	}
	read(t, in)
	read(t, in)
	gone.Store(true)
	io.WriteString(c, callOf("/rest/wait", "3"))
	<-began
	c.Close()
	if err := <-ends; err != nil {
		t.Error("the context did not end when the caller had gone")
	}
}

func TestALentConnectionEndsWhereNetHTTPEndsIt(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"says close": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			io.Copy(io.Discard, r.Body)
		},
		"reads little": func(http.ResponseWriter, *http.Request) {},
	} {
		t.Run(name, func(t *testing.T) {
			_, dial, _ := lending(t, h)
			c := dial()
			in := bufio.NewReader(c)
			go io.WriteString(c, callOf("/rest", strings.Repeat("z", 1<<20)))
			if res, _ := read(t, in); !res.Close {
				t.Error("the answer does not say that the connection is closed")
			}
			ended(t, in)
		})
	}
}

func TestALentConnectionCanBeHijacked(t *testing.T) {
	first := make(chan struct{})
	_, dial, _ := lending(t, func(w http.ResponseWriter, r *http.Request) {
		c, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		line, _ := in.ReadString('\n')
		close(first)
		second, _ := in.ReadString('\n')
		fmt.Fprint(c, line, second)
	})
	c := dial()
	io.WriteString(c, callOf("/rest", "")+"one\n")
	<-first
	io.WriteString(c, "two\n")
	if all, err := io.ReadAll(c); err != nil || string(all) != "one\ntwo\n" {
		t.Errorf("got %q, %v", all, err)
	}
}

func TestShutdownAnswersALentCallAndCloseCutsIt(t *testing.T) {
	for name, cut := range map[string]bool{"shutdown": false, "close": true} {
		t.Run(name, func(t *testing.T) {
			began, ends := make(chan struct{}), make(chan struct{})
			s, dial, _ := lending(t, func(w http.ResponseWriter, r *http.Request) {
				close(began)
				select {
				case <-ends:
				case <-r.Context().Done():
				}
				io.WriteString(w, "answered")
			})
			c := dial()
			io.WriteString(c, callOf("/rest", "1"))
			<-began
			if cut {
				s.Close()
				close(ends)
				if all, _ := io.ReadAll(c); len(all) != 0 {
					t.Errorf("a connection that was cut gave %q", all)
				}
				return
			}
			done := make(chan error, 1)
			go func() { done <- s.Shutdown(t.Context()) }()
			select {
			case <-done:
				t.Fatal("shutdown did not wait for the call")
			case <-time.After(50 * time.Millisecond):
			}
			close(ends)
			if _, got := read(t, bufio.NewReader(c)); got != "answered" {
				t.Errorf("got %q", got)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestALentConnectionThatIsIdleEndsWithShutdown(t *testing.T) {
	s, dial, _ := lending(t, told)
	c := dial()
	in := bufio.NewReader(c)
	io.WriteString(c, callOf("/rest", "1"))
	read(t, in)
	began := time.Now()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > firstRead/2 {
		t.Errorf("shutdown took %v", took)
	}
	ended(t, in)
}
