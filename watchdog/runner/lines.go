package runner

import "bytes"

// lineWriter cuts what is written to it into lines. It is for one writer at a time.
type lineWriter struct {
	emit  func(line []byte)
	limit int // bytes of a line; negative: none
	part  []byte
}

func newLineWriter(emit func([]byte), limit int) *lineWriter {
	return &lineWriter{emit: emit, limit: limit}
}

// Write never fails: what a model prints is never a reason to stop it.
func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		take, whole := len(p), false
		if end >= 0 {
			take, whole = end, true
		}
		if w.limit > 0 && len(w.part)+take > w.limit {
			take, whole = w.limit-len(w.part), false
		}
		w.part = append(w.part, p[:take]...)
		p = p[take:]
		if whole {
			p = p[1:]
			w.emit(w.part)
			w.part = w.part[:0]
		} else if w.limit > 0 && len(w.part) >= w.limit && len(p) > 0 {
			// Only what follows tells a cut from the end of a line that just fits.
			w.emit(w.part)
			w.part = w.part[:0]
			if p[0] == '\n' {
				p = p[1:]
			}
		}
	}
	return n, nil
}

// Flush emits a last line that had no end.
func (w *lineWriter) Flush() {
	if len(w.part) > 0 {
		w.emit(w.part)
		w.part = nil
	}
}
