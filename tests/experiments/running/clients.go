package running

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	sdk "github.com/openfaas/go-sdk"
	"golang.org/x/sync/errgroup"
)

// Load is what clients do to a system.
type Load struct {
	Rate     float64       // calls/s, Poisson; +Inf is as many as 64 callers get answered
	Length   time.Duration // of the load
	Window   time.Duration // of a measurement
	Clients  int           // that hold a token each
	Lifetime time.Duration // of a token in a client's cache; 0 is as long as the issuer says
	Bad      []Bad         // tokens of calls with a bad one, each alike
	Share    float64       // of such calls
	Open     bool          // calls without tokens, of the function that is open to all
	Seed     uint64
}

// Result is what came of a load. Whatever was not answered as it should be is an error instead.
type Result struct {
	Calls, Model, Refused, Tokens int
	ModelRates, TokenRates        []float64 // by window, per second, at the time of the answer
	Fetch                         time.Duration
	Latencies                     Latencies // of all calls, from when each was due
	Took                          time.Duration
}

// quick is a go-sdk cache whose tokens hold for a time of the experiment's own.
type quick struct {
	*sdk.MemoryTokenCache
	player *player
}

// early is how long before its end go-sdk drops a token.
const early = 10 * time.Second

// Get is go-sdk's. A miss is followed by one fetch and one Set, so that the sums of their times differ by
// what fetching took.
func (q *quick) Get(key string) (*sdk.Token, bool) {
	token, ok := q.MemoryTokenCache.Get(key)
	if !ok {
		q.player.fetching.Add(-int64(time.Since(q.player.began)))
	}
	return token, ok
}

// Set keeps the token for the cache's lifetime from now on.
func (q *quick) Set(key string, token *sdk.Token) {
	q.player.fetching.Add(int64(time.Since(q.player.began)))
	q.player.fetched.Add(1)
	q.player.tokens.count()
	q.hold(key, token, q.player.Lifetime)
}

func (q *quick) hold(key string, token *sdk.Token, left time.Duration) {
	held := *token
	if q.player.Lifetime > 0 {
		held.Expiry = time.Now().Add(left + early)
	}
	q.MemoryTokenCache.Set(key, &held)
}

// static is a token source that has one: what a client got for its secret, which outlives the load.
type static string

func (s static) Token() (string, error) { return string(s), nil }

// windows counts events by when they happen.
type windows struct {
	mu     sync.Mutex
	began  time.Time
	length time.Duration
	counts []float64
}

func (w *windows) count() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := int(time.Since(w.began) / w.length); i >= 0 && i < len(w.counts) {
		w.counts[i]++
	}
}

func (w *windows) rates() []float64 {
	for i := range w.counts {
		w.counts[i] /= w.length.Seconds()
	}
	return w.counts
}

// player is a load under way.
type player struct {
	Load
	system         *System
	clients        []*sdk.Client
	bad            []*sdk.Client
	rng            []*rand.Rand // by caller
	model, tokens  *windows
	fetched        atomic.Int64
	fetching       atomic.Int64 // ns from misses to fetched tokens
	began          time.Time
	served, denied atomic.Int64
	mu             sync.Mutex
	workers        map[string][2]int // by process: its first and last count that were seen
	latencies      [callers]Latencies
}

// Play puts a load on the system, and returns when all of it is answered.
func (s *System) Play(ctx context.Context, l Load) (Result, error) {
	p := &player{Load: l, system: s, workers: map[string][2]int{}}
	n := int(l.Length / l.Window)
	p.model, p.tokens = &windows{length: l.Window, counts: make([]float64, n)}, &windows{length: l.Window, counts: make([]float64, n)}
	for caller := range callers {
		p.rng = append(p.rng, rand.New(rand.NewPCG(l.Seed, uint64(caller)+2)))
	}
	// Exchanges of InvokeFunction go through the default client: give it the same transport.
	before := http.DefaultTransport
	http.DefaultTransport = s.calls
	defer func() { http.DefaultTransport = before }()
	if err := p.prepare(ctx); err != nil {
		return Result{}, err
	}
	issued, err := s.issued()
	if err != nil {
		return Result{}, err
	}
	began := time.Now()
	p.began, p.model.began, p.tokens.began = began, began, began
	if err := open(ctx, l.Rate, l.Length, l.Seed, callers, p.call); err != nil {
		return Result{}, err
	}
	took := time.Since(began)
	return p.result(took, issued)
}

