package token

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		pattern, namespace, function string
		want                         bool
	}{
		{"openfaas-fn:iris", "openfaas-fn", "iris", true},
		{"openfaas-fn:iris*", "openfaas-fn", "iris-2", true},
		{"openfaas-fn:*", "openfaas-fn", "iris", true},
		{"*:iris", "staging", "iris", true},
		{"*:*", "staging", "iris", true},
		{"*", "staging", "iris", true},
		{"dev-*:ir*s", "dev-a", "iris", true},

		{"openfaas-fn:*", "staging", "iris", false},
		{"openfaas-fn:*", "openfaas-fn-2", "iris", false},
		{"openfaas-fn:*", "my-openfaas-fn", "iris", false},
		{"openfaas-fn:iris", "openfaas-fn", "iris-2", false},
		{"openfaas-fn:iris", "openfaas-fn", "my-iris", false},
		{"openfaas-fn:IRIS", "openfaas-fn", "iris", false},
		{"openfaas*", "openfaas-fn", "iris", false},    // no * reaches across the colon
		{"**", "openfaas-fn", "iris", false},           // only * alone means everything
		{"o*:i*:s", "openfaas-fn", "iris", false},      // a colon in a function's name
		{"openfaas-fn:*", "openfaas-fn", "a:b", false}, // is in no name
		{"openfaas-fn:", "openfaas-fn", "", false},
		{":iris", "", "iris", false},
		{":", "", "", false},
		{"", "", "", false},
		{".*:.*", "openfaas-fn", "iris", false}, // not a regular expression
		{"openfaas-fn:ir?s", "openfaas-fn", "iris", false},
		{"openfaas-fn:[a-z]*", "openfaas-fn", "iris", false},
	} {
		if got := Match(test.pattern, test.namespace, test.function); got != test.want {
			t.Errorf("Match(%q, %q, %q) = %v", test.pattern, test.namespace, test.function, got)
		}
	}
}

func TestAuthorization(t *testing.T) {
	iris := Grants{Permissions: []string{"openfaas-fn:iris"}}
	for _, test := range []struct {
		name                  string
		claims                Claims
		namespace             string
		wantFunction, wantAll error
	}{
		{"function", Claims{Scope: "function", Function: iris}, "openfaas-fn", nil, errSystemScope},
		{"function of another namespace", Claims{Scope: "function", Function: iris}, "staging", errNotCallable, errSystemScope},
		{"stock token without a scope", Claims{Function: iris}, "openfaas-fn", nil, errSystemScope},
		{"no permission", Claims{Scope: "function"}, "openfaas-fn", errNotCallable, errSystemScope},
		{"nothing at all", Claims{}, "openfaas-fn", errNotCallable, errSystemScope},
		{"administrator", Claims{Scope: "system", Function: iris}, "openfaas-fn", errFunctionScope, nil},
		{"both", Claims{Scope: "system function", Function: iris}, "openfaas-fn", nil, nil},
		{"words like the scopes", Claims{Scope: "systems functions", Function: iris}, "openfaas-fn", errFunctionScope, errSystemScope},
		{"narrowed by the audience", Claims{Function: Grants{Permissions: []string{"*"}, Audience: []string{"openfaas-fn:wine"}}}, "openfaas-fn", errNotCallable, errSystemScope},
		{"audience without the permission", Claims{Function: Grants{Audience: []string{"*"}}}, "openfaas-fn", errNotCallable, errSystemScope},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := AuthorizeFunction(&test.claims, test.namespace, "iris"); got != test.wantFunction {
				t.Errorf("iris: %v, want %v", got, test.wantFunction)
			}
			if got := AuthorizeSystem(&test.claims); got != test.wantAll {
				t.Errorf("system: %v, want %v", got, test.wantAll)
			}
		})
	}
}

// What matchPart accepts, a regular expression with .* for * accepts too, and the other way round.
func FuzzMatchPart(f *testing.F) {
	f.Add("a*b*c", "aXbYc")
	f.Add("*", "")
	f.Add("a*a", "a")
	f.Add("**", "x")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if !utf8.ValidString(pattern) || !utf8.ValidString(s) {
			return // a regular expression takes an invalid byte for U+FFFD
		}
		want := regexp.MustCompile(`(?s)\A` + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `.*`) + `\z`)
		if got := matchPart(pattern, s); got != want.MatchString(s) {
			t.Errorf("matchPart(%q, %q) = %v", pattern, s, got)
		}
	})
}
