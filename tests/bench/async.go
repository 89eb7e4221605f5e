package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// async measures how many asynchronous calls are accepted, and how long one waits for its execution.
func (b *bench) async() error {
	for _, c := range []struct {
		port int
		sync string
	}{{29700, "1s"}, {29710, "always"}} {
		gateway, err := b.provider(c.port, "http", "", nil, []string{"async_callback_allow_private=true", "async_max_messages=1000000", "async_sync=" + c.sync})
		if err != nil {
			return err
		}
		url := gateway + "/async-function/iris"
		delays, err := delaysOf(url, 100, 10*time.Second)
		if err != nil {
			return err
		}
		slices.Sort(delays)
		fmt.Printf("%-74s p50 %s p99 %s    %d calls\n", "202 to report less execution, 100 calls/s, async_sync="+c.sync,
			delays[len(delays)/2].Round(10*time.Microsecond), delays[len(delays)*99/100].Round(10*time.Microsecond), len(delays))
		var rates []float64
		for range rounds {
			rate, err := b.wrk(posting(request), url)
			if err != nil {
				return err
			}
			rates = append(rates, rate)
		}
		fmt.Printf("%-74s %9.0f/s    %.0f..%.0f\n", "calls accepted while they are executed, async_sync="+c.sync, median(rates), slices.Min(rates), slices.Max(rates))
	}
	return nil
}

// delaysOf makes rate calls a second and returns for each the time from its 202 to its report, less what the
// report says that the execution took.
func delaysOf(url string, rate int, during time.Duration) ([]time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	type arrival struct {
		at   time.Time
		took time.Duration
	}
	var mu sync.Mutex
	accepted, reported := map[string]time.Time{}, map[string]arrival{}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		now := time.Now()
		seconds, _ := strconv.ParseFloat(r.Header.Get("X-Duration-Seconds"), 64)
		mu.Lock()
		defer mu.Unlock()
		reported[r.Header.Get("X-Call-Id")] = arrival{now, time.Duration(seconds * float64(time.Second))}
	})}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	failed := make(chan error, 1)
	var calls sync.WaitGroup
	ticks := time.NewTicker(time.Second / time.Duration(rate))
	defer ticks.Stop()
	for range rate * int(during/time.Second) {
		<-ticks.C
		calls.Go(func() {
			req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(request))
			if err == nil {
				req.Header.Set("X-Callback-Url", "http://"+l.Addr().String())
				var res *http.Response
				if res, err = http.DefaultClient.Do(req); err == nil {
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
					mu.Lock()
					accepted[res.Header.Get("X-Call-Id")] = time.Now()
					mu.Unlock()
					if res.StatusCode != http.StatusAccepted {
						err = fmt.Errorf("%s answered %s", url, res.Status)
					}
				}
			}
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
	}
	calls.Wait()
	select {
	case err := <-failed:
		return nil, err
	case <-time.After(time.Second):
	}
	mu.Lock()
	defer mu.Unlock()
	var out []time.Duration
	for id, at := range accepted {
		r, ok := reported[id]
		if !ok {
			return nil, fmt.Errorf("call %s was not reported", id)
		}
		out = append(out, max(0, r.at.Sub(at)-r.took)) // a report may be quicker than its 202
	}
	return out, nil
}
