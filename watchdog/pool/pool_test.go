package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/runner"
)

// interpreter is python3 itself: a version manager's wrapper costs more than Python's own start.
var interpreter = "python3"

func TestMain(m *testing.M) {
	if out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output(); err == nil {
		interpreter = strings.TrimSpace(string(out))
	}
	os.Setenv("PYTHONDONTWRITEBYTECODE", "1")
	goleak.VerifyTestMain(m)
}

const script = `
import os, signal, time

def predict(request):
    verb, _, argument = request.partition(" ")
    if verb == "exit":
        os._exit(int(argument))
    if verb == "sleep":
        time.sleep(float(argument))
    if verb == "raise":
        raise ValueError(argument)
    if verb == "none":
        return None
    return argument
`

// newPool runs code on a pool that is ready, and closes it when the test ends.
func newPool(t *testing.T, code string, change func(*Config)) *Pool {
	t.Helper()
	p := launchPool(t, code, change)
	for {
		changed := p.Changed()
		if err := p.Failed(); err != nil {
			t.Fatal(err)
		}
		if p.Ready() == nil {
			return p
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Second):
			t.Fatalf("not ready: %v", p.Ready())
		}
	}
}

func launchPool(t *testing.T, code string, change func(*Config)) *Pool {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "main.py"), []byte(code), 0o644); err != nil {
		t.Fatal(err)
	}
	bundle, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Runner: runner.Config{
			Bundle: bundle, StartMethod: model.StartFork, Interpreter: interpreter, InitTimeout: 20 * time.Second,
			Log: func(string, uint64, []byte) {}, LogBuffer: 64 << 10, Logger: slog.New(slog.DiscardHandler),
		},
		Workers: 2, QueueDepth: 1000, BatchMaxSize: 16, Logger: slog.New(slog.DiscardHandler), Metrics: &Metrics{},
	}
	if change != nil {
		change(&cfg)
	}
	p := New(cfg)
	t.Cleanup(p.Close)
	return p
}

func ask(p *Pool, request string) (string, error) {
	a, err := p.Do(context.Background(), []byte(request), "test", time.Now(), time.Now().Add(20*time.Second))
	return string(a.Body), err
}

func TestAnswersAndFailuresComeBackAsWhatTheyAre(t *testing.T) {
	p := newPool(t, script, nil)
	if got, err := ask(p, "echo ☃"); got != "☃" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	_, err := ask(p, "raise nein")
	var raised *RaisedError
	if !errors.As(err, &raised) || raised.Type != "ValueError" || raised.Message != "nein" || !strings.Contains(raised.Traceback, "in predict") {
		t.Errorf("got %v", err)
	}
	var notString *NotStringError
	if _, err := ask(p, "none"); !errors.As(err, &notString) || notString.Returned != "NoneType" {
		t.Errorf("got %v", err)
	}
	var crash *CrashError
	if _, err := ask(p, "exit 4"); !errors.As(err, &crash) || crash.Reason != "exit code 4" {
		t.Errorf("got %v", err)
	}
}

// Whatever happens to the workers, each call gets its own answer, and only a call that killed its
// worker fails.
func TestNoCallIsLostOrMixedUpInTurmoil(t *testing.T) {
	p := newPool(t, script, func(c *Config) { c.Workers = 3 })
	end := time.Now().Add(4 * time.Second)
	var group sync.WaitGroup
	var calls, deaths atomic.Int64
	for c := range 16 {
		group.Add(1)
		go func() {
			defer group.Done()
			random := rand.New(rand.NewPCG(uint64(c), 1))
			for n := 0; time.Now().Before(end); n++ {
				text := fmt.Sprintf("%d.%d", c, n)
				if random.IntN(50) == 0 {
					text += strings.Repeat("x", random.IntN(200<<10))
				}
				calls.Add(1)
				switch random.IntN(400) {
				case 0:
					deaths.Add(1)
					var crash *CrashError
					if _, err := ask(p, "exit 1"); !errors.As(err, &crash) {
						t.Errorf("a death gave %v", err)
					}
				case 1, 2, 3:
					if got, err := ask(p, "sleep 0.02"); got != "0.02" || err != nil {
						t.Errorf("a sleep gave %.40q, %v", got, err)
					}
				case 4, 5:
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(random.IntN(2000))*time.Microsecond)
					a, err := p.Do(ctx, []byte("echo "+text), "", time.Now(), time.Time{})
					cancel()
					if err == nil && string(a.Body) != text {
						t.Errorf("%.40s got %.40q", text, a.Body)
					}
				default:
					if got, err := ask(p, "echo "+text); got != text || err != nil {
						t.Errorf("%.40s got %.40q, %v", text, got, err)
					}
				}
			}
		}()
	}
	group.Add(1)
	go func() {
		defer group.Done()
		for n := 0; time.Now().Before(end); n++ {
			size := []int{1, 5, 2, 8, 3}[n%5]
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if err := p.Resize(ctx, size); err != nil {
				t.Errorf("resize to %d: %v", size, err)
			}
			cancel()
			time.Sleep(50 * time.Millisecond)
		}
	}()
	group.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.Drain(ctx); err != nil {
		t.Error(err)
	}
	t.Logf("%d calls, %d deaths", calls.Load(), deaths.Load())
}

