package runner

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// cut is what lineWriter should do, with all the text at hand.
func cut(text string, limit int) (lines []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		for limit > 0 && len(line) > limit {
			lines = append(lines, line[:limit])
			line = line[limit:]
		}
		lines = append(lines, line)
	}
	return lines
}

func TestLinesDoNotDependOnHowTheyAreWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.SampledFrom([]rune("ab\n")), 0, 60, -1).Draw(t, "text")
		limit := rapid.SampledFrom([]int{-1, 1, 2, 3, 7}).Draw(t, "limit")
		var got []string
		w := newLineWriter(func(line []byte) { got = append(got, string(line)) }, limit)
		for rest := text; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			if wrote, err := w.Write([]byte(rest[:n])); wrote != n || err != nil {
				t.Fatal(wrote, err)
			}
			rest = rest[n:]
		}
		w.Flush()
		if want := cut(text, limit); !slices.Equal(got, want) {
			t.Fatalf("%q cut at %d gave %q, not %q", text, limit, got, want)
		}
	})
}
