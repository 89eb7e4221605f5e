package packages

import (
	"bufio"
	"strings"
	"sync"
)

// maxLineBytes is where a longer line is cut into several.
const maxLineBytes = 16 << 10

// tail passes lines on and remembers the last ones.
type tail struct {
	mu       sync.Mutex
	keep     int
	lines    []string
	progress func(string)
	rest     []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest = append(t.rest, p...)
	for {
		advance, line, _ := bufio.ScanLines(t.rest, false)
		if advance == 0 {
			break
		}
		t.add(string(line))
		t.rest = t.rest[advance:]
	}
	if len(t.rest) > maxLineBytes {
		t.add(string(t.rest))
		t.rest = nil
	}
	return len(p), nil
}

func (t *tail) add(line string) {
	if t.lines = append(t.lines, line); len(t.lines) > t.keep {
		t.lines = t.lines[1:]
	}
	t.progress(line)
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.rest) > 0 {
		t.add(string(t.rest))
		t.rest = nil
	}
	return strings.Join(t.lines, "\n")
}
