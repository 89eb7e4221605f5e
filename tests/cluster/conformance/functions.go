package conformance

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
)

func (s *suite) deploys(t *testing.T) {
	status, err := s.client(t).Update(t.Context(), s.spec(t, "1"))
	if err == nil || status != http.StatusNotFound {
		t.Errorf("updating a function that is not there: %d %v, want 404", status, err)
	}
	began := time.Now()
	status, err = s.client(t).Deploy(t.Context(), s.spec(t, "1"))
	if err != nil || status != http.StatusAccepted {
		t.Fatalf("deploy: %d %v, want 202", status, err)
	}
	s.wantCall(t, "5.1,3.5", "version 1: 5.1,3.5", "1")
	t.Logf("from deploying to the first answer: %s", time.Since(began).Round(time.Millisecond))
	s.wantCall(t, "env COLOUR", "blue", "1")
	if status, err := s.client(t).Deploy(t.Context(), s.spec(t, "1")); err == nil || status != http.StatusConflict {
		t.Errorf("deploying it again: %d %v, want 409", status, err)
	}
	got, err := s.client(t).GetFunction(t.Context(), function, "")
	must(t, err)
	if got.Image != s.image(t, "1") || got.Replicas != 1 || got.AvailableReplicas != 1 || got.EnvVars["COLOUR"] != "blue" || got.Limits.Memory != "256Mi" {
		t.Errorf("the function is said to be %+v", got)
	}
}

func (s *suite) aVersionThatFails(t *testing.T) {
	status, err := s.client(t).Update(t.Context(), s.spec(t, "broken"))
	if err == nil || status != http.StatusUnprocessableEntity {
		t.Fatalf("update to a version whose init raises: %d %v, want 422", status, err)
	}
	for _, part := range []string{"ValueError", "these coefficients do not fit", "main.py"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the answer lacks %q: %v", part, err)
		}
	}
	s.wantCall(t, "still", "version 1: still", "1")
}

func (s *suite) switchUnderLoad(t *testing.T) {
	image := s.spec(t, "2")
	l := s.startLoad(t)
	s.update(t, image)
	s.wantCall(t, "x", "version 2: x", "2")
	spec := s.spec(t, "2")
	spec.EnvVars["COLOUR"] = "green" // the same version, deployed otherwise
	s.update(t, spec)
	s.wantCall(t, "env COLOUR", "green", "2")
	s.update(t, s.spec(t, "1"))
	s.wantCall(t, "x", "version 1: x", "1")
	time.Sleep(5 * time.Second) // the old containers leave
	l.end(t)
	if l.by[id("1")] == 0 || l.by[id("2")] == 0 {
		t.Errorf("calls were answered by %v", l.by)
	}
}

type target struct {
	Version string  `json:"version"`
	Weight  float64 `json:"weight"`
}

type splitBody struct {
	Split  []target `json:"split"`
	Mirror string   `json:"mirror,omitempty"`
}

func (s *suite) split(t *testing.T) {
	l := s.startLoad(t)
	wanted := splitBody{Split: []target{{id("1"), 50}, {id("2"), 50}}}
	var got struct {
		splitBody
		Versions []struct{ Version, State, Reason string }
	}
	if status := s.api(t, http.MethodPut, "/system/models/"+function+"/traffic", wanted, &got); status != http.StatusOK {
		t.Fatalf("split: %d", status)
	}
	if !slices.Equal(got.Split, wanted.Split) {
		t.Errorf("the split is %v", got.Split)
	}
	seen := map[string]int{}
	for range 100 {
		_, _, version := s.call(t.Context(), "x")
		seen[version]++
	}
	if seen[id("1")] < 25 || seen[id("2")] < 25 {
		t.Errorf("of 100 calls, versions answered %v", seen)
	}
	for _, version := range []string{"1", "2"} {
		if _, _, answered := s.call(t.Context(), "x", "X-Model-Version", id(version)); answered != id(version) {
			t.Errorf("a call for %s is answered by %s", id(version), answered)
		}
	}
	if status, said, _ := s.call(t.Context(), "x", "X-Model-Version", "9_9"); status != http.StatusNotFound {
		t.Errorf("a call for a version that is not loaded: %d %s, want 404", status, said)
	}
	for _, session := range []string{"a", "b", "c", "d", "e", "f"} {
		_, _, first := s.call(t.Context(), "x", "X-Session-Id", session)
		for range 5 {
			if _, _, again := s.call(t.Context(), "x", "X-Session-Id", session); again != first {
				t.Errorf("session %s is answered by %s and by %s", session, first, again)
			}
		}
	}
	bad := splitBody{Split: []target{{id("1"), 50}, {id("2"), 60}}}
	if status := s.api(t, http.MethodPut, "/system/models/"+function+"/traffic", bad, nil); status != http.StatusBadRequest {
		t.Errorf("a split of 110 %%: %d, want 400", status)
	}
	l.end(t)
}

