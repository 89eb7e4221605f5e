package server

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
)

// isPlainString reports whether line is a JSON string that stands for the bytes between its quotes.
func isPlainString(line []byte) bool {
	return len(line) >= 2 && line[0] == '"' && line[len(line)-1] == '"' && isPlain(line[1:len(line)-1])
}

// isPlain reports whether text is ASCII that JSON writes as it is: no quote, backslash or control
// character. It looks at eight bytes at a time, because rows are long and nearly all of them plain;
// the tests for a byte in a word are those of Anderson's "Bit Twiddling Hacks" (haszero, hasless).
func isPlain(text []byte) bool {
	const (
		ones = 0x0101010101010101
		tops = 0x80 * ones
	)
	for len(text) >= 8 {
		x := binary.LittleEndian.Uint64(text)
		quote, backslash := x^('"'*ones), x^('\\'*ones)
		// Each term is right where no byte has its top bit, and x itself is tested for that.
		if (x|(x-' '*ones)|(quote-ones)|(backslash-ones))&tops != 0 {
			return false
		}
		text = text[8:]
	}
	for _, c := range text {
		if c < ' ' || c == '"' || c == '\\' || c >= 0x80 {
			return false
		}
	}
	return true
}

// appendQuoted appends text as a JSON string.
func appendQuoted(dst, text []byte) []byte {
	if isPlain(text) {
		dst = append(dst, '"')
		dst = append(dst, text...)
		return append(dst, '"')
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(string(text))
	return append(dst, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}
