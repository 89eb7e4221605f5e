// Package issuer gives out bearer tokens: to clients that are registered here, to whoever holds a token
// of an outside OpenID Connect issuer that is trusted by configuration, and to whoever wants a narrower
// token than the one at hand.
//
// It is a whole authorization server behind two http.Handlers: one for clients and verifiers, one for
// administrators, which its owner puts behind an authentication of its own. It listens nowhere and
// checks no call of a function; that is package token's business, and everything it does is to be seen
// from there.
//
// An answer is given only after what it says is committed to auth.db. Whatever kills the process, no
// acknowledged change is lost and none is half there.
package issuer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/faas-predict/faas-predict/auth/token"
)

// Defaults and limits of Config.
const (
	DefaultAccessTTL   = 30 * time.Minute
	DefaultRefreshTTL  = 60 * 24 * time.Hour
	DefaultKeyRotation = 30 * 24 * time.Hour
	DefaultAlgorithm   = token.ES256

	MinAccessTTL   = time.Second
	MinKeyRotation = time.Hour
	// MaxAccessTTL bounds how long a signing key must stay published after its successor took over, and
	// how long a revocation must be remembered.
	MaxAccessTTL = 24 * time.Hour
)

// File is the name of the database in Config.Dir.
const File = "auth.db"

// ErrInUse is what Open returns while another process has the state open.
var ErrInUse = errors.New("it is in use by another process")

// Config says how tokens are issued. The zero value of a field means its default.
type Config struct {
	// URL is the issuer's name, the claim "iss", and the address that clients and verifiers reach
	// Handler at. It must be set: http or https, without query, fragment and a slash at the end.
	URL string
	// Dir holds the state. It is made if it is not there, and is for this user only. It must be set.
	Dir string
	// AccessTTL and RefreshTTL are how long tokens hold; 30 minutes and 60 days. A refresh token's time
	// begins anew with each use. They are counted in whole seconds.
	AccessTTL, RefreshTTL time.Duration
	// Algorithm is what new keys sign with; ES256, which every JWT library and gateway can check.
	Algorithm token.Algorithm
	// KeyRotation is how long a key signs before the next one takes over; 30 days.
	KeyRotation time.Duration
	// Trust lists the outside issuers whose tokens may be exchanged; none. SetTrust replaces it.
	Trust []Trust
	// TrustedProxies are whom X-Forwarded-For is believed from; nobody. The failures of a client's
	// address are limited, so a proxy that is not named here is limited for all who come through it.
	TrustedProxies []netip.Prefix
	// Log gets audit lines, marked audit=true, and what goes wrong; slog.Default.
	Log *slog.Logger
	// Metrics is where the issuer registers its metrics; nowhere.
	Metrics prometheus.Registerer
	// Idle opens the state to look at it or to change it, and not to issue tokens: no key is made, none
	// rotates, and nothing is swept. Handler must not be used.
	Idle bool
	// Now is the clock; time.Now.
	Now func() time.Time
}

// Issuer is open state. Its methods are safe for concurrent use.
type Issuer struct {
	cfg Config
	db  *bbolt.DB
	log *slog.Logger
	now func() time.Time

	// mu makes an issue and a change of clients or keys exclude each other. Who issues holds it for
	// reading from the last look at the client until the token is made; who changes something holds it
	// for writing until the change is committed. So each token is either refused, or among those that
	// the change takes back.
	mu      sync.RWMutex
	clients map[string]*clientRecord // a record never changes; it is replaced
	keys    []*signingKey            // by the time they sign from

	local    *token.LocalKeys
	own      *token.Verifier
	outside  outsiders
	revoked  *revocations
	secrets  *secrets
	failures *failures
	metrics  *metrics

	stop   chan struct{}
	ending sync.WaitGroup
}

// Open reads the state below cfg.Dir, or makes it. The error is ErrInUse while another process has it
// open. Close must be called.
func Open(cfg Config) (_ *Issuer, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	i := &Issuer{
		cfg: cfg, log: cfg.Log, now: cfg.Now, clients: map[string]*clientRecord{},
		revoked: newRevocations(), stop: make(chan struct{}),
	}
	i.secrets = newSecrets(cfg.AccessTTL+rememberBeyond, cfg.Now)
	i.failures = newFailures()
	i.metrics = newMetrics(cfg.Metrics, i)
	if i.db, err = openState(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = i.Close()
		}
	}()
	if err := i.load(); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(cfg.Dir, File), err)
	}
	if cfg.Idle {
		return i, nil
	}
	if err := i.maintainKeys(); err != nil {
		return nil, err
	}
	if i.local, err = token.NewLocalKeys(cfg.URL, i.published()...); err != nil {
		return nil, err
	}
	i.own = token.NewVerifier(token.Config{Keys: i.local, Revocations: i.revoked, Now: cfg.Now})
	if err := i.SetTrust(cfg.Trust); err != nil {
		return nil, err
	}
	i.ending.Go(i.sweep)
	return i, nil
}

