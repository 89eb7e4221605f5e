package running

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/openfaas/go-sdk"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheTransportSendsAndReadsShortCalls(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Server-Timing", "queue;dur=0.5")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")+" "+string(body))
	}))
	defer server.Close()
	transport := newTransport(server.Listener.Addr().String(), 2)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for range 3 {
		req, _ := http.NewRequest(http.MethodPost, server.URL+"/function/a.b", strings.NewReader("x,y"))
		req.Header.Set("Authorization", "Bearer t")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusTeapot || string(body) != "POST /function/a.b Bearer t x,y" || resp.Header.Get("Server-Timing") != "queue;dur=0.5" {
			t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
		}
	}
	if len(transport.idle) != 1 {
		t.Errorf("%d connections for calls one after the other", len(transport.idle))
	}
}

func TestAnAnswerOfUnknownLengthIsRefused(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		io.WriteString(w, "chunked")
	}))
	defer server.Close()
	transport := newTransport(server.Listener.Addr().String(), 1)
	if _, err := (&http.Client{Transport: transport}).Post(server.URL, "", bytes.NewReader(nil)); !errors.Is(err, errAnswer) {
		t.Errorf("%v", err)
	}
	if len(transport.idle) != 0 {
		t.Error("a connection in an unknown state was kept")
	}
}

func TestAnOpenLoadIsSentWhateverIsAnsweredAndLatencyCountsFromWhenACallWasDue(t *testing.T) {
	const rate, callers = 400.0, 2
	var mu sync.Mutex
	calls, worst := 0, time.Duration(0)
	err := open(t.Context(), rate, time.Second, 1, callers, func(_ int, a arrival, began time.Time) error {
		time.Sleep(10 * time.Millisecond) // twice as many as two callers can do
		mu.Lock()
		defer mu.Unlock()
		calls++
		worst = max(worst, time.Since(began)-a.due)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(float64(calls)-rate) > 5*math.Sqrt(rate) {
		t.Errorf("%d calls in a second at %v/s", calls, rate)
	}
	// 400 calls by two callers of 10 ms take two seconds: the last waited for one.
	if worst < 500*time.Millisecond {
		t.Errorf("the latest answer came %v after its call was due", worst)
	}
}

func TestALoadEndsAtItsFirstErrorAndWhenItIsCancelled(t *testing.T) {
	failed := errors.New("failed")
	began := time.Now()
	err := open(t.Context(), 1000, time.Minute, 1, 4, func(int, arrival, time.Time) error { return failed })
	if !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := open(ctx, math.Inf(1), time.Minute, 1, 4, func(int, arrival, time.Time) error { time.Sleep(time.Millisecond); return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("they took %v", took)
	}
}

func TestTheCacheKeepsATokenForTheExperimentsTime(t *testing.T) {
	p := &player{Load: Load{Lifetime: 50 * time.Millisecond}, tokens: &windows{length: time.Second, counts: make([]float64, 1), began: time.Now()}, began: time.Now()}
	cache := &quick{MemoryTokenCache: sdk.NewMemoryTokenCache(), player: p}
	if _, ok := cache.Get("f"); ok {
		t.Error("an empty cache has a token")
	}
	time.Sleep(5 * time.Millisecond)
	cache.Set("f", &sdk.Token{IDToken: "t", Expiry: time.Now().Add(time.Hour)})
	began := time.Now()
	for {
		if _, ok := cache.Get("f"); !ok {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if held := time.Since(began); held < 49*time.Millisecond {
		t.Errorf("the token was held for %v", held)
	}
	if p.fetched.Load() != 1 || p.tokens.counts[0] != 1 {
		t.Errorf("%d tokens were fetched, %v in the window", p.fetched.Load(), p.tokens.counts)
	}
}

func TestQuantilesOfNothingAreNothing(t *testing.T) {
	if got := (Latencies{}).Quantile(0.99); got != 0 {
		t.Errorf("%v", got)
	}
	if got := (Latencies{3, 1, 2}).Quantile(0.5); got != 2 {
		t.Errorf("the median of 1, 2 and 3 is %v", got)
	}
}
