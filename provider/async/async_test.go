package async

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// executor is an Executor made of a function.
type executor func(ctx context.Context, call *Call) Result

func (e executor) Execute(ctx context.Context, call *Call) Result { return e(ctx, call) }

func echo(_ context.Context, call *Call) Result { return Result{Status: 200, Body: call.Body} }

// open starts a queue on dir and closes it at the end of the test.
func open(t *testing.T, s Settings, e executor) *Queue {
	t.Helper()
	q := New(s, prometheus.NewRegistry())
	q.Start(e)
	t.Cleanup(func() { shut(t, q) })
	return q
}

func shut(t *testing.T, q *Queue) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := q.Close(ctx); err != nil {
		t.Error(err)
	}
}

func accept(t *testing.T, q *Queue, call *Call) *Call {
	t.Helper()
	if err := q.Accept(t.Context(), call); err != nil {
		t.Fatal(err)
	}
	return call
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func dead(t *testing.T, q *Queue) []DeadLetter {
	t.Helper()
	page, err := q.Dead(t.Context(), backend.Ref{}, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	return page.Dead
}

func TestNothingIsStartedBeforeTheFirstCall(t *testing.T) {
	s := testSettings(t.TempDir())
	q := open(t, s, echo)
	if len(dead(t, q)) != 0 {
		t.Error("there are dead letters")
	}
	if _, err := os.Stat(s.Dir); !errors.Is(err, os.ErrNotExist) || q.store.Load() != nil {
		t.Errorf("a server was started: %v", err)
	}
	if err := q.Requeue(t.Context(), 1, nil); !errors.Is(err, ErrNoDead) {
		t.Error(err)
	}
}

func TestCloseLeavesNoGoroutineAndKeepsWhatIsNotDone(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	s := testSettings(t.TempDir())
	s.Concurrency = 1
	begun, executed := make(chan string, 10), atomic.Int64{}
	q := New(s, prometheus.NewRegistry())
	q.Start(executor(func(ctx context.Context, call *Call) Result {
		begun <- call.ID
		select {
		case <-ctx.Done():
		case <-time.After(time.Minute):
		}
		return Result{Status: 503}
	}))
	for i := range 3 {
		accept(t, q, testCall("/", fmt.Sprint(i), ""))
	}
	<-begun
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := q.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("closed with a call in progress: %v", err)
	}
	if err := q.Accept(t.Context(), testCall("/", "", "")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("accepted after Close: %v", err)
	}
	goleak.VerifyNone(t, ignore)
	open(t, s, func(_ context.Context, call *Call) Result {
		executed.Add(1)
		return echo(context.Background(), call)
	})
	eventually(t, "the rest is executed", func() bool { return executed.Load() == 3 })
}

func TestCloseWaitsForWhatIsInProgress(t *testing.T) {
	release, reached := make(chan struct{}), make(chan struct{})
	callback, url := newReceiver(t)
	q := New(testSettings(t.TempDir()), prometheus.NewRegistry())
	q.Start(executor(func(_ context.Context, call *Call) Result {
		close(reached)
		<-release
		return echo(context.Background(), call)
	}))
	accept(t, q, testCall("/", "body 1", url))
	<-reached
	time.AfterFunc(100*time.Millisecond, func() { close(release) })
	shut(t, q)
	if n := testutil.ToFloat64(q.metrics.executed.WithLabelValues("2xx")); n != 1 {
		t.Errorf("%v executed", n)
	}
	if ids, _ := callback.reports(); ids > 1 {
		t.Error("reported twice")
	}
}

func TestFailuresAreTriedAgainAndOtherAnswersAreResults(t *testing.T) {
	for _, c := range []struct {
		status, tries, dead int
	}{{200, 1, 0}, {404, 1, 0}, {400, 1, 0}, {301, 1, 0}, {429, 3, 1}, {500, 3, 1}, {503, 3, 1}} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			t.Parallel()
			s := testSettings(t.TempDir())
			s.MaxAttempts = 3
			var tries atomic.Int64
			statuses := make(chan string, 10)
			server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { statuses <- r.Header.Get("X-Function-Status") }))
			defer server.Close()
			q := open(t, s, func(context.Context, *Call) Result {
				tries.Add(1)
				return Result{Status: c.status}
			})
			accept(t, q, testCall("/", "", server.URL))
			if got := <-statuses; got != fmt.Sprint(c.status) {
				t.Errorf("reported %s", got)
			}
			eventually(t, "the report is marked", func() bool { return testutil.ToFloat64(q.metrics.reported) == 1 })
			if int(tries.Load()) != c.tries || len(dead(t, q)) != c.dead {
				t.Errorf("%d executions, %v dead", tries.Load(), dead(t, q))
			}
		})
	}
}

