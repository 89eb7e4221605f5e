package token

import (
	"net/http"
	"net/url"
	"strings"
)

// Bearer returns the token of a request: what follows "Bearer " in its one Authorization header (RFC
// 6750, section 2.1). Every error is an *Error: 401 without a code when there is no bearer token, 400
// when it is not clear which token is meant or the token stands where logs keep it, in the query.
func Bearer(r *http.Request) (string, error) {
	if inQuery(r.URL.RawQuery) {
		return "", errInQuery
	}
	values := r.Header["Authorization"]
	switch len(values) {
	case 0:
		return "", errNoToken
	case 1:
	default:
		return "", errManyHeaders
	}
	scheme, raw, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", errNoToken
	}
	raw = strings.TrimLeft(raw, " ")
	if raw == "" { // as faas-cli sends it when it is not logged in
		return "", errNoToken
	}
	if !isB64Token(raw) {
		return "", errHeaderSyntax
	}
	return raw, nil
}

// b64Token are the characters of what RFC 6750 calls b64token, but for the = at its end. A table, because
// every call's token passes here.
var b64Token = func() (t [256]bool) {
	for c := range t {
		t[c] = isBase64URL(byte(c)) || c == '.' || c == '~' || c == '+' || c == '/'
	}
	return t
}()

// isB64Token reports whether s is what RFC 6750 calls b64token.
func isB64Token(s string) bool {
	s = strings.TrimRight(s, "=")
	for i := range len(s) {
		if !b64Token[s[i]] {
			return false
		}
	}
	return s != ""
}

// inQuery reports whether a query has a parameter access_token, however it is spelled.
func inQuery(query string) bool {
	for query != "" {
		parameter := query
		if end := strings.IndexAny(query, "&;"); end >= 0 { // some servers still separate by semicolons
			parameter, query = query[:end], query[end+1:]
		} else {
			query = ""
		}
		name, _, _ := strings.Cut(parameter, "=")
		if strings.Contains(name, "%") {
			if decoded, err := url.QueryUnescape(name); err == nil {
				name = decoded
			}
		}
		if name == "access_token" {
			return true
		}
	}
	return false
}
