package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DiscoveryPath is where an issuer describes itself (OpenID Connect Discovery 1.0, section 4).
const DiscoveryPath = "/.well-known/openid-configuration"

// Discovery is the part of that description that verifiers read.
type Discovery struct {
	Issuer string `json:"issuer"`
	// JWKSURI is where the issuer's keys are.
	JWKSURI string `json:"jwks_uri"`
	// RevocationListURI is where its RevocationList is; empty when it has none.
	RevocationListURI string `json:"revocation_list_uri,omitempty"`
}

// Limits on what an authority may send and how long it may take.
const (
	maxDiscoveryBytes  = 256 << 10
	maxKeySetBytes     = 1 << 20
	maxRevocationBytes = 8 << 20
	fetchTimeout       = 10 * time.Second
)

// Pauses between fetches of the keys.
const (
	firstRetry = time.Second // while there are none, doubling
	maxRetry   = 30 * time.Second
	// minRefresh is the least time between the end of a fetch and one for an unknown kid; it doubles
	// with each fetch that fails up to maxRefresh.
	minRefresh = 10 * time.Second
	maxRefresh = 5 * time.Minute
)

// AuthorityConfig says where an issuer is.
type AuthorityConfig struct {
	// URL is the issuer's address; DiscoveryPath is added to it. It must be http or https.
	URL string
	// Issuer is the name that the issuer must give itself, if that is not its URL. The default is to
	// require what OpenID Connect Discovery does, that both are the same, when the URL is https. When
	// it is plain http, as addresses within a cluster are (http://gateway.openfaas:8080), any name is
	// taken, as stock of-watchdog does: functions reach the issuer by another address than clients
	// do, and whoever could forge the name on such a connection could forge the keys.
	Issuer string
	// RefreshInterval is how often the keys are fetched in any case; 0 is 5 minutes.
	RefreshInterval time.Duration
	// RevocationBound is how long after its revocation a token may still be accepted here while the
	// issuer can be reached; 0 is 10 seconds. The list is fetched every half of it.
	RevocationBound time.Duration
	// Transport is for tests and for issuers with certificates of their own; nil is net/http's.
	Transport http.RoundTripper
	// Logger is where it is told that the issuer cannot be reached; nil is slog.Default.
	Logger *slog.Logger
}

// Authority is an issuer in another process: its keys and revocations as last fetched. What is known
// stays in force while the issuer cannot be reached, so that calls do not fail with it.
type Authority struct {
	cfg    AuthorityConfig
	url    string
	client *http.Client
	log    *slog.Logger
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	loops  sync.WaitGroup

	set     atomic.Pointer[KeySet]
	revoked atomic.Pointer[RevocationSet]
	// ask wakes the loop that fetches keys.
	ask chan struct{}
	// known is closed when there are keys for the first time.
	known chan struct{}

	mu      sync.Mutex
	round   chan struct{} // closed when the fetch under way or asked for has ended; nil: there is none
	allowed time.Time     // when Refresh may ask for the next
	lastErr error         // of the last fetch of keys

	list struct {
		sync.Mutex
		url, etag string
		keys      []string // revoked ones
		failing   bool
	}
}

var (
	_ KeySource   = (*Authority)(nil)
	_ Revocations = (*Authority)(nil)
)

var errClosed = errors.New("the verifier is shutting down")

