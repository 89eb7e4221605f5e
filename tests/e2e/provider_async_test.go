package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// reports is a callback that remembers what it got, by call id.
type reports struct {
	mu  sync.Mutex
	got map[string][]report
	url string
}

type report struct {
	header http.Header
	body   string
}

func receiveReports(t *testing.T) *reports {
	r := &reports{got: map[string][]report{}}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // the provider was killed while it sent this
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		id := req.Header.Get("X-Call-Id")
		r.got[id] = append(r.got[id], report{req.Header, string(body)})
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *reports) of(id string) []report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got[id]
}

// later has a function called and returns the call's id, "" unless it was accepted.
func (p *provider) later(ctx context.Context, path, body, callback, bearer string) (id string, status int) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url("/async-function/"+path), strings.NewReader(body))
	if err != nil {
		return "", 0
	}
	req.Header.Set("X-Callback-Url", callback)
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	res, err := p.http.Do(req)
	if err != nil {
		return "", 0
	}
	res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		return "", res.StatusCode
	}
	return res.Header.Get("X-Call-Id"), res.StatusCode
}

// Every call that was accepted while the provider is killed again and again is executed and reported.
func TestAsyncCallsOutliveTheProvider(t *testing.T) {
	p := startProvider(t, "async_callback_allow_private=true", "async_retry_max_wait=1s")
	executed := filepath.Join(p.dir, "executed")
	if err := os.WriteFile(executed, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(executed, 0o666); err != nil {
		t.Fatal(err)
	}
	p.model("note", fmt.Sprintf("import os\ndef predict(s):\n    f = os.open(%q, os.O_WRONLY | os.O_APPEND)\n    os.write(f, (s + '\\n').encode())\n    os.close(f)\n    return 'did ' + s\n", executed))
	p.deploy(types.FunctionDeployment{Service: "note", Image: "note"})
	callback := receiveReports(t)

	const clients, kills = 4, 3
	load, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	accepted := map[string]string{} // body by call id
	var running sync.WaitGroup
	for c := range clients {
		running.Go(func() {
			for i := 0; load.Err() == nil; i++ {
				body := fmt.Sprintf("%d-%d", c, i)
				if id, _ := p.later(load, "note", body, callback.url, ""); id != "" {
					mu.Lock()
					accepted[id] = body
					mu.Unlock()
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	for range kills {
		time.Sleep(700 * time.Millisecond)
		p.kill()
		p.start()
	}
	time.Sleep(300 * time.Millisecond)
	stop()
	running.Wait()
	p.eventually("everything is reported", func() bool {
		for id := range accepted {
			if len(callback.of(id)) == 0 {
				return false
			}
		}
		return true
	})
	p.stop()
	raw, err := os.ReadFile(executed)
	if err != nil {
		t.Fatal(err)
	}
	did := map[string]int{}
	for _, body := range strings.Fields(string(raw)) {
		did[body]++
	}
	lost, twice, again := 0, 0, 0
	for id, body := range accepted {
		if did[body] == 0 {
			lost++
		}
		again += max(0, did[body]-1)
		got := callback.of(id)
		twice += len(got) - 1
		for _, r := range got {
			if r.body != "did "+body || r.header.Get("X-Function-Status") != "200" || r.header.Get("X-Function-Name") != "note" ||
				r.header.Get("X-Duration-Seconds") == "" || r.header.Get("X-Model-Version") == "" || !strings.HasPrefix(r.header.Get("Content-Type"), "text/plain") {
				t.Errorf("report of %s: %v %q", body, r.header, r.body)
			}
		}
	}
	t.Logf("%d accepted, 0 unreported, %d executed more than once, %d reported twice, %d kills", len(accepted), again, twice, kills)
	if lost > 0 || len(accepted) < 100 {
		t.Errorf("of %d accepted calls %d were not executed", len(accepted), lost)
	}
	// The window is between a callback's answer and its marker: at a kill, at most one report in each place.
	if most := kills * 8; twice > most {
		t.Errorf("%d reports were made twice, want at most %d", twice, most)
	}
}

func TestAsyncCallsKeepTheVersionThatTheyWereAcceptedWith(t *testing.T) {
	p := startProvider(t, "async_callback_allow_private=true", "async_concurrency=1")
	callback := receiveReports(t)
	p.model("slow", "import time\ndef predict(s):\n    time.sleep(0.5)\n    return 'first'\n")
	p.deploy(types.FunctionDeployment{Service: "slow", Image: "slow"})
	var ids []string
	for i := range 4 { // the last ones wait while the traffic moves
		id, status := p.later(t.Context(), "slow", fmt.Sprint(i), callback.url, "")
		if id == "" {
			t.Fatal(status)
		}
		ids = append(ids, id)
	}
	p.model("slow", "def predict(s):\n    return 'second'\n")
	if status, err := p.Update(t.Context(), types.FunctionDeployment{Service: "slow", Image: "slow"}); err != nil || status != http.StatusOK {
		t.Fatal(status, err)
	}
	p.wantCall("slow", "x", "second")
	for _, id := range ids {
		p.eventually("it is reported", func() bool { return len(callback.of(id)) > 0 })
		if got := callback.of(id)[0].body; got != "first" {
			t.Errorf("a call from before was answered by the %s version", got)
		}
	}
}

func TestAsyncCallsOfADeletedFunctionAreListedAndQueuedAgain(t *testing.T) {
	p := startProvider(t, "async_callback_allow_private=true", "async_concurrency=1")
	callback := receiveReports(t)
	code := "import time\ndef predict(s):\n    time.sleep(0.5)\n    return s\n"
	p.model("slow", code)
	p.deploy(types.FunctionDeployment{Service: "slow", Image: "slow"})
	for i := range 4 {
		if id, status := p.later(t.Context(), "slow", fmt.Sprint(i), callback.url, ""); id == "" {
			t.Fatal(status)
		}
	}
	if err := p.DeleteFunction(t.Context(), "slow", ""); err != nil {
		t.Fatal(err)
	}
	list := func() string {
		out, err := p.run("async", "list", "-o", "json")
		if err != nil {
			t.Fatal(err, out)
		}
		return out
	}
	p.eventually("the calls behind the first are dead", func() bool { return strings.Count(list(), `"reason":"the function was deleted"`) >= 2 })
	p.deploy(types.FunctionDeployment{Service: "slow", Image: "slow"})
	if out, err := p.run("async", "requeue", "--all"); err != nil {
		t.Fatal(err, out)
	}
	p.eventually("every call is reported with its answer", func() bool {
		callback.mu.Lock()
		defer callback.mu.Unlock()
		good := 0
		for _, all := range callback.got {
			if all[len(all)-1].header.Get("X-Function-Status") == "200" {
				good++
			}
		}
		return good == 4
	})
	if out := list(); out != "" {
		t.Errorf("still dead: %s", out)
	}
}

func TestAsyncCallsWantATokenWhenTheyAreAcceptedAndDoNotKeepIt(t *testing.T) {
	p := startProvider(t, "async_callback_allow_private=true", "jwt_auth=true")
	callback := receiveReports(t)
	p.model("echo", "def predict(s):\n    return s\n")
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
	if id, status := p.later(t.Context(), "echo", "x", callback.url, ""); id != "" || status != http.StatusUnauthorized {
		t.Fatalf("without a token: %d", status)
	}
	if id, status := p.later(t.Context(), "none", "x", callback.url, ""); id != "" || status != http.StatusUnauthorized {
		t.Fatalf("an unknown function, without a token: %d", status)
	}
	bearer := p.accessToken("shop", p.register("shop", "--functions", "openfaas-fn:echo"))
	id, status := p.later(t.Context(), "echo", "x", callback.url, bearer)
	if id == "" {
		t.Fatal(status)
	}
	p.eventually("it is reported", func() bool { return len(callback.of(id)) == 1 })
	if r := callback.of(id)[0]; r.body != "x" || r.header.Get("X-Function-Status") != "200" {
		t.Errorf("%v %q", r.header, r.body)
	}
	p.stop()
	err := filepath.WalkDir(p.data(), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasPrefix(path, filepath.Join(p.data(), "async")) {
			return err
		}
		raw, err := os.ReadFile(path)
		if strings.Contains(string(raw), bearer) {
			t.Errorf("%s has the token", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAsyncCallbacksToPrivateAddressesAreRefused(t *testing.T) {
	p := startProvider(t)
	p.model("echo", "def predict(s):\n    return s\n")
	p.deploy(types.FunctionDeployment{Service: "echo", Image: "echo"})
	for _, url := range []string{"http://127.0.0.1:1/", "http://localhost/", "http://[::1]/", "http://169.254.169.254/latest", "http://10.0.0.1/", "ftp://example.com/"} {
		if id, status := p.later(t.Context(), "echo", "x", url, ""); id != "" || status != http.StatusBadRequest {
			t.Errorf("%s: %d", url, status)
		}
	}
	if _, status := p.later(t.Context(), "none", "x", "", ""); status != http.StatusNotFound {
		t.Errorf("an unknown function: %d", status)
	}
	if id, status := p.later(t.Context(), "echo", strings.Repeat("x", 8<<20+1), "", ""); id != "" || status != http.StatusRequestEntityTooLarge {
		t.Errorf("too large: %d", status)
	}
}
