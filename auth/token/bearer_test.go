package token

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func TestBearer(t *testing.T) {
	for _, test := range []struct {
		name          string
		authorization []string
		target        string
		want          string
		err           *Error
	}{
		{"token", []string{"Bearer abc.def-_~+/=="}, "/", "abc.def-_~+/==", nil},
		{"scheme in other letters", []string{"bEARER abc"}, "/", "abc", nil},
		{"several spaces", []string{"Bearer   abc"}, "/", "abc", nil},
		{"no header", nil, "/", "", errNoToken},
		{"empty header", []string{""}, "/", "", errNoToken},
		{"another scheme", []string{"Basic YTpi"}, "/", "", errNoToken},
		{"scheme that begins alike", []string{"Bearerx abc"}, "/", "", errNoToken},
		{"scheme alone", []string{"Bearer"}, "/", "", errNoToken},
		{"scheme and a space", []string{"Bearer "}, "/", "", errNoToken},
		{"tab", []string{"Bearer\tabc"}, "/", "", errNoToken},
		{"two headers", []string{"Bearer abc", "Bearer def"}, "/", "", errManyHeaders},
		{"the same header twice", []string{"Bearer abc", "Bearer abc"}, "/", "", errManyHeaders},
		{"basic beside bearer", []string{"Basic YTpi", "Bearer abc"}, "/", "", errManyHeaders},
		{"token in the query", nil, "/?access_token=abc", "", errInQuery},
		{"token in the query and the header", []string{"Bearer abc"}, "/?a=b&access_token=abc", "", errInQuery},
		{"token in the query, spelled with percent signs", []string{"Bearer abc"}, "/?access%5Ftoken=abc", "", errInQuery},
		{"token in the query behind a semicolon", []string{"Bearer abc"}, "/?a=b;access_token=abc", "", errInQuery},
		{"token in the query without a value", []string{"Bearer abc"}, "/?access_token", "", errInQuery},
		{"query of the function's own", []string{"Bearer abc"}, "/?token=access_token&my_access_token=1&%=1", "abc", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, test.target, nil)
			for _, v := range test.authorization {
				r.Header.Add("Authorization", v)
			}
			got, err := bearer(r)
			if test.err != nil {
				wantRefused(t, "", err, test.err)
			} else if err != nil {
				t.Error(err)
			}
			if got != test.want {
				t.Errorf("got token %q, want %q", got, test.want)
			}
		})
	}
}

func TestWhatCannotBeATokenIsRefused(t *testing.T) {
	v := NewVerifier(Config{Keys: localKeys(t, newKey(t, EdDSA))})
	for name, authorization := range map[string]string{
		"nothing but padding":           "Bearer ==",
		"padding within":                "Bearer a=b",
		"two tokens":                    "Bearer abc def",
		"two credentials in one header": "Bearer abc, Bearer def",
		"quotes":                        `Bearer "abc"`,
		"no ASCII":                      "Bearer abc\u00e9",
		"a tab behind the space":        "Bearer \tabc",
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			r.Header["Authorization"] = []string{authorization}
			_, err := v.VerifyRequest(r)
			wantRefused(t, "", err, errHeaderSyntax)
		})
	}
}

// realmFor reads the challenge as faas-cli does.
func realmFor(challenge string) string {
	_, directives, _ := strings.Cut(challenge, " ")
	for directive := range strings.SplitSeq(directives, ", ") {
		if realm, found := strings.CutPrefix(directive, "realm="); found {
			return strings.Trim(realm, `"`)
		}
	}
	return ""
}

var challengeForm = regexp.MustCompile(`^Bearer realm="[^"\\]+"(, error="[a-z_]+", error_description="[\x20-\x21\x23-\x5b\x5d-\x7e]+")?$`)

func TestChallenge(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{errNoToken, `Bearer realm="IAM function invoke"`},
		{errExpired, `Bearer realm="IAM function invoke", error="invalid_token", error_description="the token has expired"`},
		{fmt.Errorf("call of iris: %w", errNotCallable), `Bearer realm="IAM function invoke", error="insufficient_scope", error_description="the token does not allow calling this function"`},
		{errInQuery, `Bearer realm="IAM function invoke", error="invalid_request", error_description="the token must be in the Authorization header, not in the query"`},
		{badToken("a \"quote\", a \\ and\r\nX: y\u00e9"), `Bearer realm="IAM function invoke", error="invalid_token", error_description="a 'quote', a / and??X: y?"`},
		{unavailable("later", errors.New("x")), `Bearer realm="IAM function invoke"`},
		{errors.New("something else"), `Bearer realm="IAM function invoke"`},
	} {
		got := Challenge(test.err)
		if got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
		if !challengeForm.MatchString(got) {
			t.Errorf("not of RFC 6750's form: %s", got)
		}
		if realmFor(got) != "IAM function invoke" {
			t.Errorf("faas-cli reads the realm %q", realmFor(got))
		}
	}
}

func FuzzBearer(f *testing.F) {
	f.Add("Bearer abc", "a=b")
	f.Add("bearer   a=", "access_token=1")
	f.Add("Basic x", "%61ccess_token")
	verifier := NewVerifier(Config{Keys: localKeys(f, newKey(f, EdDSA))})
	f.Fuzz(func(t *testing.T, authorization, query string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.RawQuery = query
		r.Header["Authorization"] = []string{authorization}
		raw, err := bearer(r)
		if err == nil {
			if raw == "" || !strings.HasSuffix(authorization, " "+raw) {
				t.Errorf("took the token %q from %q", raw, authorization)
			}
			if r.URL.Query().Has("access_token") {
				t.Errorf("took a token although there is one in the query %q", query)
			}
		}
		claims, err := verifier.VerifyRequest(r)
		var refused *Error
		if claims != nil || !errors.As(err, &refused) || refused.Status/100 != 4 {
			t.Fatalf("got %v and %v", claims, err)
		}
		if strings.ContainsAny(raw, " ,\"\t\r\n\x00") && len(raw) <= MaxBytes && refused != errHeaderSyntax {
			t.Errorf("token %q was refused for another reason: %v", raw, err)
		}
		if !challengeForm.MatchString(Challenge(err)) {
			t.Errorf("not of RFC 6750's form: %s", Challenge(err))
		}
	})
}
