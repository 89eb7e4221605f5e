// Package guide reads the tables of the guides in docs/, for tests that compare them with what the
// code has. Nothing but tests may import it.
package guide

import (
	"os"
	"strings"
	"testing"
)

// Table returns the cells of the first table below a heading of a Markdown file, such as
// "## Settings", without its head; at least one row. Code marks are taken off, so that a guide may
// set what is literal as code.
func Table(t *testing.T, file, heading string) [][]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %q", file, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var rows [][]string
	for line := range strings.Lines(section) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "|") {
			if rows != nil {
				break
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.ReplaceAll(strings.TrimSpace(cells[i]), "`", "")
		}
		rows = append(rows, cells)
	}
	const head = 2 // names, and the line below them
	if len(rows) <= head {
		t.Fatalf("%s has no table below %q", file, heading)
	}
	return rows[head:]
}