func TestCallbacksThatFailAreTriedAgainOrGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		answers []int // the last one for all that follow
		tries   int
		dead    bool
	}{
		"down for a while": {[]int{503, 429, 200}, 3, false},
		"down":             {[]int{500}, 4, true},
		"refuses":          {[]int{400}, 1, true},
		"moved":            {[]int{302}, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testSettings(t.TempDir())
			s.MaxAttempts = 4
			var tries, executed atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				n := int(tries.Add(1))
				w.Header().Set("Location", "http://127.0.0.1:1/")
				w.WriteHeader(c.answers[min(n, len(c.answers))-1])
			}))
			defer server.Close()
			q := open(t, s, func(_ context.Context, call *Call) Result {
				executed.Add(1)
				return echo(context.Background(), call)
			})
			accept(t, q, testCall("/", "body", server.URL))
			eventually(t, "the end of it", func() bool {
				return len(dead(t, q)) == 1 || testutil.ToFloat64(q.metrics.reported) == 1
			})
			letters := dead(t, q)
			if int(tries.Load()) != c.tries || (len(letters) == 1) != c.dead || executed.Load() != 1 {
				t.Fatalf("%d attempts, %d executions, dead: %+v", tries.Load(), executed.Load(), letters)
			}
			if !c.dead {
				return
			}
			if d := letters[0]; d.Step != "report" || d.Status != c.answers[0] || d.Function != "iris.openfaas-fn" {
				t.Errorf("%+v", d)
			}
			// Once it is mended, the result is reported, and the function is not called again.
			c.answers[0] = 200
			if err := q.Requeue(t.Context(), letters[0].ID, nil); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the report", func() bool { return testutil.ToFloat64(q.metrics.reported) == 1 })
			if executed.Load() != 1 || len(dead(t, q)) != 0 {
				t.Errorf("%d executions, dead: %+v", executed.Load(), dead(t, q))
			}
		})
	}
}

func TestDeadCallsAreExecutedAgainAndDeletedAsAsked(t *testing.T) {
	s := testSettings(t.TempDir())
	callback, url := newReceiver(t)
	var mended atomic.Bool
	version := make(chan string, 10)
	q := open(t, s, func(_ context.Context, call *Call) Result {
		if !mended.Load() {
			return Result{Status: 500}
		}
		version <- call.Version
		return echo(context.Background(), call)
	})
	for i := range 3 {
		call := testCall("/", fmt.Sprintf("body %d", i), url)
		call.Version = "1_1"
		accept(t, q, call)
	}
	eventually(t, "all are dead", func() bool { return len(dead(t, q)) == 3 })
	eventually(t, "their failure is reported", func() bool { _, n := callback.reports(); return n == 3 })
	page, err := q.Dead(t.Context(), backend.Ref{Namespace: "openfaas-fn", Name: "iris"}, 0, 2)
	if err != nil || len(page.Dead) != 2 || page.Next != page.Dead[1].ID {
		t.Fatalf("%+v %v", page, err)
	}
	rest, err := q.Dead(t.Context(), backend.Ref{}, page.Next, 2)
	if err != nil || len(rest.Dead) != 1 || rest.Next != 0 {
		t.Fatalf("%+v %v", rest, err)
	}
	if other, err := q.Dead(t.Context(), backend.Ref{Namespace: "openfaas-fn", Name: "other"}, 0, 2); err != nil || len(other.Dead) != 0 {
		t.Errorf("%+v %v", other, err)
	}
	if err := q.Delete(t.Context(), rest.Dead[0].ID); err != nil {
		t.Error(err)
	}
	mended.Store(true)
	for _, d := range page.Dead {
		if err := q.Requeue(t.Context(), d.ID, func(c *Call) { c.Version = "2_1" }); err != nil {
			t.Error(err)
		}
		if err := q.Requeue(t.Context(), d.ID, nil); !errors.Is(err, ErrNoDead) {
			t.Errorf("queued twice: %v", err)
		}
	}
	eventually(t, "their results are reported", func() bool { _, n := callback.reports(); return n == 5 })
	if v := <-version; v != "2_1" || len(dead(t, q)) != 0 {
		t.Errorf("version %s, dead: %+v", v, dead(t, q))
	}
}

func TestCallsOfADeletedFunctionAreDeadLettersWithTheReason(t *testing.T) {
	q := open(t, testSettings(t.TempDir()), func(context.Context, *Call) Result { return Result{Status: 404, Gone: true} })
	accept(t, q, testCall("/", "", ""))
	eventually(t, "it is dead", func() bool { return len(dead(t, q)) == 1 })
	if d := dead(t, q)[0]; d.Reason != "the function was deleted" || d.Attempts != 1 {
		t.Errorf("%+v", d)
	}
}