func TestAFullQueueRefusesAtOnce(t *testing.T) {
	p := newPool(t, script, func(c *Config) { c.Workers, c.QueueDepth = 1, 2 })
	var held []*Call
	for n := range 3 {
		c, err := p.Submit([]byte("sleep 0.3"), "", time.Now(), time.Time{})
		if err != nil {
			t.Fatalf("call %d: %v", n, err)
		}
		held = append(held, c)
	}
	began := time.Now()
	if _, err := p.Submit([]byte("echo"), "", time.Now(), time.Time{}); !errors.Is(err, ErrFull) || time.Since(began) > 200*time.Millisecond {
		t.Errorf("got %v after %s", err, time.Since(began))
	}
	if err := p.Ready(); !errors.Is(err, ErrFull) {
		t.Errorf("ready says %v", err)
	}
	for _, c := range held {
		if _, err := p.Wait(context.Background(), c); err != nil {
			t.Error(err)
		}
	}
	if err := p.Ready(); err != nil {
		t.Errorf("ready says %v", err)
	}
}

func TestRowsOfAStreamTakeNobodysRoomInTheQueue(t *testing.T) {
	p := newPool(t, script, func(c *Config) { c.Workers, c.QueueDepth = 1, 2 })
	first, err := p.Submit([]byte("sleep 0.3"), "", time.Now(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := p.SubmitAll(slices.Repeat([][]byte{[]byte("echo row")}, bulkDepth+1), "", time.Now(), time.Time{})
	if !errors.Is(err, ErrFull) || len(rows) != bulkDepth {
		t.Errorf("%d rows were taken: %v", len(rows), err)
	}
	if err := p.Ready(); err != nil {
		t.Errorf("ready says %v with %d rows waiting", err, len(rows))
	}
	calls := append(rows, first)
	for range 2 {
		c, err := p.Submit([]byte("echo"), "", time.Now(), time.Time{})
		if err != nil {
			t.Fatal("a call was turned away for rows of a stream:", err)
		}
		calls = append(calls, c)
	}
	if _, err := p.Submit([]byte("echo"), "", time.Now(), time.Time{}); !errors.Is(err, ErrFull) {
		t.Errorf("a call beyond the queue's depth: %v", err)
	}
	for _, c := range calls {
		if _, err := p.Wait(context.Background(), c); err != nil {
			t.Error(err)
		}
	}
	if s := p.Stats(); s.Queued != 0 || p.queue.bulk != 0 {
		t.Errorf("%d calls are queued, %d of them rows", s.Queued, p.queue.bulk)
	}
}

func TestAStreamGetsAheadOnlyWhilePredictIsShort(t *testing.T) {
	p := newPool(t, script, func(c *Config) { c.Workers = 2 })
	ask := func(request string, n int) {
		for range n {
			if _, err := p.Do(context.Background(), []byte(request), "", time.Now(), time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The pace follows slowly, and believes two calls in a row that a busy machine made long.
	for began := time.Now(); p.Ahead() < 200; ask("echo", 100) {
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%d rows ahead of a predict of microseconds", p.Ahead())
		}
	}
	ask("sleep 0.05", 2)
	if n := p.Ahead(); n != 4 {
		t.Errorf("%d rows ahead of a predict of 50 ms, want one more a worker than it has", n)
	}
}

func TestACallLeavesTheQueueWithItsCaller(t *testing.T) {
	p := newPool(t, script, func(c *Config) { c.Workers = 1 })
	slow, err := p.Submit([]byte("sleep 0.5"), "", time.Now(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if _, err := p.Do(ctx, []byte("exit 1"), "", time.Now(), time.Time{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := p.Do(context.Background(), []byte("exit 1"), "", time.Now(), time.Now().Add(30*time.Millisecond)); !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v", err)
	}
	if s := p.Stats(); s.Queued != 0 || s.Busy != 1 {
		t.Errorf("stats are %+v", s)
	}
	if _, err := p.Wait(context.Background(), slow); err != nil {
		t.Error(err)
	}
	if s := p.Stats(); s.Restarts != 0 {
		t.Errorf("a worker was replaced: %+v", s)
	}
}

func TestDrainingAnswersWhatIsInAndRefusesTheRest(t *testing.T) {
	p := newPool(t, script, func(c *Config) { c.Workers = 1 })
	var calls []*Call
	for range 5 {
		c, err := p.Submit([]byte("sleep 0.05"), "", time.Now(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c)
	}
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := p.Drain(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "requests were not answered") {
		t.Errorf("got %v", err)
	}
	if _, err := ask(p, "echo late"); !errors.Is(err, ErrDraining) {
		t.Errorf("got %v", err)
	}
	if err := p.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	for _, c := range calls {
		select {
		case <-c.done:
			if _, err := c.result(); err != nil {
				t.Error(err)
			}
		default:
			t.Error("not answered when drained")
		}
	}
}

func TestClosingEndsCallsUnderWay(t *testing.T) {
	p := newPool(t, script, func(c *Config) { c.Workers = 1 })
	var group sync.WaitGroup
	for range 4 {
		c, err := p.Submit([]byte("sleep 60"), "", time.Now(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		group.Add(1)
		go func() {
			defer group.Done()
			if _, err := p.Wait(context.Background(), c); err == nil {
				t.Error("a call of a closed pool was answered")
			}
		}()
	}
	began := time.Now()
	p.Close()
	group.Wait()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("closing took %s", took)
	}
}

func TestClosingDuringInitEndsInit(t *testing.T) {
	p := launchPool(t, "import time\ndef init(): time.sleep(300)\ndef predict(r): return r\n", nil)
	time.Sleep(300 * time.Millisecond)
	began := time.Now()
	p.Close()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("closing took %s", took)
	}
}

func TestResizeRefusesWhatCannotBe(t *testing.T) {
	p := newPool(t, script, nil)
	for _, n := range []int{-1, 0, runner.MaxWorkers + 1} {
		if err := p.Resize(context.Background(), n); err == nil {
			t.Errorf("resized to %d", n)
		}
	}
	if s := p.Stats(); s.Workers != 2 || s.Ready != 2 {
		t.Errorf("stats are %+v", s)
	}
}

func TestGrowingGivesUpWhenWorkersDoNotComeUp(t *testing.T) {
	const barren = `
import os
def born():
    if os.path.exists("barren"):
        os._exit(7)
def init():
    os.register_at_fork(after_in_child=born)
def predict(request):
    if request == "barren":
        open(request, "w").close()
    if request == "fertile":
        os.remove("barren")
    return request
`
	p := newPool(t, barren, nil)
	if _, err := ask(p, "barren"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var grow *GrowError
	if err := p.Resize(ctx, 5); !errors.As(err, &grow) || grow.Kept != 2 || !strings.Contains(err.Error(), "7") {
		t.Errorf("%v, want a GrowError that keeps 2 and says how workers end", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("giving up took %s", took)
	}
	if s := p.Stats(); s.Workers != 2 || s.Ready != 2 {
		t.Errorf("stats are %+v", s)
	}
	if _, err := ask(p, "fertile"); err != nil {
		t.Fatal(err)
	}
	if err := p.Resize(ctx, 5); err != nil {
		t.Errorf("once workers come up: %v", err)
	}
	if s := p.Stats(); s.Workers != 5 || s.Ready != 5 {
		t.Errorf("stats are %+v", s)
	}
}

func TestFewerWorkersAreReadyWithoutTheOneThatHangs(t *testing.T) {
	const oneHangs = `
import os, time
def born():
    try:
        os.mkdir("born")
    except FileExistsError:
        time.sleep(300)
def init():
    os.register_at_fork(after_in_child=born)
def predict(request):
    return request
`
	p := launchPool(t, oneHangs, nil)
	for end := time.Now().Add(10 * time.Second); p.Stats().Ready < 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no worker came up")
		}
	}
	if err := p.Ready(); err == nil {
		t.Error("one of two workers is ready")
	}
	if err := p.Resize(context.Background(), 1); err != nil {
		t.Error(err)
	}
	if got, err := ask(p, "there"); got != "there" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// withoutJournal makes a pool run a runner that keeps no journal, as its workers say.
func withoutJournal(t *testing.T) func(*Config) {
	t.Helper()
	program, err := filepath.Abs("testdata/nojournal.py")
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.Runner.Interpreter = program }
}

// All that a worker without a journal was given counts as begun, so it is given one call at a time.
func TestWithoutAJournalNothingIsSentAhead(t *testing.T) {
	p := newPool(t, script, withoutJournal(t))
	for range 50 {
		if got, err := ask(p, "echo short"); got != "short" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	var calls [][]byte
	for range 40 {
		calls = append(calls, []byte("behind"))
	}
	var waiting []*Call
	for _, call := range calls {
		c, err := p.Submit(call, "", time.Now(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
	}
	// Calls of a stream are given in larger runs, where a journal allows it.
	bulk, err := p.SubmitAll(calls, "", time.Now(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for n, c := range append(waiting, bulk...) {
		if a, err := p.Wait(context.Background(), c); string(a.Body) != "0" || err != nil {
			t.Errorf("behind call %d lay %q bytes, %v", n, a.Body, err)
		}
	}
}

func TestWithoutAJournalADeathCostsOneCall(t *testing.T) {
	for _, c := range []struct{ name, code string }{
		{"one at a time", script},
		{"in batches", script + "\ndef predict_batch(requests):\n    return requests\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPool(t, c.code, withoutJournal(t))
			var calls []*Call
			const count, every = 200, 20
			for n := range count {
				request := fmt.Sprintf("echo %d", n)
				if n%every == every-1 {
					request = "exit 3"
				}
				call, err := p.Submit([]byte(request), "", time.Now(), time.Time{})
				if err != nil {
					t.Fatal(err)
				}
				calls = append(calls, call)
			}
			lost := 0
			for n, call := range calls {
				a, err := p.Wait(context.Background(), call)
				var crash *CrashError
				switch {
				case errors.As(err, &crash) && n%every == every-1:
					lost++
				case err != nil || string(a.Body) != fmt.Sprint(n):
					t.Errorf("call %d got %q, %v", n, a.Body, err)
				}
			}
			if lost != count/every {
				t.Errorf("%d calls were lost to %d deaths", lost, count/every)
			}
		})
	}
}

func TestDeathsAndBatchesAreCounted(t *testing.T) {
	var crashes, timeouts atomic.Int64
	p := newPool(t, script, func(c *Config) {
		c.Metrics.WorkerDeath = func(cause string) {
			switch cause {
			case "crash":
				crashes.Add(1)
			case "timeout":
				timeouts.Add(1)
			}
		}
	})
	for range 3 {
		_, _ = ask(p, "exit 1")
	}
	if _, err := p.Do(context.Background(), []byte("sleep 20"), "", time.Now(), time.Now().Add(100*time.Millisecond)); !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v", err)
	}
	if _, err := ask(p, "echo"); err != nil {
		t.Error(err)
	}
	if crashes.Load() != 3 || timeouts.Load() != 1 || p.Stats().Restarts != 4 {
		t.Errorf("%d crashes, %d time-outs, %+v", crashes.Load(), timeouts.Load(), p.Stats())
	}
}

func TestCrashPauseDoublesAndEnds(t *testing.T) {
	last := time.Duration(0)
	for n := range 100 {
		d := crashPause(n)
		if n <= freeCrashes && d != 0 || n > freeCrashes && d < last || d > longestPause || d < 0 {
			t.Errorf("pause %d is %s", n, d)
		}
		last = d
	}
	if crashPause(freeCrashes+1) != firstPause || crashPause(1<<30) != longestPause {
		t.Error("the pause begins or ends elsewhere")
	}
}

func TestPaceSendsAheadOnlyWhilePredictIsShort(t *testing.T) {
	var p pace
	if p.ahead(aheadSingle) != 1 {
		t.Error("sends ahead before anything was measured")
	}
	for range 200 {
		p.measured(2 * time.Microsecond)
	}
	if n := p.ahead(aheadSingle); n != aheadSingle.calls {
		t.Errorf("2 µs: %d ahead", n)
	}
	p.measured(300 * time.Millisecond)
	p.measured(300 * time.Millisecond)
	if n := p.ahead(aheadSingle); n != 1 {
		t.Errorf("right after two slow ones: %d ahead", n)
	}
	rapid.Check(t, func(t *rapid.T) {
		var p pace
		for _, d := range rapid.SliceOf(rapid.Int64Range(-5, int64(time.Minute))).Draw(t, "samples") {
			p.measured(time.Duration(d))
			if n := p.ahead(aheadSingle); n < 1 || n > aheadSingle.calls || (n > 1 && p.mean*float64(n) > float64(aheadSingle.budget)) || p.mean < 0 {
				t.Fatalf("after %d: %d ahead at %g", d, n, p.mean)
			}
		}
	})
	p = pace{}
	for range 200 {
		p.measured(20 * time.Millisecond)
	}
	if p.ahead(aheadSingle) != 1 {
		t.Error("a slow model gets calls ahead")
	}
}

func TestTheQueueIsFirstInFirstOutAndLetsGoOfItsMiddle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q callQueue
		var want []*Call
		t.Repeat(map[string]func(*rapid.T){
			"back":  func(*rapid.T) { c := &Call{}; q.pushBack(c); want = append(want, c) },
			"front": func(*rapid.T) { c := &Call{}; q.pushFront(c); want = append([]*Call{c}, want...) },
			"remove": func(t *rapid.T) {
				if len(want) == 0 {
					return
				}
				at := rapid.IntRange(0, len(want)-1).Draw(t, "at")
				q.remove(want[at])
				want = append(want[:at:at], want[at+1:]...)
			},
			"": func(t *rapid.T) {
				if q.length != len(want) {
					t.Fatalf("length is %d, not %d", q.length, len(want))
				}
				c := q.head
				for _, w := range want {
					if c != w || !c.queued {
						t.Fatal("out of order")
					}
					c = c.next
				}
				if c != nil || (len(want) > 0 && q.tail != want[len(want)-1]) || (len(want) == 0 && q.tail != nil) {
					t.Fatal("the end is wrong")
				}
			},
		})
	})
}

// Answers to a run of bulk calls are held for one write; behind a slow call they would wait with it.
func TestHeldAnswersNeitherWaitForASlowCallNorDieWithIt(t *testing.T) {
	p := newPool(t, script, func(c *Config) { c.Workers = 1 })
	for range 100 { // so short that calls are sent ahead
		if _, err := ask(p, "echo x"); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	quick, err := p.SubmitAll([][]byte{[]byte("echo 1"), []byte("echo 2"), []byte("echo 3"), []byte("sleep 1.5")}, "test", began, began.Add(600*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	for n, c := range quick[:3] {
		answer, err := p.Wait(t.Context(), c)
		if err != nil || string(answer.Body) != fmt.Sprint(n+1) {
			t.Errorf("call %d: %q, %v", n, answer.Body, err)
		}
	}
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("finished answers came after %s", took)
	}
	if _, err := p.Wait(t.Context(), quick[3]); !errors.Is(err, ErrTimeout) {
		t.Errorf("the slow call: %v", err)
	}
	patient, err := p.SubmitAll([][]byte{[]byte("echo 1")}, "test", time.Now(), time.Now().Add(10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(t.Context(), patient[0]); err != nil {
		t.Error(err)
	}
}