// prepare makes the clients, in the stationary state: of T + 1/a seconds a client has a token for T, of
// any age alike.
func (p *player) prepare(ctx context.Context) error {
	key := guarded + "." + sdk.DefaultNamespace
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	rng := rand.New(rand.NewPCG(p.Seed, 99))
	idle := float64(p.Clients) / max(p.Rate*(1-p.Share), 1e-9)
	for range p.Clients {
		cache := &quick{MemoryTokenCache: sdk.NewMemoryTokenCache(), player: p}
		p.clients = append(p.clients, p.client(cache))
		held := p.Lifetime == 0 || rng.Float64() < p.Lifetime.Seconds()/(p.Lifetime.Seconds()+idle)
		left := time.Duration(rng.Float64() * float64(p.Lifetime))
		if p.Open || !held || p.Lifetime > 0 && p.Lifetime < 2*time.Second {
			continue // short lives are in their state after a window or two, and over before the load begins
		}
		group.Go(func() error {
			token, err := p.system.exchange(p.system.subject, guarded)
			if err != nil || ctx.Err() != nil {
				return err
			}
			cache.hold(key, token, left)
			if p.Lifetime > 0 {
				return nil
			}
			// A token that holds for the whole load was seen before it: checking it for the first time is a cost of
			// the token and not of a call.
			status, err := p.system.status(ctx, token.IDToken)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("a new token is answered %d", status)
			}
			return err
		})
	}
	for _, b := range p.Bad {
		cache := sdk.NewMemoryTokenCache()
		cache.Set(key, &sdk.Token{IDToken: b.Token}) // which this client believes to hold for ever
		p.bad = append(p.bad, p.client(cache))
	}
	return group.Wait()
}

func (p *player) client(cache sdk.TokenCache) *sdk.Client {
	return sdk.NewClientWithOpts(p.system.gateway, &http.Client{Transport: p.system.calls},
		sdk.WithFunctionTokenSource(static(p.system.subject)), sdk.WithFunctionTokenCache(cache))
}

// call is one call of one client.
func (p *player) call(caller int, a arrival, began time.Time) error {
	rng := p.rng[caller]
	name, client, want := guarded, p.clients[rng.IntN(len(p.clients))], http.StatusOK
	switch {
	case p.Open:
		name = free
	case len(p.bad) > 0 && rng.Float64() < p.Share:
		i := rng.IntN(len(p.bad))
		client, want = p.bad[i], p.Bad[i].Status
	}
	req, err := http.NewRequest(http.MethodPost, "", strings.NewReader("5.1,3.5,1.4,0.2"))
	if err != nil {
		return err
	}
	resp, err := client.InvokeFunction(name, "", false, !p.Open, req)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return err
	}
	if resp.StatusCode != want {
		return fmt.Errorf("a call that should be answered %d was answered %d: %.300s", want, resp.StatusCode, answer)
	}
	p.latencies[caller] = append(p.latencies[caller], time.Since(began)-a.due)
	if want != http.StatusOK {
		p.denied.Add(1)
		return nil
	}
	p.served.Add(1)
	p.model.count()
	return p.reached(string(answer))
}

// reached remembers what the model says of its calls.
func (p *player) reached(answer string) error {
	process, text, _ := strings.Cut(answer, " ")
	count, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("the model answered %q", answer)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	seen, ok := p.workers[process]
	if !ok {
		seen = [2]int{count, count}
	}
	p.workers[process] = [2]int{min(seen[0], count), max(seen[1], count)}
	return nil
}

// result holds what the clients counted against what the model and the issuer did.
func (p *player) result(took time.Duration, issuedBefore int) (Result, error) {
	issued, err := p.system.issued()
	if err != nil {
		return Result{}, err
	}
	r := Result{Model: int(p.served.Load()), Refused: int(p.denied.Load()), Tokens: int(p.fetched.Load()), Took: took}
	r.Calls = r.Model + r.Refused
	inModel := 0
	for _, seen := range p.workers {
		inModel += seen[1] - seen[0] + 1
	}
	if inModel != r.Model {
		return r, fmt.Errorf("%d calls were answered by the model, which had %d", r.Model, inModel)
	}
	if issued-issuedBefore != r.Tokens {
		return r, fmt.Errorf("clients fetched %d tokens, the issuer gave %d", r.Tokens, issued-issuedBefore)
	}
	for _, l := range p.latencies {
		r.Latencies = append(r.Latencies, l...)
	}
	r.ModelRates, r.TokenRates = p.model.rates(), p.tokens.rates()
	if r.Tokens > 0 {
		r.Fetch = time.Duration(p.fetching.Load() / int64(r.Tokens))
	}
	return r, nil
}
