package async

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// natsServer starts a NATS with JetStream that is no part of any queue, on a port of its own.
func natsServer(t *testing.T, dir string, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS does not start")
	}
	return s
}

func TestProvidersShareAnOutsideNATSThatGoesAwayAndComesBack(t *testing.T) {
	dir := t.TempDir()
	nats := natsServer(t, dir, server.RANDOM_PORT)
	var mu sync.Mutex
	executed := map[string]int{}
	gate := make(chan struct{})
	count := executor(func(ctx context.Context, call *Call) Result {
		select {
		case <-gate:
		case <-ctx.Done():
			return Result{Status: 503}
		}
		mu.Lock()
		defer mu.Unlock()
		executed[string(call.Body)]++
		return Result{Status: 200, Body: call.Body}
	})
	settings := testSettings(t.TempDir())
	settings.URL = nats.ClientURL()
	queues := []*Queue{open(t, settings, count), open(t, settings, count)}
	const calls = 40
	for i := range calls {
		accept(t, queues[i%2], testCall("/", fmt.Sprint(i), ""))
	}
	port := nats.Addr().(*net.TCPAddr).Port
	nats.Shutdown()
	nats.WaitForShutdown()
	if err := queues[0].Accept(t.Context(), testCall("/", "refused", "")); err == nil {
		t.Error("a call was accepted that nothing keeps")
	}
	natsServer(t, dir, port)
	close(gate)
	eventually(t, "every call is executed", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(executed) == calls
	})
	mu.Lock()
	defer mu.Unlock()
	again := 0
	for _, n := range executed {
		again += n - 1
	}
	// Only what was being executed when NATS went away may be executed again.
	if most := 2 * settings.Concurrency; again > most {
		t.Errorf("%d calls were executed again, want at most %d", again, most)
	}
}
