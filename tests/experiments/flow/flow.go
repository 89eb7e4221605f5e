// Package flow has the paper's relations (1) and (2) between the flows of requests through the
// architecture, and what closes them: how often a token has to be fetched. It computes; what runs or
// simulates the flows stays outside.
//
// The paper draws the nodes that its symbols belong to in figures and does not define all of them in
// words. They are read here as follows: node a is the entry (the provider), which passes requests on,
// sends them to the token service, or ends them; node r is everything behind it; node c is the wrapper
// of one model (the watchdog), which gets its part of λr; node p is predict. Each of a and r is there
// M times, behind a balancer that splits evenly. Intensities are in requests/s, times in seconds.
package flow

import (
	"fmt"
	"math"
)

// Flows is one solution of (1) and (2).
type Flows struct {
	Clients float64 // I_i: what clients offer, token requests left out
	Token   float64 // I_t = λt: requests for tokens
	Entry   float64 // I = I_t + I_i, which is λa: everything that comes to the entry

	EntryOut    float64 // p_a0: share of I that ends at the entry, refused
	EntryToken  float64 // p_at: share of I that goes to the token service
	EntryOnward float64 // p_ar = 1 − p_a0 − p_at: share of I that goes on to a model
	Onward      float64 // λr = p_ar·I

	EntryEach  float64 // λ'a = λa/M: what each of M entries gets
	OnwardEach float64 // λ'r = λr/M: what goes on from each of them

	Wrapper        float64 // I_w = λr, which is λc: what comes to the wrapper
	WrapperOut     float64 // p_c0 (p_co in the paper) = 1 − p_ct − p_cp: share of λc that is refused there
	WrapperToken   float64 // p_ct = λt/λc: share of λc whose token had to be fetched
	WrapperPredict float64 // p_cp: share of λc that goes to predict at once
	Predict        float64 // λp = p_cp·λc + λt: what reaches the model
}

// Given is what (1) and (2) leave open.
type Given struct {
	Clients      float64 // I_i, requests/s
	EntryOut     float64 // p_a0, 0 to 1
	WrapperToken float64 // p_ct, 0 to 1
	WrapperOut   float64 // p_c0, 0 to 1 − p_ct
	Instances    int     // M, 1 or more
}

// Solve closes (1) and (2) by p_at·I = I_t: requests for tokens are all that goes to the token service.
// From I_t = p_ct·λr and λr = I − p_a0·I − I_t with I = I_i + I_t follows
//
//	I_t = p_ct·(1 − p_a0)·I_i / (1 + p_ct·p_a0)
//
// Shares outside their range and M below 1 are refused.
func Solve(g Given) (Flows, error) {
	switch {
	case !(g.Clients >= 0) || math.IsInf(g.Clients, 0):
		return Flows{}, fmt.Errorf("the offered flow I_i is %v; it must be a finite intensity of 0 or more", g.Clients)
	case !share(g.EntryOut) || !share(g.WrapperToken) || !share(g.WrapperOut):
		return Flows{}, fmt.Errorf("p_a0 = %v, p_ct = %v, p_c0 = %v; each must be from 0 to 1", g.EntryOut, g.WrapperToken, g.WrapperOut)
	case g.WrapperToken+g.WrapperOut > 1+1e-12:
		return Flows{}, fmt.Errorf("p_ct = %v and p_c0 = %v are more than 1 together", g.WrapperToken, g.WrapperOut)
	case g.Instances < 1:
		return Flows{}, fmt.Errorf("the number of instances M is %d; it must be 1 or more", g.Instances)
	}
	f := Flows{Clients: g.Clients, EntryOut: g.EntryOut, WrapperToken: g.WrapperToken, WrapperOut: g.WrapperOut}
	f.Token = g.WrapperToken * (1 - g.EntryOut) * g.Clients / (1 + g.WrapperToken*g.EntryOut)
	f.Entry = f.Token + f.Clients
	if f.Entry > 0 {
		f.EntryToken = f.Token / f.Entry
	}
	f.EntryOnward = 1 - f.EntryOut - f.EntryToken
	f.Onward = f.EntryOnward * f.Entry
	f.EntryEach = f.Entry / float64(g.Instances)
	f.OnwardEach = f.Onward / float64(g.Instances)
	f.Wrapper = f.Onward
	f.WrapperPredict = max(0, 1-g.WrapperToken-g.WrapperOut)
	f.Predict = f.WrapperPredict*f.Wrapper + f.Token
	return f, nil
}