// NewAuthority starts to fetch the issuer's keys and returns at once. The issuer need not be up: it is
// tried again until it is. Close ends it. The error is about the configuration.
func NewAuthority(cfg AuthorityConfig) (*Authority, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("authority %q: it must be an http or https URL without user, query and fragment", cfg.URL)
	}
	if cfg.RefreshInterval <= 0 {
		cfg.RefreshInterval = 5 * time.Minute
	}
	if cfg.RevocationBound <= 0 {
		cfg.RevocationBound = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Transport == nil {
		// A pool of its own, so that Close ends its connections and nobody else's.
		if pool, ok := http.DefaultTransport.(*http.Transport); ok {
			cfg.Transport = pool.Clone()
		}
	}
	base := strings.TrimSuffix(cfg.URL, "/")
	if cfg.Issuer == "" && u.Scheme == "https" {
		cfg.Issuer = base
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &Authority{
		cfg: cfg, url: base, log: cfg.Logger.With("authority", base), ctx: ctx, cancel: cancel,
		client: &http.Client{
			Transport: cfg.Transport,
			// The configured address is the one that is trusted, and its scheme decides what is
			// required of the others.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		ask: make(chan struct{}, 1), known: make(chan struct{}),
		lastErr: errors.New("the first fetch has not ended"),
	}
	a.loops.Go(a.keepKeys)
	a.loops.Go(a.keepRevocations)
	return a, nil
}

// Close ends what runs in the background and returns when it has ended. Tokens can still be checked
// with what is known. Safe to call more than once.
func (a *Authority) Close() {
	a.cancel()
	a.loops.Wait()
	a.client.CloseIdleConnections()
}

// Keys implements KeySource.
func (a *Authority) Keys() (*KeySet, error) {
	if set := a.set.Load(); set != nil {
		return set, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return nil, fmt.Errorf("no keys of %s yet: %w", a.url, a.lastErr)
}

// Wait blocks until there are keys, or ctx ends; its error then says why there are none.
func (a *Authority) Wait(ctx context.Context) error {
	select {
	case <-a.known:
	case <-a.ctx.Done():
	case <-ctx.Done():
	}
	_, err := a.Keys()
	return err
}

// Refresh implements KeySource. Any number of callers share one fetch, and between two there is a
// pause of 10 seconds at least, and of up to 5 minutes when they fail: tokens with invented kids
// cannot make this process bother the issuer more often. Meanwhile such tokens are refused at once.
func (a *Authority) Refresh(ctx context.Context, seen *KeySet) (*KeySet, error) {
	a.mu.Lock()
	if set := a.set.Load(); set != seen {
		a.mu.Unlock()
		return set, nil
	}
	if a.round == nil {
		if time.Now().Before(a.allowed) {
			a.mu.Unlock()
			return seen, nil
		}
		a.round = make(chan struct{})
		a.ask <- struct{}{} // there is room: only who makes a round asks
	}
	round := a.round
	a.mu.Unlock()
	select {
	case <-round:
		return a.set.Load(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-a.ctx.Done():
		return nil, errClosed
	}
}

// keepKeys is the only one to fetch keys, so there is never more than one fetch.
func (a *Authority) keepKeys() {
	failures := 0
	for {
		a.begin()
		err := a.fetchKeys(a.ctx)
		if a.ctx.Err() != nil {
			return
		}
		if err != nil {
			failures++
		} else {
			failures = 0
		}
		timer := time.NewTimer(a.end(err, failures))
		select {
		case <-a.ctx.Done():
			timer.Stop()
			return
		case <-a.ask:
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (a *Authority) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.round == nil {
		a.round = make(chan struct{})
	}
	select { // one who asked just before the timer fired gets this fetch
	case <-a.ask:
	default:
	}
}

// end tells who waits that a fetch has ended, and returns the time until the next.
func (a *Authority) end(err error, failures int) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case err != nil && failures == 1:
		a.log.Warn("the token issuer cannot be read; it is tried again", "error", err, "keys_known", a.set.Load() != nil)
	case err == nil && a.lastErr != nil:
		a.log.Info("the token issuer's keys are known", "issuer", a.set.Load().issuer)
	}
	a.lastErr = err
	close(a.round)
	a.round = nil
	pause := doubled(minRefresh, failures, maxRefresh)
	a.allowed = time.Now().Add(pause)
	switch {
	case err == nil:
		return jittered(a.cfg.RefreshInterval)
	case a.set.Load() == nil:
		return jittered(doubled(firstRetry, failures-1, maxRetry))
	}
	return jittered(min(pause, a.cfg.RefreshInterval))
}

// doubled is d doubled so many times, and at most limit.
func doubled(d time.Duration, times int, limit time.Duration) time.Duration {
	for ; times > 0 && d < limit; times-- {
		d *= 2
	}
	return min(d, limit)
}

// jittered takes up to a fifth off, so that verifiers that started together do not ask together.
func jittered(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}

// fetchKeys reads the discovery document and the keys. The description is read each time: an issuer
// may move its keys, or start to serve revocations, while this process runs.
func (a *Authority) fetchKeys(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	body, _, err := a.get(ctx, a.url+DiscoveryPath, "", maxDiscoveryBytes)
	if err != nil {
		return err
	}
	var d Discovery
	if err := json.Unmarshal(body, &d); err != nil {
		return fmt.Errorf("read %s: %w", a.url+DiscoveryPath, err)
	}
	if d.Issuer == "" {
		return fmt.Errorf("%s names no issuer", a.url+DiscoveryPath)
	}
	if a.cfg.Issuer != "" && strings.TrimSuffix(d.Issuer, "/") != strings.TrimSuffix(a.cfg.Issuer, "/") {
		return fmt.Errorf("%s says that its issuer is %q; it must be %q", a.url+DiscoveryPath, d.Issuer, a.cfg.Issuer)
	}
	if err := a.trusted("jwks_uri", d.JWKSURI); err != nil {
		return err
	}
	if d.RevocationListURI != "" {
		if err := a.trusted("revocation_list_uri", d.RevocationListURI); err != nil {
			return err
		}
	}
	if body, _, err = a.get(ctx, d.JWKSURI, "", maxKeySetBytes); err != nil {
		return err
	}
	set, err := ParseKeySet(d.Issuer, body)
	if err != nil {
		return err
	}
	a.list.Lock()
	if a.list.url != d.RevocationListURI {
		a.list.url, a.list.etag = d.RevocationListURI, ""
	}
	a.list.Unlock()
	// Keys without the revocations would let in what was revoked before this process started.
	if d.RevocationListURI != "" && a.revoked.Load() == nil {
		if err := a.fetchRevocations(ctx); err != nil {
			return err
		}
	}
	a.list.Lock()
	defer a.list.Unlock()
	set = set.without(a.list.keys) // an answer that was long on its way may be older than the list
	old := a.set.Load()
	if set.equal(old) {
		return nil // the same set again keeps what was accepted with it at hand
	}
	a.set.Store(set)
	if old == nil {
		close(a.known)
	}
	return nil
}

// withdraw takes revoked keys out of those that are known, without waiting for the next fetch of keys. The
// caller has the list's lock.
func (a *Authority) withdraw() {
	if old := a.set.Load(); old != nil {
		if left := old.without(a.list.keys); left != old {
			a.set.Store(left)
		}
	}
}

// trusted checks an address that the issuer gives: https must not hand over to http.
func (a *Authority) trusted(name, address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "https" && (u.Scheme != "http" || strings.HasPrefix(a.url, "https:"))) {
		return fmt.Errorf("%s gives %s %q; it must be an absolute URL of http or https, and of https when the authority's is", a.url+DiscoveryPath, name, address)
	}
	return nil
}

// get reads a URL. With an etag, body is nil when the content is still that one's.
func (a *Authority) get(ctx context.Context, address, etag string, limit int64) (body []byte, newETag string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("fetch %s: %w", address, err)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "faas-predict")
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	res, err := a.client.Do(req)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // the address is in the message already
		}
		return nil, "", err
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusNotModified && etag != "":
		return nil, etag, nil
	case res.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("it answered %s, not 200", res.Status)
	}
	body, err = io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = fmt.Errorf("the answer is longer than %d bytes", limit)
	}
	return body, res.Header.Get("ETag"), err
}

