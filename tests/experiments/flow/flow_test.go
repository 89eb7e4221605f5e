package flow

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-9*(1+math.Abs(a)+math.Abs(b)) }

// G = 10,000 calls/s, no bad tokens, N = 1000 clients.
func TestTokenFlowHasTheDesignsCheckValues(t *testing.T) {
	for _, c := range []struct {
		lifetime, want, digit float64
	}{{0.1, 5000, 0.5}, {1, 909.1, 0.05}, {10, 99.0, 0.05}, {60, 16.6, 0.05}} {
		f, err := System{Offered: 10_000, Clients: 1000, Instances: 2, Lifetime: c.lifetime}.Flows()
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(f.Token-c.want) > c.digit {
			t.Errorf("T = %v s: %v token requests/s, want %v", c.lifetime, f.Token, c.want)
		}
	}
}

func TestTokenFlowHasItsLimits(t *testing.T) {
	if got := TokenFlow(10_000, 0, 1000); got != 10_000 {
		t.Errorf("T = 0: %v, want one request a call", got)
	}
	if got, want := TokenFlow(10_000, 1e6, 1000), 1000/1e6; math.Abs(got-want) > 1e-6*want {
		t.Errorf("T large: %v, want K/T = %v", got, want)
	}
	if got, want := TokenFlowDelayed(10_000, 1, 1000, 0), TokenFlow(10_000, 1, 1000); got != want {
		t.Errorf("no delay: %v, want %v", got, want)
	}
	// A fetch that takes for ever is one that every call makes.
	if got := TokenFlowDelayed(1000, 0, 1, 1e3); math.Abs(got-500) > 1 {
		t.Errorf("T = 0 and calls that all overlap: %v", got)
	}
}

// What the paper's Fig. 5 shows: λp = (1 − b)·G, whoever holds the tokens.
func TestRequestsToTheModelFallLinearlyWithBadTokens(t *testing.T) {
	for _, holder := range []Holder{Clients, Wrappers} {
		for step := range 11 {
			b := float64(step) / 10
			f, err := System{Offered: 10_000, Bad: b, Clients: 1000, Instances: 4, Lifetime: 10, Holder: holder}.Flows()
			if err != nil {
				t.Fatal(err)
			}
			if !near(f.Predict, (1-b)*10_000) {
				t.Errorf("holder %v, b = %v: %v requests/s reach the model", holder, b, f.Predict)
			}
		}
	}
}

func TestHoldersDifferInCachesAndInWhereBadTokensEnd(t *testing.T) {
	s := System{Offered: 10_000, Bad: 0.25, Clients: 1000, Instances: 4, Lifetime: 1}
	clients, err := s.Flows()
	if err != nil {
		t.Fatal(err)
	}
	s.Holder = Wrappers
	wrappers, err := s.Flows()
	if err != nil {
		t.Fatal(err)
	}
	if !near(clients.Token, TokenFlow(7500, 1, 1000)) || !near(wrappers.Token, TokenFlow(7500, 1, 4)) {
		t.Errorf("token requests: %v with clients, %v with wrappers", clients.Token, wrappers.Token)
	}
	if !near(clients.EntryOut*clients.Entry, 2500) || clients.WrapperOut != 0 || !near(clients.Wrapper, 7500) {
		t.Errorf("clients hold them: %+v", clients)
	}
	if wrappers.EntryOut != 0 || !near(wrappers.WrapperOut*wrappers.Wrapper, 2500) || !near(wrappers.Wrapper, 10_000) {
		t.Errorf("wrappers hold them: %+v", wrappers)
	}
}

// Every line of (1) and (2), and the closure, as the paper writes them.
func TestASolutionFulfilsEveryRelation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		given := Given{
			Clients: rapid.Float64Range(0, 1e6).Draw(t, "I_i"), EntryOut: rapid.Float64Range(0, 1).Draw(t, "p_a0"),
			WrapperToken: rapid.Float64Range(0, 1).Draw(t, "p_ct"), Instances: rapid.IntRange(1, 100).Draw(t, "M"),
		}
		given.WrapperOut = rapid.Float64Range(0, 1).Draw(t, "p_c0") * (1 - given.WrapperToken)
		f, err := Solve(given)
		if err != nil {
			t.Fatal(err)
		}
		m := float64(given.Instances)
		for _, r := range []struct {
			relation    string
			left, right float64
		}{
			{"λr = p_ar·I", f.Onward, f.EntryOnward * f.Entry},
			{"p_ar = 1 − p_a0 − p_at", f.EntryOnward, 1 - f.EntryOut - f.EntryToken},
			{"λ'a = λa/M", f.EntryEach, f.Entry / m},
			{"λ'r = λr/M", f.OnwardEach, f.Onward / m},
			{"I = I_t + I_i", f.Entry, f.Token + f.Clients},
			{"I_w = λr", f.Wrapper, f.Onward},
			{"λp = p_cp·λc + λt", f.Predict, f.WrapperPredict*f.Wrapper + f.Token},
			{"λt = p_ct·λc", f.Token, f.WrapperToken * f.Wrapper},
			{"p_c0 = 1 − p_ct − p_cp", f.WrapperOut, 1 - f.WrapperToken - f.WrapperPredict},
			{"p_at·I = I_t", f.EntryToken * f.Entry, f.Token},
		} {
			if !near(r.left, r.right) {
				t.Errorf("%s: %v and %v", r.relation, r.left, r.right)
			}
		}
		if f.EntryOnward < -1e-12 || f.EntryToken < 0 || f.EntryToken > 1 {
			t.Errorf("shares outside 0 to 1: %+v", f)
		}
	})
}

func TestSystemsAgreeWithTheirTokenFlow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := System{
			Offered: rapid.Float64Range(0.1, 1e6).Draw(t, "G"), Bad: rapid.Float64Range(0, 1).Draw(t, "b"),
			Clients: rapid.IntRange(1, 100_000).Draw(t, "N"), Instances: rapid.IntRange(1, 100).Draw(t, "M"),
			Lifetime: rapid.Float64Range(0, 1e4).Draw(t, "T"), Holder: Holder(rapid.IntRange(0, 1).Draw(t, "holder")),
		}
		f, err := s.Flows()
		if err != nil {
			t.Fatal(err)
		}
		good := (1 - s.Bad) * s.Offered
		if !near(f.Token, TokenFlow(good, s.Lifetime, s.Caches())) || !near(f.Predict, good) {
			t.Errorf("λt = %v, λp = %v", f.Token, f.Predict)
		}
	})
}

func TestGivensOutsideTheirRangeAreRefused(t *testing.T) {
	for _, g := range []Given{
		{Clients: -1, Instances: 1}, {Clients: math.NaN(), Instances: 1}, {Clients: math.Inf(1), Instances: 1},
		{EntryOut: 1.1, Instances: 1}, {WrapperToken: -0.1, Instances: 1}, {WrapperOut: math.NaN(), Instances: 1},
		{WrapperToken: 0.6, WrapperOut: 0.6, Instances: 1}, {Clients: 1},
	} {
		if f, err := Solve(g); err == nil {
			t.Errorf("%+v gave %+v", g, f)
		}
	}
	for _, s := range []System{{Offered: 1, Instances: 1}, {Offered: 1, Clients: 1, Instances: 1, Bad: 2}, {Offered: 1, Clients: 1, Instances: 1, Lifetime: -1}} {
		if f, err := s.Flows(); err == nil {
			t.Errorf("%+v gave %+v", s, f)
		}
	}
}
