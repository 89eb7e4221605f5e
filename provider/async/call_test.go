package async

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestCallsAreReadAsTheyWereStored(t *testing.T) {
	call := testCall("/a%20b?x=1", strings.Repeat("\x00\xff", 1000), "https://example.com")
	call.Header = http.Header{"X-Many": {"a", "b"}, "X-Odd": {"ü\""}}
	call.Accepted = call.Accepted.UTC().Round(0)
	payload, err := encode(call, call.Body)
	if err != nil {
		t.Fatal(err)
	}
	var got Call
	if got.Body, err = decode(payload, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(call, &got, cmpopts.IgnoreUnexported(Call{})); diff != "" {
		t.Error(diff)
	}
}

func FuzzStoredMessagesAreReadOrRefused(f *testing.F) {
	good, _ := encode(testCall("/", "body", ""), []byte("body"))
	f.Add(good)
	f.Add([]byte{})
	f.Add([]byte{255, 255, 255, 255, '{'})
	f.Add([]byte{2, 0, 0, 0, '{', '}'})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var call Call
		body, err := decode(raw, &call)
		if err == nil && !bytes.HasSuffix(raw, body) {
			t.Errorf("the body of %q is %q", raw, body)
		}
	})
}

func TestCallsAreTheSameOnlyWhenTheirCallerSaysSoAndAsksTheSame(t *testing.T) {
	known := func(id string, change func(*Call)) string {
		c := testCall("/", "body", "")
		change(c)
		c.Identify(id)
		return c.known
	}
	nothing := func(*Call) {}
	if known("", nothing) != "" {
		t.Error("calls without an id of the caller's can be taken for each other")
	}
	same := known("id", nothing)
	if same != known("id", nothing) {
		t.Error("a call that is sent again is another one")
	}
	for what, other := range map[string]string{
		"id": known("id2", nothing), "body": known("id", func(c *Call) { c.Body = []byte("bodz") }), "path": known("id", func(c *Call) { c.Target = "/x" }),
		"function": known("id", func(c *Call) { c.Ref.Name = "other" }), "method": known("id", func(c *Call) { c.Method = "GET" }),
		"callback": known("id", func(c *Call) { c.Callback = "https://example.com" }),
	} {
		if other == same {
			t.Errorf("calls that differ in their %s are taken for each other", what)
		}
	}
}

func TestWaitsDoubleWithinTheirBoundAndKeepRetryAfter(t *testing.T) {
	for n, most := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 7: time.Minute, 100: time.Minute} {
		seen := map[time.Duration]bool{}
		for range 200 {
			wait := backoff(n, time.Minute, nil)
			if wait < most/2 || wait > most {
				t.Fatalf("attempt %d is followed by %s", n, wait)
			}
			seen[wait] = true
		}
		if len(seen) < 100 {
			t.Errorf("waits after attempt %d are not spread: %d", n, len(seen))
		}
	}
	for value, want := range map[string][2]time.Duration{
		"90": {90 * time.Second, 90 * time.Second}, "999999": {time.Hour, time.Hour}, "-1": {0, time.Second}, "soon": {0, time.Second},
		time.Now().Add(5 * time.Minute).UTC().Format(http.TimeFormat):  {4 * time.Minute, 5 * time.Minute},
		time.Now().Add(-5 * time.Minute).UTC().Format(http.TimeFormat): {0, time.Second},
	} {
		if got := backoff(1, time.Minute, http.Header{"Retry-After": {value}}); got < want[0] || got > want[1] {
			t.Errorf("Retry-After: %s makes it %s", value, got)
		}
	}
}
