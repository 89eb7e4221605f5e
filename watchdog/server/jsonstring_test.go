package server

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestAPlainStringIsOneThatJSONWritesAsItIs(t *testing.T) {
	for length := range 20 {
		for at := range length {
			for c := range 256 {
				text := bytes.Repeat([]byte("a"), length)
				text[at] = byte(c)
				quoted, err := json.Marshal(string(text))
				if err != nil {
					t.Fatal(err)
				}
				asIs := string(quoted) == `"`+string(text)+`"` || c == '<' || c == '>' || c == '&' // escaped only for HTML
				if c == 0x7f {
					asIs = true
				}
				if isPlain(text) != asIs {
					t.Fatalf("byte %#x at %d of %d: plain %v, JSON writes %s", c, at, length, isPlain(text), quoted)
				}
			}
		}
	}
}

func FuzzQuotedTextReadsBackAsItWas(f *testing.F) {
	f.Add([]byte("5.1,3.5"))
	f.Add([]byte("\"\\\n\x00<ü"))
	f.Fuzz(func(t *testing.T, text []byte) {
		text = bytes.ToValidUTF8(text, []byte("?"))
		quoted := appendQuoted(nil, text)
		if bytes.ContainsRune(quoted, '\n') {
			t.Fatalf("%q is more than a line", quoted)
		}
		got := parseRow(quoted, false)
		if got.bad != nil || !bytes.Equal(got.request, text) || got.isJSON {
			t.Fatalf("%q came back as %q, %v", text, got.request, got.bad)
		}
	})
}
