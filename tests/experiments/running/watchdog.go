package running

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/faas-predict/faas-predict/tests/experiments/queue"
)

// sleepingModel serves for as many seconds as the request says. It sleeps and computes nothing, so that
// more workers than there are cores do not slow each other down.
const sleepingModel = `import time
def predict(request):
    time.sleep(float(request))
    return request
`

// Watchdog is an fwatchdog by itself with a model that sleeps.
type Watchdog struct {
	dir       string
	cmd       *exec.Cmd
	ended     chan struct{}
	said      bytes.Buffer
	transport *transport
	url       string
}

// waiting is how many calls of a queue may be under way: more than any queue of the experiment is long.
const waiting = 1024

// StartWatchdog starts one. Close it.
func StartWatchdog(ctx context.Context, bin string, workers int) (*Watchdog, error) {
	w := &Watchdog{ended: make(chan struct{})}
	if err := w.start(ctx, bin, workers); err != nil {
		said := w.said.String()
		w.Close()
		return nil, fmt.Errorf("%w\n%s", err, said)
	}
	return w, nil
}

func (w *Watchdog) start(ctx context.Context, bin string, workers int) (err error) {
	if w.dir, err = os.MkdirTemp("", "experiments-"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(w.dir, "main.py"), []byte(sleepingModel), 0o644); err != nil {
		return err
	}
	port := make([]int, 2)
	for i := range port {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		port[i] = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	w.url = fmt.Sprintf("http://127.0.0.1:%d/", port[0])
	w.transport = newTransport(fmt.Sprintf("127.0.0.1:%d", port[0]), waiting)
	w.cmd = exec.Command(filepath.Join(bin, "fwatchdog"))
	w.cmd.Env = append(os.Environ(), "model_path="+w.dir, "workers="+strconv.Itoa(workers), fmt.Sprintf("port=%d", port[0]),
		fmt.Sprintf("metrics_port=%d", port[1]), "suppress_lock=true", "healthcheck_interval=0s", "queue_depth=4096")
	w.cmd.Stdout, w.cmd.Stderr = &w.said, &w.said
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return w.ready(ctx)
}

func (w *Watchdog) ready(ctx context.Context) error {
	if err := w.cmd.Start(); err != nil {
		w.cmd = nil
		return err
	}
	go func() {
		defer close(w.ended)
		_ = w.cmd.Wait()
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 400 {
		if resp, err := client.Get(w.url + "_/ready"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.ended:
			return fmt.Errorf("fwatchdog ended")
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("fwatchdog is not ready")
}

// Close ends it. It is safe to call more than once.
func (w *Watchdog) Close() {
	if w.transport != nil {
		w.transport.CloseIdleConnections()
	}
	if w.cmd != nil {
		_ = w.cmd.Process.Signal(syscall.SIGTERM)
		<-w.ended
	}
	_ = os.RemoveAll(w.dir)
}

// Served is a call as fwatchdog's Server-Timing tells it.
type Served struct {
	queue.Call         // when it was sent, and how long it was in predict
	Queue      float64 // seconds outside predict
}

// Serve sends Poisson calls for some time, each with a service time of its own, and returns them in the
// order in which they were sent.
func (w *Watchdog) Serve(ctx context.Context, rate float64, length time.Duration, seed uint64, service func(*rand.Rand) float64) ([]Served, error) {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 2))
	var sent []Served
	err := open(ctx, rate, length, seed, waiting, func(_ int, _ arrival, began time.Time) error {
		mu.Lock()
		at := len(sent)
		sent = append(sent, Served{})
		seconds := service(rng)
		sent[at].Arrives = time.Since(began).Seconds()
		mu.Unlock()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, strings.NewReader(strconv.FormatFloat(seconds, 'f', 6, 64)))
		if err != nil {
			return err
		}
		resp, err := w.transport.RoundTrip(req)
		if err != nil {
			return err
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("fwatchdog answered %d: %.300s: %w", resp.StatusCode, answer, err)
		}
		var queued, predict float64
		if _, err := fmt.Sscanf(resp.Header.Get("Server-Timing"), "queue;dur=%f, predict;dur=%f", &queued, &predict); err != nil {
			return fmt.Errorf("Server-Timing: %q: %w", resp.Header.Get("Server-Timing"), err)
		}
		mu.Lock()
		defer mu.Unlock()
		sent[at].Queue, sent[at].Service = queued/1000, predict/1000
		return nil
	})
	return sent, err
}