func TestASlowFunctionAndASlowCallbackHoldUpNoOther(t *testing.T) {
	release := make(chan struct{})
	var waiting atomic.Int64
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { waiting.Add(1); <-release }))
	defer slow.Close()
	callback, url := newReceiver(t)
	s := testSettings(t.TempDir())
	s.CallbackTimeout = time.Minute
	q := open(t, s, func(_ context.Context, call *Call) Result {
		if call.Ref.Name == "slow" {
			waiting.Add(1)
			<-release
		}
		return echo(context.Background(), call)
	})
	defer close(release)
	for i := range 3 * s.Concurrency {
		call := testCall("/", "body", "")
		call.Ref.Name = "slow"
		accept(t, q, call)
		call = testCall("/", "body", slow.URL)
		call.Ref.Name = "reports"
		accept(t, q, call)
		_ = i
	}
	eventually(t, "every place is taken", func() bool { return int(waiting.Load()) == 2*s.Concurrency })
	for i := range 20 {
		accept(t, q, testCall("/", fmt.Sprintf("body %d", i), url))
	}
	eventually(t, "the others are reported", func() bool { ids, _ := callback.reports(); return ids == 20 })
}

func TestNoMoreIsAcceptedThanThereIsRoomFor(t *testing.T) {
	release := make(chan struct{})
	var mu sync.Mutex
	executed := map[string]bool{}
	s := testSettings(t.TempDir())
	s.MaxMessages = 10
	q := open(t, s, func(_ context.Context, call *Call) Result {
		<-release
		mu.Lock()
		defer mu.Unlock()
		executed[call.ID] = true
		return echo(context.Background(), call)
	})
	for range 10 {
		accept(t, q, testCall("/", "body", ""))
	}
	if err := q.Accept(t.Context(), testCall("/", "one more", "")); !errors.Is(err, ErrFull) {
		t.Errorf("an eleventh: %v", err)
	}
	close(release)
	eventually(t, "there is room again", func() bool { return q.Accept(t.Context(), testCall("/", "later", "")) == nil })
	eventually(t, "all are executed", func() bool { mu.Lock(); defer mu.Unlock(); return len(executed) == 11 })
	if err := q.Accept(t.Context(), testCall("/", strings.Repeat("x", int(s.MaxBodyBytes+messageRoom)), "")); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func TestBytesAreBoundedAsWell(t *testing.T) {
	s := testSettings(t.TempDir())
	s.MaxBytes = 2 << 20
	release := make(chan struct{})
	q := open(t, s, func(_ context.Context, call *Call) Result { <-release; return echo(context.Background(), call) })
	defer close(release)
	body := strings.Repeat("x", 900<<10)
	accept(t, q, testCall("/", body, ""))
	accept(t, q, testCall("/", body, ""))
	if err := q.Accept(t.Context(), testCall("/", body, "")); !errors.Is(err, ErrFull) {
		t.Errorf("more than max_bytes: %v", err)
	}
}

// Results for which there is no room wait in their place of the lane; the function is not called again for them.
func TestResultsWaitForRoomWithoutAnotherExecution(t *testing.T) {
	release := make(chan struct{})
	unblock := sync.OnceFunc(func() { close(release) })
	var hits, executed atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release; hits.Add(1) }))
	defer server.Close()
	defer unblock()
	s := testSettings(t.TempDir())
	s.MaxMessages, s.CallbackTimeout = 3, time.Minute
	q := open(t, s, func(_ context.Context, call *Call) Result { executed.Add(1); return echo(context.Background(), call) })
	for range 6 {
		eventually(t, "room for a call", func() bool { return q.Accept(t.Context(), testCall("/", "body", server.URL)) == nil })
	}
	eventually(t, "results fill their stream", func() bool { return executed.Load() == 6 })
	time.Sleep(4 * time.Second / 3) // the three without room are tried again each second
	unblock()
	eventually(t, "all are reported", func() bool { return hits.Load() == 6 })
	if executed.Load() != 6 {
		t.Errorf("%d executions", executed.Load())
	}
}

func TestACallThatIsSentAgainIsOneCall(t *testing.T) {
	var executed atomic.Int64
	q := open(t, testSettings(t.TempDir()), func(_ context.Context, call *Call) Result { executed.Add(1); return echo(context.Background(), call) })
	for range 3 {
		call := testCall("/", "body", "")
		call.Identify("the caller's")
		accept(t, q, call)
	}
	accept(t, q, testCall("/", "body", ""))
	eventually(t, "both are executed", func() bool { return executed.Load() == 2 })
	time.Sleep(50 * time.Millisecond) // a third would be right behind
	if n := executed.Load(); n != 2 {
		t.Errorf("%d executions", n)
	}
}

func TestFilesAreTheProvidersOnly(t *testing.T) {
	s := testSettings(t.TempDir())
	q := open(t, s, echo)
	accept(t, q, testCall("/", "secret", ""))
	info, err := os.Stat(s.Dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if entries, err := filepath.Glob(filepath.Join(s.Dir, "*")); err != nil || len(entries) == 0 {
		t.Errorf("nothing is stored: %v", err)
	}
}
