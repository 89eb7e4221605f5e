package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/faas-predict/faas-predict/watchdog/pool"
)

func environment(values map[string]string) func(string) string {
	return func(name string) string { return values[name] }
}

func TestSettingsHaveTheirDefaults(t *testing.T) {
	s, err := ReadSettings(environment(nil))
	if err != nil {
		t.Fatal(err)
	}
	if s.Port != 8080 || s.MetricsPort != 8081 || s.ModelPath != "/home/app/function" || s.MaxBodyBytes != 16<<20 || s.Workers < 1 ||
		s.ExecTimeout != 30*time.Second || s.HealthcheckInterval != s.WriteTimeout || s.DrainTimeout < s.ExecTimeout || !s.PrefixLogs || s.SuppressLock {
		t.Errorf("defaults are %+v", s)
	}
}

func TestASettingIsTakenOrRefusedByName(t *testing.T) {
	for _, c := range []struct {
		name, value string
		ok          bool
	}{
		{"port", "0", true}, {"port", "65536", false}, {"port", "http", false}, {"port", "-1", false}, {"port", "80 ", false},
		{"workers", "1", true}, {"workers", "256", true}, {"workers", "0", false}, {"workers", "257", false}, {"workers", "2.5", false},
		{"exec_timeout", "30", true}, {"exec_timeout", "1m30s", true}, {"exec_timeout", "0", true}, {"exec_timeout", "-1s", false}, {"exec_timeout", "soon", false},
		{"exec_timeout", "99999999999999999999", false},
		{"max_body_bytes", "1", true}, {"max_body_bytes", "0", false}, {"max_body_bytes", "134217728", true}, {"max_body_bytes", "134217729", false},
		{"start_method", "fork", true}, {"start_method", "spawn", true}, {"start_method", "forkserver", false},
		{"log_format", "json", true}, {"log_format", "xml", false}, {"log_buffer_size", "-1", true}, {"log_buffer_size", "-2", false},
		{"prefix_logs", "false", true}, {"prefix_logs", "maybe", false}, {"queue_depth", "0", false}, {"batch_max_size", "4097", false},
		{"jwt_auth", "false", true}, {"jwt_auth", "true", true}, {"jwt_auth", "yes", false}, {"revocation_bound", "soon", false},
	} {
		_, err := ReadSettings(environment(map[string]string{c.name: c.value}))
		if (err == nil) != c.ok {
			t.Errorf("%s=%s: %v", c.name, c.value, err)
		}
		if err != nil && (!strings.Contains(err.Error(), c.name) || !strings.Contains(err.Error(), c.value)) {
			t.Errorf("%s=%s: the error names not both: %v", c.name, c.value, err)
		}
	}
	s, err := ReadSettings(environment(map[string]string{"write_timeout": "7", "exec_timeout": "3s", "OPENFAAS_NAME": "x"}))
	if err != nil || s.WriteTimeout != 7*time.Second || s.HealthcheckInterval != 7*time.Second || s.DrainTimeout != 7*time.Second || s.Name != "x" {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestEverySettingIsDescribedOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, v := range Variables {
		if seen[v.Name] || v.Name == "" || v.Meaning == "" || v.set == nil {
			t.Errorf("%+v", v)
		}
		seen[v.Name] = true
	}
}

func TestEveryFailureHasItsStatus(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		retry  bool
	}{
		{pool.ErrFull, 429, true},
		{pool.ErrDraining, 503, true},
		{&pool.NotReadyError{Reason: "init is running"}, 503, true},
		{pool.ErrTimeout, 504, false},
		{&pool.RaisedError{Type: "ValueError", Message: "☃", Traceback: "secret"}, 500, false},
		{&pool.NotStringError{Returned: "int"}, 500, false},
		{&pool.CrashError{Reason: "exit code 1"}, 502, false},
		{context.Canceled, 499, false},
		{errors.New("anything"), 500, false},
		{fmt.Errorf("ask: %w", pool.ErrFull), 429, true},
	} {
		rec := httptest.NewRecorder()
		writeProblem(rec, problemOf(c.err))
		if rec.Code != c.status || (rec.Header().Get("Retry-After") != "") != c.retry || rec.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%v: %d %v", c.err, rec.Code, rec.Header())
		}
		var p problem
		if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || p.Status != c.status || p.Detail == "" || strings.Contains(rec.Body.String(), "secret") {
			t.Errorf("%v: %s", c.err, rec.Body)
		}
	}
}

func TestReadLineCutsAtLineEndsWhateverTheBuffer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.SampledFrom([]rune("ab\n")), 0, 200, -1).Draw(t, "text")
		limit := rapid.IntRange(1, 40).Draw(t, "limit")
		in := bufio.NewReaderSize(strings.NewReader(text), 16)
		want := strings.Split(text, "\n")
		var lines []byte
		var kept [][]byte
		for n, line := range want {
			var got []byte
			var tooLong bool
			var err error
			got, lines, tooLong, err = readLine(in, lines, limit, func() bool { return true })
			kept = append(kept, got)
			if last := n == len(want)-1; last != errors.Is(err, io.EOF) || (err != nil && !last) {
				t.Fatalf("line %d of %q: %v", n, text, err)
			}
			if tooLong != (len(line) > limit) || (!tooLong && string(got) != line) {
				t.Fatalf("line %d of %q is %q, too long for %d: %v", n, text, got, limit, tooLong)
			}
		}
		for n, line := range want { // one line leaves those before it as they are
			if len(line) <= limit && string(kept[n]) != line {
				t.Fatalf("line %d of %q became %q", n, text, kept[n])
			}
		}
	})
}