func (s *suite) rollback(t *testing.T) {
	l := s.startLoad(t)
	if status := s.api(t, http.MethodPost, "/system/models/"+function+"/rollback", struct{}{}, nil); status != http.StatusOK {
		t.Fatalf("rollback: %d", status)
	}
	s.wantCall(t, "x", "version 1: x", "1")
	if status := s.api(t, http.MethodPost, "/system/models/"+function+"/rollback", struct{}{}, nil); status != http.StatusOK {
		t.Fatalf("rollback: %d", status)
	}
	// To version 2, with the environment that it was deployed with then.
	s.wantCall(t, "env COLOUR", "green", "2")
	l.end(t)
}

func (s *suite) scaleTo(t *testing.T, n uint64) {
	t.Helper()
	must(t, s.client(t).ScaleFunction(t.Context(), function, "", n))
	eventually(t, "so many replicas are there", func() bool {
		got, err := s.client(t).GetFunction(t.Context(), function, "")
		must(t, err)
		return got.Replicas == n && got.AvailableReplicas == n
	})
}

func (s *suite) scale(t *testing.T) {
	l := s.startLoad(t)
	s.scaleTo(t, 5)
	s.scaleTo(t, 1)
	time.Sleep(5 * time.Second) // four containers leave
	s.scaleTo(t, 5)
	l.end(t)
	s.scaleTo(t, 0)
	if status, said, _ := s.call(t.Context(), "x"); status != http.StatusServiceUnavailable {
		t.Errorf("a call of a function at zero: %d %s, want 503", status, said)
	}
	s.scaleTo(t, 1)
	s.wantCall(t, "x", "version 2: x", "2")
}

func (s *suite) secrets(t *testing.T) {
	spec := s.spec(t, "2")
	spec.Secrets = []string{"key"}
	if status, err := s.client(t).Update(t.Context(), spec); err == nil || status != http.StatusBadRequest {
		t.Errorf("naming a secret that is not there: %d %v, want 400", status, err)
	}
	status, err := s.client(t).CreateSecret(t.Context(), types.Secret{Name: "key", Value: "first"})
	if err != nil || status != http.StatusCreated {
		t.Fatalf("create a secret: %d %v", status, err)
	}
	if status, err := s.client(t).CreateSecret(t.Context(), types.Secret{Name: "key", Value: "again"}); err == nil || status != http.StatusConflict {
		t.Errorf("create it again: %d %v, want 409", status, err)
	}
	s.update(t, spec)
	s.wantCall(t, "secret key", "first", "2")
	all, err := s.client(t).GetSecrets(t.Context(), "")
	must(t, err)
	if len(all) != 1 || all[0].Name != "key" || all[0].Value != "" || len(all[0].RawValue) > 0 {
		t.Errorf("the secrets are listed as %+v", all)
	}
	if err := s.client(t).DeleteSecret(t.Context(), "key", ""); err == nil {
		t.Error("a secret that a function names was deleted")
	}
	l := s.startLoad(t)
	if status, err := s.client(t).UpdateSecret(t.Context(), types.Secret{Name: "key", Value: "second"}); err != nil || status >= 300 {
		t.Fatalf("update a secret: %d %v", status, err)
	}
	eventually(t, "the function sees the new value", func() bool {
		_, said, _ := s.call(t.Context(), "secret key")
		return said == "second"
	})
	time.Sleep(4 * time.Second) // where containers are replaced for it
	l.end(t)
}

func (s *suite) logs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	follow, err := s.client(t).GetLogs(ctx, function, "", true, 1, nil)
	must(t, err)
	heard := make(chan string, 1)
	go func() {
		for m := range follow {
			if strings.Contains(m.Text, "heard while following") {
				heard <- m.Name + " " + m.Namespace + " " + m.Instance
				return
			}
		}
	}()
	since := time.Now().Add(-time.Second)
	s.call(t.Context(), "print written to the log")
	eventually(t, "the log has the line", func() bool { return slices.ContainsFunc(s.read(t, 100, &since), containing("written to the log")) })
	if lines := s.read(t, 1, nil); len(lines) != 1 {
		t.Errorf("of the last line there are %d", len(lines))
	}
	later := time.Now().Add(time.Hour)
	if lines := s.read(t, 100, &later); len(lines) != 0 {
		t.Errorf("of the time to come there are lines: %q", lines)
	}
	eventually(t, "a follower hears", func() bool {
		s.call(t.Context(), "print heard while following")
		select {
		case who := <-heard:
			if !strings.HasPrefix(who, function+" openfaas-fn ") || strings.HasSuffix(who, " ") {
				t.Errorf("the line is from %q", who)
			}
			return true
		case <-time.After(500 * time.Millisecond):
			return false
		}
	})
	if status := s.api(t, http.MethodGet, "/system/logs?name=nobody", nil, nil); status != http.StatusNotFound {
		t.Errorf("the log of nobody: %d, want 404", status)
	}
}

func containing(part string) func(string) bool {
	return func(line string) bool { return strings.Contains(line, part) }
}

// read returns the lines of the log.
func (s *suite) read(t *testing.T, tail int, since *time.Time) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	lines, err := s.client(t).GetLogs(ctx, function, "", false, tail, since)
	must(t, err)
	var out []string
	for m := range lines {
		out = append(out, m.Text)
	}
	return out
}
