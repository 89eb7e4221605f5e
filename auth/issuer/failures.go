package issuer

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// How many wrong secrets are looked at before the next one has to wait.
const (
	clientFailures  = 10
	clientRefill    = 2 * time.Second // until one more is
	addressFailures = 20
	addressRefill   = time.Second
	// maxBuckets bounds the clients and the addresses that are remembered, each. One that is forgotten
	// may fail as often again, which is what having so many addresses buys.
	maxBuckets = 10_000
)

// failures limits wrong secrets by client and by address. Who has come with the right secret lately
// does not pass here (see secrets), so strangers cannot lock a client out by failing in its name. Nor
// can they after a restart, when nobody is known yet: an address that has not failed is heard even
// when its client is over the limit.
type failures struct {
	mu        sync.Mutex
	clients   *lru.Cache[string, bucket]
	addresses *lru.Cache[netip.Addr, bucket]
}

// bucket is how many failures are used up at a time. A missing one has none.
type bucket struct {
	used float64
	at   time.Time
}

func newFailures() *failures {
	f := &failures{}
	f.clients, _ = lru.New[string, bucket](maxBuckets) // fails for a size below 1 only
	f.addresses, _ = lru.New[netip.Addr, bucket](maxBuckets)
	return f
}

// drained is b at a later time.
func (b bucket) drained(now time.Time, refill time.Duration) bucket {
	return bucket{max(0, b.used-float64(now.Sub(b.at))/float64(refill)), now}
}

// begin counts an attempt as failed before it is looked at, so that many at once are not looked at
// together. When there were too many it counts nothing, and returns how long to wait.
func (f *failures) begin(name string, address netip.Addr, now time.Time) (wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, _ := f.clients.Get(name)
	a, _ := f.addresses.Get(address)
	c, a = c.drained(now, clientRefill), a.drained(now, addressRefill)
	if over := a.used + 1 - addressFailures; over > 0 {
		return time.Duration(over * float64(addressRefill))
	}
	over := c.used + 1 - clientFailures
	if over > 0 && a.used > 0 {
		return time.Duration(over * float64(clientRefill))
	}
	c.used, a.used = min(c.used+1, clientFailures), a.used+1
	f.clients.Add(name, c)
	f.addresses.Add(address, a)
	return 0
}

// succeeded takes back what begin counted.
func (f *failures) succeeded(name string, address netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, found := f.clients.Get(name); found {
		c.used = max(0, c.used-1)
		f.clients.Add(name, c)
	}
	if a, found := f.addresses.Get(address); found {
		a.used = max(0, a.used-1)
		f.addresses.Add(address, a)
	}
}

// ClientAddress is where a request came from: the peer, or what the last proxy that is not trusted was told by
// X-Forwarded-For. It is the zero Addr for a peer that has none, on a Unix socket.
func ClientAddress(r *http.Request, proxies []netip.Prefix) netip.Addr {
	trusted := func(a netip.Addr) bool {
		return slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	var address netip.Addr // the zero value for a peer without one, on a Unix socket
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		address = peer.Addr().Unmap()
	}
	if !trusted(address) {
		return address
	}
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for _, hop := range slices.Backward(hops) {
		a, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		if address = a.Unmap(); !trusted(address) {
			break
		}
	}
	return address
}

// limitedAs is what an address counts as: who has an IPv6 address has 2^64 of them.
func limitedAs(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}
