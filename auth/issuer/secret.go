package issuer

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
)

// SecretPrefix begins every client secret, so that scanners of leaked secrets can tell what one is.
const SecretPrefix = "fpc_"

// secretHash is a secret as it is stored: argon2id's result and everything it was computed with, so that
// the parameters can change without any client noticing.
type secretHash struct {
	Passes  uint32 `json:"t"`
	KiB     uint32 `json:"m"`
	Threads uint8  `json:"p"`
	Salt    []byte `json:"salt"`
	Sum     []byte `json:"sum"`
}

// The least that OWASP's Password Storage Cheat Sheet recommends for argon2id. Secrets are 256 random
// bits here, which no amount of guessing finds; the hash is for the day that somebody brings their own.
const (
	hashPasses  = 2
	hashKiB     = 19 << 10
	hashThreads = 1
)

const (
	// maxHashes is how many hashes are computed at once: each takes 19 MiB.
	maxHashes = 4
	// maxHashWait is how long a request waits for its turn.
	maxHashWait = 2 * time.Second
	// rememberBeyond is how much longer than an access token a verified secret is remembered. A client
	// that comes for its next token when the last one expires is then still known.
	rememberBeyond = 30 * time.Minute
)

// errBusy is returned when too many secrets are being checked.
var errBusy = errors.New("too many client secrets are being checked")

// secrets makes and checks client secrets.
//
// Computing a hash takes some 20 ms of a core and 19 MiB, which would bound how many tokens a second
// clients can get, and let strangers with wrong secrets slow everyone down. So a secret that was
// verified is remembered for a while, as an HMAC under a key that exists only in this process: the
// memory gives away no secret, and what is looked up cannot be found by trying on another machine.
// Only right secrets get in, one for each client, so wrong ones can neither fill it nor push out any.
type secrets struct {
	key      [32]byte
	nobody   secretHash // checked for unknown clients, and never right
	remember time.Duration
	now      func() time.Time
	slots    chan struct{}
	hashes   atomic.Int64 // computed so far

	mu       sync.Mutex
	verified map[string]verified // by client
}

type verified struct {
	mac    [sha256.Size]byte
	record *clientRecord // a changed client has another
	until  time.Time
}

func newSecrets(remember time.Duration, now func() time.Time) *secrets {
	s := &secrets{
		remember: remember, now: now, verified: map[string]verified{},
		slots: make(chan struct{}, min(maxHashes, runtime.GOMAXPROCS(0))),
	}
	_, _ = rand.Read(s.key[:]) // never fails
	s.nobody = secretHash{Passes: hashPasses, KiB: hashKiB, Threads: hashThreads, Salt: random(16), Sum: random(32)}
	return s
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func randomText(n int) string { return base64.RawURLEncoding.EncodeToString(random(n)) }

// generate returns a new secret of 256 bits, and its hash.
func (s *secrets) generate() (string, secretHash) {
	secret := SecretPrefix + randomText(32)
	h := secretHash{Passes: hashPasses, KiB: hashKiB, Threads: hashThreads, Salt: random(16)}
	s.slots <- struct{}{}
	defer func() { <-s.slots }()
	h.Sum = s.sum(secret, h, 32)
	return secret, h
}

func (s *secrets) sum(secret string, h secretHash, size int) []byte {
	s.hashes.Add(1)
	return argon2.IDKey([]byte(secret), h.Salt, h.Passes, h.KiB, h.Threads, uint32(size))
}

func (s *secrets) mac(name, secret string) (out [sha256.Size]byte) {
	h := hmac.New(sha256.New, s.key[:])
	h.Write([]byte(name))
	h.Write([]byte{0}) // no name has it
	h.Write([]byte(secret))
	h.Sum(out[:0])
	return out
}

// known reports whether the secret was verified for this very record lately. The time begins anew.
func (s *secrets) known(c *clientRecord, name, secret string) bool {
	mac := s.mac(name, secret)
	s.mu.Lock()
	defer s.mu.Unlock()
	v, found := s.verified[name]
	now := s.now()
	if !found || c == nil || v.record != c || !now.Before(v.until) {
		return false
	}
	if subtle.ConstantTimeCompare(mac[:], v.mac[:]) != 1 {
		return false
	}
	v.until = now.Add(s.remember)
	s.verified[name] = v
	return true
}

// check reports whether the secret is the client's, and remembers it if so. c is nil for a client that
// there is not; that costs the same. The error is errBusy, or ctx's.
func (s *secrets) check(ctx context.Context, c *clientRecord, name, secret string) (bool, error) {
	h := s.nobody
	if c != nil {
		h = c.Secret
	}
	timer := time.NewTimer(maxHashWait)
	defer timer.Stop()
	select {
	case s.slots <- struct{}{}:
	case <-timer.C:
		return false, errBusy
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-s.slots }()
	same := subtle.ConstantTimeCompare(s.sum(secret, h, len(h.Sum)), h.Sum) == 1
	if !same || c == nil {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verified[name] = verified{s.mac(name, secret), c, s.now().Add(s.remember)}
	return true, nil
}

// forget drops what was verified for a client.
func (s *secrets) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.verified, name)
}
