package server

import (
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Logs are the two streams that leave the watchdog: what the model prints, and our own lines.
type Logs struct {
	Logger *slog.Logger

	mu     sync.Mutex
	prefix bool
	out    io.Writer
	err    io.Writer
	line   []byte
}

// NewLogs writes the model's stdout to out, and its stderr and our own lines to err.
func NewLogs(s Settings, out, err io.Writer) *Logs {
	l := &Logs{prefix: s.PrefixLogs, out: out, err: err}
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if s.LogFormat == "json" {
		l.Logger = slog.New(slog.NewJSONHandler(locked{l}, options))
	} else {
		l.Logger = slog.New(slog.NewTextHandler(locked{l}, options))
	}
	return l
}

// StdLogs are the Logs of a process.
func StdLogs(s Settings) *Logs { return NewLogs(s, os.Stdout, os.Stderr) }

// locked keeps our lines and the model's from mixing.
type locked struct{ l *Logs }

func (w locked) Write(p []byte) (int, error) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	return w.l.err.Write(p)
}

// ModelLine writes a line that the model printed: as it is, or with prefix_logs behind time and
// stream as of-watchdog has them.
func (l *Logs) ModelLine(stream string, _ uint64, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.line[:0]
	if l.prefix {
		b = time.Now().AppendFormat(b, "2006/01/02 15:04:05 ")
		b = append(b, stream...)
		b = append(b, ": "...)
	}
	b = append(b, line...)
	b = append(b, '\n')
	to := l.out
	if stream == "stderr" {
		to = l.err
	}
	_, _ = to.Write(b)
	if cap(b) < 64<<10 {
		l.line = b
	}
}
