package process

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/logs"
)

// maxLineBytes is where a longer log line is cut into several.
const maxLineBytes = 16 << 10

// journal keeps the latest log lines of one function, up to a number of bytes, in memory. A reader
// that is too slow misses the oldest lines; a writer never waits.
type journal struct {
	name, namespace string
	limit           int

	mu      sync.Mutex
	lines   []line // lines[0] has number first
	first   uint64
	bytes   int
	changed chan struct{} // closed and replaced at each change
	closed  bool
}

type line struct {
	at       time.Time
	instance string
	text     string
}

func newJournal(name, namespace string, limit int) *journal {
	return &journal{name: name, namespace: namespace, limit: limit, changed: make(chan struct{})}
}

func (j *journal) add(instance, text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	j.lines = append(j.lines, line{time.Now().UTC(), instance, text})
	j.bytes += len(text) + lineOverhead
	drop := 0
	for j.bytes > j.limit && drop < len(j.lines)-1 {
		j.bytes -= len(j.lines[drop].text) + lineOverhead
		j.lines[drop] = line{}
		drop++
	}
	j.lines = j.lines[drop:]
	j.first += uint64(drop)
	j.wake()
}

// lineOverhead is what a line costs besides its text.
const lineOverhead = 64

func (j *journal) wake() {
	close(j.changed)
	j.changed = make(chan struct{})
}

// close ends every reader once it has read what is there.
func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed {
		j.closed = true
		j.wake()
	}
}

// query sends what was asked for and closes the channel.
func (j *journal) query(ctx context.Context, q logs.Request) <-chan logs.Message {
	out := make(chan logs.Message)
	go func() {
		defer close(out)
		next := j.start(q)
		for {
			batch, changed, closed := j.after(&next)
			for _, l := range batch {
				if !wanted(l, q) {
					continue
				}
				select {
				case out <- logs.Message{Name: j.name, Namespace: j.namespace, Instance: l.instance, Timestamp: l.at, Text: l.text}:
				case <-ctx.Done():
					return
				}
			}
			if len(batch) > 0 {
				continue
			}
			if closed || !q.Follow {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func wanted(l line, q logs.Request) bool {
	return (q.Instance == "" || q.Instance == l.instance) && (q.Since == nil || !l.at.Before(*q.Since))
}

// start is the number of the first line to send: with Tail, so many wanted lines before the end.
func (j *journal) start(q logs.Request) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if q.Tail <= 0 {
		return j.first
	}
	left := q.Tail
	for i := len(j.lines) - 1; i >= 0; i-- {
		if wanted(j.lines[i], q) {
			if left--; left == 0 {
				return j.first + uint64(i)
			}
		}
	}
	return j.first
}

// after returns some lines from number *next on and moves *next past them; when there are none,
// changed tells when to ask again.
func (j *journal) after(next *uint64) (batch []line, changed <-chan struct{}, closed bool) {
	const most = 256
	j.mu.Lock()
	defer j.mu.Unlock()
	*next = max(*next, j.first)
	from := min(int(*next-j.first), len(j.lines))
	batch = append(batch, j.lines[from:min(from+most, len(j.lines))]...)
	*next += uint64(len(batch))
	return batch, j.changed, j.closed
}

// lineWriter cuts a process's output into lines of a journal. It is written to by one goroutine.
type lineWriter struct {
	journal  *journal
	instance string
	rest     []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		piece := p
		if end >= 0 {
			piece = p[:end]
		}
		if room := maxLineBytes - len(w.rest); len(piece) > room {
			piece, end = piece[:room], -1
		}
		w.rest = append(w.rest, piece...)
		p = p[len(piece):]
		if end >= 0 {
			p = p[1:]
		}
		if end >= 0 || len(w.rest) == maxLineBytes {
			w.flush(end >= 0)
		}
	}
	return n, nil
}

func (w *lineWriter) flush(whole bool) {
	if whole || len(w.rest) > 0 {
		w.journal.add(w.instance, string(bytes.ToValidUTF8(bytes.TrimSuffix(w.rest, []byte("\r")), []byte("\ufffd"))))
	}
	w.rest = w.rest[:0]
}
