package server

import "sync"

const (
	// bytesAhead bounds what a stream's rows under way may hold together. A row that is larger goes alone.
	bytesAhead = 4 << 20
	// runsAhead is how many runs the rows under way are made of where they come fast enough: one can be
	// read while others are answered.
	runsAhead = 4
)

// rowsAhead counts the rows of a stream that were read and are not answered.
type rowsAhead struct {
	mu    sync.Mutex
	room  sync.Cond // signalled when what waits in enter may go on
	rows  int
	bytes int
	fits  func() bool // of what waits in enter; nil when nothing does
	over  bool
}

func newRowsAhead() *rowsAhead {
	a := &rowsAhead{}
	a.room.L = &a.mu
	return a
}

// enter counts a run of rows. It blocks while they would make more than most rows under way, or more than
// bytesAhead, and there are any. It reports false once close was called. One goroutine may enter.
func (a *rowsAhead) enter(run []row, most int) bool {
	bytes := 0
	for _, r := range run {
		bytes += len(r.request)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fits = func() bool {
		return a.over || a.rows == 0 || a.rows+len(run) <= most && a.bytes+bytes <= bytesAhead
	}
	for !a.fits() {
		a.room.Wait()
	}
	a.fits = nil
	a.rows, a.bytes = a.rows+len(run), a.bytes+bytes
	return !a.over
}

// leave takes out a row that is answered.
func (a *rowsAhead) leave(r row) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rows, a.bytes = a.rows-1, a.bytes-len(r.request)
	a.signal()
}

// close ends what waits in enter.
func (a *rowsAhead) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	a.signal()
}

func (a *rowsAhead) signal() {
	if a.fits != nil && a.fits() {
		a.room.Signal()
	}
}
