package conformance

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// back waits until the function answers again, several times in a row.
func (s *suite) back(t *testing.T, want, version string) {
	t.Helper()
	began, row := time.Now(), 0
	var last string
	for row < 10 {
		status, said, answered := s.call(t.Context(), "x")
		last = fmt.Sprintf("%d %s by %s", status, said, answered)
		if status == http.StatusOK && said == want && answered == id(version) {
			row++
			continue
		}
		row = 0
		if time.Since(began) > patience {
			t.Fatalf("the function does not come back: %s", last)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("back after %s", time.Since(began).Round(time.Millisecond))
}

// under counts what is lost of the calls that go on while a fault lasts, and holds every loss to be one that a caller is
// told of: 502, the call may have run; 503, it has not; or no connection, where the fault takes the provider itself.
func (s *suite) under(t *testing.T, fault string, taken bool, lasts func()) (lost int) {
	t.Helper()
	l := s.startLoad(t)
	time.Sleep(time.Second)
	lasts()
	l.stop()
	for _, lost := range l.lost {
		told := strings.Contains(lost, ": 502 ") || strings.Contains(lost, ": 503 ") || taken && strings.Contains(lost, ": 0 ")
		if !told {
			t.Errorf("%s: a call was lost otherwise than told: %s", fault, lost)
			break
		}
	}
	t.Logf("%s: %d calls, %d lost", fault, l.calls, len(l.lost))
	if len(l.lost) > 0 {
		t.Logf("first and last:\n%.300s\n%.300s", l.lost[0], l.lost[len(l.lost)-1])
	}
	return len(l.lost)
}

// crashOfAWorker loses the call that ended the worker, and none of those beside it.
func (s *suite) crashOfAWorker(t *testing.T) {
	l := s.startLoad(t)
	const crashes = 5
	for range crashes {
		status, said, _ := s.call(t.Context(), "crash")
		if status != http.StatusBadGateway || !strings.Contains(said, "exit code 3") {
			t.Errorf("the call that ends its worker: %d %s, want 502", status, said)
		}
		s.wantCall(t, "x", "version 2: x", "2")
	}
	t.Logf("worker ended by its call: %d calls, %d lost", crashes, crashes)
	l.end(t)
}

// crashOfAContainer loses the calls that were in the container, or on their way into it, and where there is no other one
// those of the time until it is back.
func (s *suite) crashOfAContainer(t *testing.T) {
	s.scaleTo(t, 2)
	isAll := false
	lost := s.under(t, "container killed", false, func() {
		isAll = s.KillContainer(t, function, id("2"))
		s.back(t, "version 2: x", "2")
		eventually(t, "both replicas are there again", func() bool {
			got, err := s.client(t).GetFunction(t.Context(), function, "")
			must(t, err)
			return got.AvailableReplicas == 2
		})
	})
	if !isAll && lost > 2*loadClients {
		t.Errorf("%d calls were lost with one of two containers, which had %d at most", lost, loadClients)
	}
	s.scaleTo(t, 1)
}

// providerKilled loses the calls that the provider had and those until it serves again: where one provider is all there
// is. Nothing that it was told is lost.
func (s *suite) providerKilled(t *testing.T) {
	wanted := splitBody{Split: []target{{id("1"), 30}, {id("2"), 70}}}
	if status := s.api(t, http.MethodPut, "/system/models/"+function+"/traffic", wanted, nil); status != http.StatusOK {
		t.Fatalf("split: %d", status)
	}
	s.scaleTo(t, 2)
	s.under(t, "provider killed", true, func() {
		s.KillProvider(t)
		s.StartProvider(t)
		s.same(t, wanted, 2)
	})
	s.scaleTo(t, 1)
}

// same holds the function to what it was before a fault.
func (s *suite) same(t *testing.T, wanted splitBody, replicas uint64) {
	t.Helper()
	began := time.Now()
	eventually(t, "the function answers and has its replicas", func() bool {
		got, err := s.client(t).GetFunction(t.Context(), function, "")
		if err != nil {
			return false
		}
		status, _, _ := s.call(t.Context(), "x")
		return status == http.StatusOK && got.Replicas == replicas && got.AvailableReplicas == replicas
	})
	t.Logf("as before after %s", time.Since(began).Round(time.Millisecond))
	var got splitBody
	if status := s.api(t, http.MethodGet, "/system/models/"+function+"/traffic", nil, &got); status != http.StatusOK || !slices.Equal(got.Split, wanted.Split) {
		t.Errorf("the split is %v, not %v", got, wanted)
	}
	if _, said, _ := s.call(t.Context(), "secret key", "X-Model-Version", id("2")); said != "second" {
		t.Errorf("the secret is %q", said)
	}
}

// agentRestarted loses nothing, but where everything ends with the agent.
func (s *suite) agentRestarted(t *testing.T) {
	endsAll := false
	lost := s.under(t, "node agent restarted", true, func() {
		endsAll = s.RestartAgent(t)
		s.same(t, splitBody{Split: []target{{id("1"), 30}, {id("2"), 70}}}, 1)
	})
	if lost > 0 && !endsAll {
		t.Errorf("%d calls were lost, though the containers went on", lost)
	}
}

func (s *suite) deleteLeavesNothing(t *testing.T, before []string) {
	must(t, s.client(t).DeleteFunction(t.Context(), function, ""))
	if status, said, _ := s.call(t.Context(), "x"); status != http.StatusNotFound {
		t.Errorf("a call of a function that was deleted: %d %s, want 404", status, said)
	}
	must(t, s.client(t).DeleteSecret(t.Context(), "key", ""))
	all, err := s.client(t).GetFunctions(t.Context(), "")
	must(t, err)
	if len(all) > 0 {
		t.Errorf("there are still functions: %v", all)
	}
	s.nothingLeft(t, before)
}

// nothingLeft waits until the engine has no more than before.
func (s *suite) nothingLeft(t *testing.T, before []string) {
	t.Helper()
	var left []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if left = slices.DeleteFunc(s.Left(t), func(name string) bool { return slices.Contains(before, name) }); len(left) == 0 {
			return
		}
	}
	t.Errorf("this is left: %v", left)
}
