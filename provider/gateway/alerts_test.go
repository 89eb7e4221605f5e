package gateway

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

func alertOf(status, function string, annotations ...string) Alert {
	a := Alert{Status: status, Labels: map[string]string{"alertname": "APIHighInvocationRate", "function_name": function}}
	if len(annotations) > 0 {
		a.Annotations = map[string]string{annotations[0]: annotations[1]}
	}
	return a
}

func TestAlertsScaleAsTheGatewayDoes(t *testing.T) {
	const most, least, factor = deployment.ScaleMaxLabel, deployment.ScaleMinLabel, deployment.ScaleFactorLabel
	for name, c := range map[string]struct {
		labels []string
		now    uint64
		alerts []Alert
		want   uint64
	}{
		"a step is a fifth of 20":           {nil, 1, []Alert{alertOf("firing", "iris")}, 5},
		"it is rounded up":                  {[]string{most, "6"}, 1, []Alert{alertOf("firing", "iris")}, 3},
		"it is the function's own":          {[]string{most, "10", factor, "50"}, 1, []Alert{alertOf("firing", "iris")}, 6},
		"not beyond the largest":            {[]string{most, "6"}, 5, []Alert{alertOf("firing", "iris")}, 6},
		"no cap of 5":                       {[]string{most, "100", factor, "100"}, 1, []Alert{alertOf("firing", "iris")}, 100},
		"again":                             {nil, 5, []Alert{alertOf("firing", "iris")}, 9},
		"two rules, two steps":              {nil, 1, []Alert{alertOf("firing", "iris"), alertOf("firing", "iris")}, 9},
		"resolved: the least":               {[]string{least, "2"}, 9, []Alert{alertOf("resolved", "iris")}, 2},
		"one rule fires yet":                {nil, 5, []Alert{alertOf("resolved", "iris"), alertOf("firing", "iris"), alertOf("resolved", "iris")}, 9},
		"factor 0":                          {[]string{factor, "0"}, 3, []Alert{alertOf("firing", "iris")}, 3},
		"factor 0, resolved":                {[]string{factor, "0"}, 3, []Alert{alertOf("resolved", "iris")}, 3},
		"from zero":                         {nil, 0, []Alert{alertOf("firing", "iris")}, 4},
		"resolved at zero":                  {nil, 0, []Alert{alertOf("resolved", "iris")}, 0},
		"a wanted number":                   {nil, 3, []Alert{alertOf("firing", "iris", "replicas", "12")}, 12},
		"a wanted number that is lower":     {nil, 12, []Alert{alertOf("firing", "iris", "replicas", "3")}, 3},
		"a wanted number rounds up":         {nil, 1, []Alert{alertOf("firing", "iris", "replicas", "2.000001")}, 3},
		"of two the larger":                 {nil, 1, []Alert{alertOf("firing", "iris", "replicas", "7"), alertOf("firing", "iris", "replicas", "4")}, 7},
		"a wanted number within the bounds": {[]string{least, "2", most, "8"}, 3, []Alert{alertOf("firing", "iris", "replicas", "1e9")}, 8},
		"and above the least":               {[]string{least, "2", most, "8"}, 3, []Alert{alertOf("firing", "iris", "replicas", "0")}, 2},
		"infinity":                          {[]string{most, "8"}, 3, []Alert{alertOf("firing", "iris", "replicas", "+Inf")}, 8},
		"other annotations":                 {nil, 1, []Alert{alertOf("firing", "iris", "summary", "high")}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			g, s, _ := open(t)
			s.add(iris, c.now, c.labels...)
			out := g.Alerts(t.Context(), c.alerts)
			if len(out) != 1 || out[0].Err != nil || out[0].Before != c.now || out[0].After != c.want || s.replicas(iris) != c.want {
				t.Errorf("%+v; %d replicas, want %d", out, s.replicas(iris), c.want)
			}
			if c.now == c.want && len(s.scalings()) > 0 {
				t.Errorf("scaled without need: %v", s.scalings())
			}
		})
	}
}