func share(p float64) bool { return p >= 0 && p <= 1 }

// Holder says who keeps tokens, and so where a bad one is refused and how many caches there are. The
// paper's text allows both readings.
type Holder int

const (
	// Clients hold their own token, as go-sdk does: K = N caches. The entry checks, so what is bad ends
	// there: p_a0·I = b·G, p_c0 = 0.
	Clients Holder = iota
	// Wrappers hold a token for the calls that they pass to predict: K = M caches. They check, so what is
	// bad ends there: p_a0 = 0, p_c0 = b.
	Wrappers
)

// System is what the experiments turn.
type System struct {
	Offered   float64 // G: calls/s of all clients together, Poisson
	Bad       float64 // b: share of calls with a bad token, 0 to 1
	Clients   int     // N: clients; with Holder Clients the number of caches
	Instances int     // M: entries and wrappers; with Holder Wrappers the number of caches
	Lifetime  float64 // T: how long a fetched token is used, in seconds; 0 is for one call only
	Holder    Holder
}

// Caches is K.
func (s System) Caches() int {
	if s.Holder == Wrappers {
		return s.Instances
	}
	return s.Clients
}

// Flows solves (1) and (2) for the system.
func (s System) Flows() (Flows, error) {
	if !share(s.Bad) || s.Caches() < 1 || !(s.Lifetime >= 0) {
		return Flows{}, fmt.Errorf("b = %v, K = %d, T = %v s; b must be from 0 to 1, K 1 or more and T 0 or more", s.Bad, s.Caches(), s.Lifetime)
	}
	good := (1 - s.Bad) * s.Offered
	tokens := TokenFlow(good, s.Lifetime, s.Caches())
	given := Given{Clients: s.Offered, Instances: s.Instances}
	switch {
	case good == 0 && s.Holder == Wrappers:
		given.WrapperOut = s.Bad
	case good == 0:
		given.EntryOut = s.Bad
	case s.Holder == Wrappers:
		given.WrapperOut, given.WrapperToken = s.Bad, tokens/s.Offered
	default:
		given.EntryOut, given.WrapperToken = s.Bad*s.Offered/(s.Offered+tokens), tokens/good
	}
	return Solve(given)
}

// TokenFlow is the intensity of token requests of so many independent caches that get good calls/s
// together, each token being used for lifetime seconds: a cache fetches one, uses it for T, and then
// waits 1/a = K/g for its next call, so that a cycle with one request lasts T + K/g:
//
//	λt = K / (T + K/g) = g / (1 + g·T/K)
//
// It is g as T goes to 0 and K/T for large T.
func TokenFlow(good, lifetime float64, caches int) float64 {
	return good / (1 + good*lifetime/float64(caches))
}

// TokenFlowDelayed is TokenFlow where a request for a token takes some time, as in a real system, and
// calls that come to the same cache meanwhile fetch one too, as go-sdk's do. Of the a·τ such calls the
// last one's token replaces those before and holds the longest. It comes τ − (1 − exp(−aτ))/a after
// the first, on average, so that
//
//	λt = K·(1 + aτ) / (2τ − (1 − exp(−aτ))/a + T + 1/a),  a = g/K
func TokenFlowDelayed(good, lifetime float64, caches int, delay float64) float64 {
	a := good / float64(caches)
	if a*delay < 1e-9 {
		return TokenFlow(good, lifetime, caches)
	}
	cycle := 2*delay + math.Expm1(-a*delay)/a + lifetime + 1/a
	return float64(caches) * (1 + a*delay) / cycle
}
