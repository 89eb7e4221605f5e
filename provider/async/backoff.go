package async

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

const (
	firstWait = time.Second
	// longestWait bounds what a Retry-After is believed.
	longestWait = time.Hour
)

// backoff is the time before the attempt that follows the n-th: twice as long each time up to most, less up
// to half of it at random, so that calls that failed together do not come back together. A Retry-After that
// is longer is kept.
func backoff(n int, most time.Duration, header http.Header) time.Duration {
	wait := most
	if n < 30 {
		wait = min(most, firstWait<<(n-1))
	}
	wait -= time.Duration(rand.Int64N(int64(wait)/2 + 1)) // chance, not secrecy
	return max(wait, retryAfter(header))
}

func retryAfter(header http.Header) time.Duration {
	value := header.Get("Retry-After")
	if value == "" {
		return 0
	}
	var wait time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second // 31 bits
	} else if at, err := http.ParseTime(value); err == nil {
		wait = time.Until(at)
	}
	return max(0, min(wait, longestWait))
}