func TestAnAlertNamesItsFunctionAsTheMetricsDo(t *testing.T) {
	inShop := backend.Ref{Namespace: "shop", Name: "iris"}
	for name, labels := range map[string]map[string]string{
		"with namespace":                    {"function_name": "iris.shop"},
		"namespace apart":                   {"function_name": "iris", "namespace": "shop"},
		"the scraped target's own does not": {"function_name": "iris.shop", "namespace": "monitoring"},
	} {
		g, s, _ := open(t)
		s.add(iris, 1)
		s.add(inShop, 1)
		g.Alerts(t.Context(), []Alert{{Status: "firing", Labels: labels}})
		if s.replicas(iris) != 1 || s.replicas(inShop) != 5 {
			t.Errorf("%s: %v", name, s.scalings())
		}
	}
}

func TestOneBadAlertLeavesTheRest(t *testing.T) {
	g, s, metrics := open(t)
	cars := backend.Ref{Namespace: "shop", Name: "cars"}
	s.add(iris, 1)
	s.add(cars, 1)
	s.add(backend.Ref{Namespace: "shop", Name: "odd"}, 1, deployment.ScaleMaxLabel, "many") // as an older provider let pass
	out := g.Alerts(t.Context(), []Alert{
		{Status: "firing"},
		alertOf("firing", "no.such.name"), alertOf("firing", "unknown"), alertOf("firing", strings.Repeat("x", 5000)),
		alertOf("firing", "odd.shop"), alertOf("burning", "cars.shop"), alertOf("firing", "iris", "replicas", "lots"),
		alertOf("firing", "iris"), alertOf("firing", "cars.shop"),
	})
	if s.replicas(iris) != 5 || s.replicas(cars) != 5 {
		t.Errorf("%v", s.scalings())
	}
	done := 0
	for _, o := range out {
		switch {
		case o.Err == nil:
			done++
		case o.Again():
			t.Errorf("%q would be tried again: %v", o.Function, o.Err)
		}
	}
	if done != 2 || len(out) != 7 {
		t.Errorf("%+v", out)
	}
	text := gathered(t, metrics)
	if strings.Contains(text, "unknown") || strings.Contains(text, "xxx") {
		t.Error("a name that nobody deployed made a series")
	}
}

func TestAnAlertThatMayDoBetterLaterSaysSo(t *testing.T) {
	g, s, _ := open(t)
	s.add(iris, 1)
	s.fail = errors.New("the engine is away")
	out := g.Alerts(t.Context(), []Alert{alertOf("firing", "iris")})
	if len(out) != 1 || !out[0].Again() {
		t.Errorf("%+v", out)
	}
	s.mu.Lock()
	s.fail = nil
	s.mu.Unlock()
	if out := g.Alerts(t.Context(), []Alert{alertOf("firing", "iris")}); out[0].Err != nil || s.replicas(iris) != 5 {
		t.Errorf("%+v", out)
	}
}

func TestAnAdministratorScalesUpToTheFunctionsOwnLargestNumber(t *testing.T) {
	g, s, _ := open(t)
	s.add(iris, 1, deployment.ScaleMaxLabel, "4")
	if err := g.Scale(t.Context(), iris, 5); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), deployment.ScaleMaxLabel) {
		t.Errorf("5 of 4: %v", err)
	}
	for _, n := range []uint64{4, 0, 1} {
		if err := g.Scale(t.Context(), iris, n); err != nil || s.replicas(iris) != n {
			t.Errorf("%d: %v", n, err)
		}
	}
	free := backend.Ref{Namespace: "shop", Name: "free"}
	s.add(free, 1)
	if err := g.Scale(t.Context(), free, 64); err != nil {
		t.Errorf("without a label alerts stop at 20, and an administrator does not: %v", err)
	}
	if err := g.Scale(t.Context(), backend.Ref{Namespace: "shop", Name: "unknown"}, 1); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	if diff := cmp.Diff([]string{"iris.openfaas-fn=4", "iris.openfaas-fn=0", "iris.openfaas-fn=1", "free.shop=64"}, s.scalings()); diff != "" {
		t.Error(diff)
	}
}
