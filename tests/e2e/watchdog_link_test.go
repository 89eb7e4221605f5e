package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/link"
)

// A link at the port where the function takes HTTP, as the provider opens one to a container, asks for a token with each
// call, has no paths that HTTP has not, and answers what it has before the watchdog leaves.
func TestWatchdogTakesLinksWhereItTakesCalls(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	w := a.guarded("read_timeout=200ms", "healthcheck_interval=0s")
	w.awaitReady()
	c, err := link.Dial(t.Context(), "unix", w.path("s"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	call := func(path string, header http.Header) string {
		t.Helper()
		answer, err := c.Do(t.Context(), &link.Call{Method: "POST", Target: path, Host: "f", Header: header, Body: []byte("x")})
		if err != nil {
			return err.Error()
		}
		body, err := answer.Read(http.Header{})
		if err != nil || answer.Status != http.StatusOK {
			return fmt.Sprint(answer.Status)
		}
		return string(body)
	}
	good := bearing(a.token(nil))
	time.Sleep(300 * time.Millisecond) // read_timeout is each request's, not the link's
	for _, c := range []struct {
		path   string
		header http.Header
		want   string
	}{
		{"/", good, "got x"},
		{"/", http.Header{}, "401"},
		{"/", bearing("nonsense"), "401"},
		{"/", bearing(a.token(nil)), "got x"},
		{"/_/link", good, "404"},
		{"/workers", good, "got x"}, // a path like any other here
	} {
		if got := call(c.path, c.header); got != c.want {
			t.Errorf("%s is answered %q, want %q", c.path, got, c.want)
		}
	}
	if plain := w.get("/_/link"); plain.status != http.StatusNotFound {
		t.Errorf("without Upgrade: %s", plain)
	}
	if err := w.terminate(10 * time.Second); err != nil {
		t.Errorf("left with %v", err)
	}
	if got := call("/", good); got == "got x" {
		t.Error("a call after the end is answered")
	}
}
