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

func (s *suite) crashOfAWorker(t *testing.T) {
	status, said, _ := s.call(t.Context(), "crash")
	if status != http.StatusBadGateway || !strings.Contains(said, "exit code 3") {
		t.Errorf("the call that ends its worker: %d %s, want 502", status, said)
	}
	// Only that call: the next one finds a worker.
	s.wantCall(t, "x", "version 2: x", "2")
}

// crashOfAContainer may lose the calls that were in the container, and those of the time in which there is no
// other one.
func (s *suite) crashOfAContainer(t *testing.T) {
	s.scaleTo(t, 2)
	l := s.startLoad(t)
	time.Sleep(time.Second)
	s.KillContainer(t, function)
	s.back(t, "version 2: x", "2")
	eventually(t, "both replicas are there again", func() bool {
		got, err := s.client(t).GetFunction(t.Context(), function, "")
		must(t, err)
		return got.AvailableReplicas == 2
	})
	l.stop()
	for _, lost := range l.lost {
		if !strings.Contains(lost, ": 502 ") && !strings.Contains(lost, ": 503 ") {
			t.Errorf("a call was lost otherwise than told: %s", lost)
		}
	}
	t.Logf("%d calls, %d lost", l.calls, len(l.lost))
	s.scaleTo(t, 1)
}

func (s *suite) providerKilled(t *testing.T) {
	wanted := splitBody{Split: []target{{id("1"), 30}, {id("2"), 70}}}
	if status := s.api(t, http.MethodPut, "/system/models/"+function+"/traffic", wanted, nil); status != http.StatusOK {
		t.Fatalf("split: %d", status)
	}
	s.scaleTo(t, 2)
	s.KillProvider(t)
	s.StartProvider(t)
	s.same(t, wanted, 2)
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

func (s *suite) agentRestarted(t *testing.T) {
	if !s.RestartAgent(t) {
		t.Log("this backend has none")
		return
	}
	s.same(t, splitBody{Split: []target{{id("1"), 30}, {id("2"), 70}}}, 1)
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
	var left []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if left = slices.DeleteFunc(s.Left(t), func(name string) bool { return slices.Contains(before, name) }); len(left) == 0 {
			return
		}
	}
	t.Errorf("this is left: %v", left)
}
