package server

import (
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// sender reads what a stream's caller sends. Each read has limit to bring something; 0 is no limit.
type sender struct {
	body    io.Reader
	control *http.ResponseController
	limit   time.Duration
	// deadline is that of the read under way, or of the one that failed, in nanoseconds.
	deadline atomic.Int64
}

// Read is io.Reader's.
func (s *sender) Read(p []byte) (int, error) {
	if s.limit > 0 {
		at := time.Now().Add(s.limit)
		s.deadline.Store(at.UnixNano())
		_ = s.control.SetReadDeadline(at)
	}
	n, err := s.body.Read(p)
	if err == nil || n > 0 {
		s.deadline.Store(0)
	}
	return n, err
}

// silent reports whether a read has taken longer than it may.
func (s *sender) silent() bool {
	deadline := s.deadline.Load()
	return deadline != 0 && time.Now().UnixNano() >= deadline
}

// close lifts the limit.
func (s *sender) close() {
	if s.limit > 0 {
		_ = s.control.SetReadDeadline(time.Time{})
	}
}