func TestARowGivenAsAStringIsReadAsEncodingJSONReadsIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		line := []byte(`"` + rapid.StringOf(rapid.SampledFrom([]rune(`ab"\nu0d8é☃/ `+"\x00\x1f\x7f\t"))).Draw(t, "inner") + `"`)
		if rapid.Bool().Draw(t, "valid") {
			line, _ = json.Marshal(rapid.String().Draw(t, "text"))
		}
		var want string
		err := json.Unmarshal(line, &want)
		got := parseRow(line, false)
		if (got.bad == nil) != (err == nil) || string(got.request) != want {
			t.Fatalf("%q gave %q %v, encoding/json %q %v", line, got.request, got.bad, want, err)
		}
	})
	for _, bad := range []string{`"`, `"a`, `"a" b`, `"a""b"`} {
		if got := parseRow([]byte(bad), false); got.bad == nil {
			t.Errorf("%s gave %q", bad, got.request)
		}
	}
}

func TestAppendQuotedIsReadBackByEncodingJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		line := appendQuoted([]byte("x"), []byte(text))
		var back string
		if err := json.Unmarshal(line[1:], &back); err != nil || back != text || line[0] != 'x' || bytes.ContainsRune(line, '\n') {
			t.Fatalf("%q became %q (%v)", text, line, err)
		}
	})
}

func TestACallIDIsTheCallersUnlessItCannotStandInALog(t *testing.T) {
	for id, taken := range map[string]bool{
		"abc-1": true, "x": true, "": false, "a b": false, "a\tb": false, "ü": false, "a\nb": false,
		strings.Repeat("x", 128): true, strings.Repeat("x", 129): false,
	} {
		r := &http.Request{Header: http.Header{"X-Call-Id": {id}}}
		if got := callID(r); (got == id) != taken || got == "" {
			t.Errorf("%q became %q", id, got)
		}
	}
	if a, b := callID(&http.Request{}), callID(&http.Request{}); a == b || len(a) != 36 {
		t.Errorf("new call ids are %q and %q", a, b)
	}
}

func TestADeadlineIsTheShorterOfBoth(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		limit time.Duration
		asked string
		want  time.Duration // 0: none; negative: refused
	}{
		{0, "", 0}, {time.Second, "", time.Second}, {time.Second, "1m", time.Second}, {time.Minute, "250ms", 250 * time.Millisecond},
		{0, "2s", 2 * time.Second}, {time.Second, "0s", -1}, {time.Second, "-3s", -1}, {time.Second, "fast", -1}, {time.Second, "5", -1},
	} {
		s := &Server{settings: Settings{ExecTimeout: c.limit}}
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("X-Timeout", c.asked)
		got, err := s.deadline(r, now)
		switch {
		case (err != nil) != (c.want < 0):
			t.Errorf("%s of %q: %v", c.limit, c.asked, err)
		case err == nil && c.want == 0 && !got.IsZero(), err == nil && c.want > 0 && got.Sub(now) != c.want:
			t.Errorf("%s of %q is %s", c.limit, c.asked, got.Sub(now))
		}
	}
}

func TestOnlyNDJSONIsAStream(t *testing.T) {
	for kind, want := range map[string]bool{
		"application/x-ndjson": true, "application/x-ndjson; charset=utf-8": true, "application/x-ndjson;": true,
		"application/json": false, "": false, "application/x-ndjson-not": false, "text/plain": false,
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Content-Type", kind)
		if isStream(r) != want {
			t.Errorf("%q is a stream: %v", kind, !want)
		}
	}
}

func TestModelLinesGoToTheStreamTheyCameFrom(t *testing.T) {
	var out, err bytes.Buffer
	logs := NewLogs(Settings{LogFormat: "json"}, &out, &err)
	logs.ModelLine("stdout", 1, []byte("to out"))
	logs.ModelLine("stderr", 1, []byte("to err"))
	logs.Logger.Info("ours")
	if out.String() != "to out\n" || !strings.HasPrefix(err.String(), "to err\n{") || !strings.Contains(err.String(), `"msg":"ours"`) {
		t.Errorf("stdout %q, stderr %q", &out, &err)
	}
}

func TestTheGuideTellsEverySettingAndItsDefault(t *testing.T) {
	guide, err := os.ReadFile("../../docs/fwatchdog.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range Variables {
		told := false
		for line := range strings.Lines(string(guide)) {
			told = told || strings.Contains(line, "`"+v.Name+"`") && strings.Contains(strings.ReplaceAll(line, "`", ""), v.Default)
		}
		if !told {
			t.Errorf("docs/fwatchdog.md has no line with `%s` and its default %s", v.Name, v.Default)
		}
	}
}
