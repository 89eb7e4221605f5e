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
	by      atomic.Int64 // when the read under way, or the one that failed, had to have brought something
}

// Read is io.Reader's.
func (s *sender) Read(p []byte) (int, error) {
	if s.limit > 0 {
		at := time.Now().Add(s.limit)
		s.by.Store(at.UnixNano())
		_ = s.control.SetReadDeadline(at)
	}
	n, err := s.body.Read(p)
	if err == nil || n > 0 {
		s.by.Store(0)
	}
	return n, err
}

// silent reports whether a read has taken longer than it may.
func (s *sender) silent() bool {
	by := s.by.Load()
	return by != 0 && time.Now().UnixNano() >= by
}

// close lifts the limit.
func (s *sender) close() {
	if s.limit > 0 {
		_ = s.control.SetReadDeadline(time.Time{})
	}
}