// Revoked implements Revocations with the list as last fetched.
func (a *Authority) Revoked(id, clientID string, issuedAt time.Time) bool {
	set := a.revoked.Load()
	return set != nil && set.Revoked(id, clientID, issuedAt)
}

func (a *Authority) keepRevocations() {
	select { // fetchKeys gets the first list
	case <-a.known:
	case <-a.ctx.Done():
		return
	}
	for {
		timer := time.NewTimer(jittered(a.cfg.RevocationBound / 2))
		select {
		case <-a.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		err := a.fetchRevocations(a.ctx)
		if a.ctx.Err() != nil {
			return
		}
		a.list.Lock()
		switch {
		case err != nil && !a.list.failing:
			a.log.Warn("revocations cannot be read; the last ones stay in force", "error", err)
		case err == nil && a.list.failing:
			a.log.Info("revocations can be read again")
		}
		a.list.failing = err != nil
		a.list.Unlock()
	}
}

func (a *Authority) fetchRevocations(ctx context.Context) error {
	a.list.Lock()
	address, etag := a.list.url, a.list.etag
	a.list.Unlock()
	if address == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.RevocationBound*2/5) // with the pause before it less than the bound
	defer cancel()
	body, etag, err := a.get(ctx, address, etag, maxRevocationBytes)
	if err != nil || body == nil {
		return err
	}
	var list RevocationList
	if err := json.Unmarshal(body, &list); err != nil {
		return fmt.Errorf("read %s: %w", address, err)
	}
	set := NewRevocationSet(list, time.Now())
	a.list.Lock()
	defer a.list.Unlock()
	if a.list.url == address { // it has not moved meanwhile
		a.revoked.Store(set) // with its etag, lest another's make this one look current
		a.list.etag, a.list.keys = etag, list.Keys
	}
	a.withdraw()
	return nil
}