// Close ends what runs in the background and closes the state. Requests that are being answered must
// have ended. Call it once.
func (i *Issuer) Close() error {
	close(i.stop)
	i.ending.Wait()
	i.outside.close()
	return i.db.Close()
}

// Keys are the published keys, for a token.Verifier in this process.
func (i *Issuer) Keys() *token.LocalKeys { return i.local }

// Revocations are those in force, for a token.Verifier in this process.
func (i *Issuer) Revocations() token.Revocations { return i.revoked }

func (c *Config) complete() error {
	u, err := url.Parse(c.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery ||
		strings.Contains(c.URL, "#") || strings.HasSuffix(c.URL, "/") {
		return fmt.Errorf("issuer URL %q: it must be http or https, and without user, query, fragment and a slash at the end", c.URL)
	}
	if c.Dir == "" {
		return errors.New("the issuer needs a directory for its state")
	}
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{{&c.AccessTTL, DefaultAccessTTL}, {&c.RefreshTTL, DefaultRefreshTTL}, {&c.KeyRotation, DefaultKeyRotation}} {
		if *d.value == 0 {
			*d.value = d.standard
		}
	}
	c.AccessTTL, c.RefreshTTL = c.AccessTTL.Truncate(time.Second), c.RefreshTTL.Truncate(time.Second)
	switch {
	case c.AccessTTL < MinAccessTTL || c.AccessTTL > MaxAccessTTL:
		return fmt.Errorf("access token lifetime %s: it must be from %s to %s", c.AccessTTL, MinAccessTTL, MaxAccessTTL)
	case c.RefreshTTL < c.AccessTTL:
		return fmt.Errorf("refresh token lifetime %s: it must not be below that of access tokens, %s", c.RefreshTTL, c.AccessTTL)
	case c.KeyRotation < 0:
		return fmt.Errorf("key rotation %s: it must be positive", c.KeyRotation)
	}
	if c.Algorithm == "" {
		c.Algorithm = DefaultAlgorithm
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// openState opens the database in a directory that is for this user only: whoever reads it can sign
// tokens.
func openState(dir string) (*bbolt.DB, error) {
	file := filepath.Join(dir, File)
	if err := makeOwn(dir, file); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w", file, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	db.MaxBatchDelay = batchDelay
	return db, nil
}

// sweepInterval is how often keys are looked after; what has expired goes every sweepEvery times.
const (
	sweepInterval = 30 * time.Second
	sweepEvery    = 20
)

func (i *Issuer) sweep() {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for n := 1; ; n++ {
		select {
		case <-i.stop:
			return
		case <-ticker.C:
		}
		if err := i.maintainKeys(); err != nil {
			i.log.Error("signing keys cannot be looked after; the present ones go on", "error", err)
		}
		if n%sweepEvery == 0 {
			if err := i.removeExpired(); err != nil {
				i.log.Error("what has expired cannot be removed", "error", err)
			}
		}
	}
}

// removeExpired removes refresh tokens and revocations that no longer matter.
func (i *Issuer) removeExpired() error {
	now := i.now()
	if err := i.removeExpiredFamilies(now); err != nil {
		return err
	}
	if !i.revoked.removeExpired(now) {
		return nil
	}
	return i.update(func(tx *bbolt.Tx) error {
		if err := deleteWhere(tx, revokedBucket, func(t *revokedToken) bool { return over(t.Expires, now) }); err != nil {
			return err
		}
		if err := deleteWhere(tx, revokedClientsBucket, func(c *revokedClient) bool { return over(c.Expires, now) }); err != nil {
			return err
		}
		return deleteWhere(tx, revokedKeysBucket, func(k *revokedKey) bool { return over(k.Expires, now) })
	})
}

// makeOwn makes the directory of file, for this user only. One that holds other things is somebody else's,
// such as a provider's, and must not be closed to those who need it.
func makeOwn(dir, file string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the issuer's directory: %w", err)
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("look into the issuer's directory: %w", err)
		}
		for _, e := range entries {
			if e.Type()&fs.ModeSocket == 0 { // which a killed issuer may have left
				return fmt.Errorf("%s holds other things (%s) and no %s: the issuer needs a directory of its own", dir, e.Name(), File)
			}
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("close the issuer's directory to others: %w", err)
	}
	return nil
}

// Handler answers clients and verifiers: see Routes. When URL has a path, the routes are there below
// that path as well, for a proxy that passes it on.
func (i *Issuer) Handler() http.Handler {
	mux := http.NewServeMux()
	u, _ := url.Parse(i.cfg.URL) // complete has parsed it
	for _, prefix := range []string{"", u.Path} {
		for _, route := range Routes {
			mux.HandleFunc(route.Method+" "+prefix+route.Path, route.handler(i))
		}
		if u.Path == "" {
			break
		}
	}
	return mux
}
