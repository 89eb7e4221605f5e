package token

import (
	"net/http"
	"net/url"
	"strings"
)

// bearer returns what stands for the token in a request, which may be anything; see Verifier.VerifyRequest.
func bearer(r *http.Request) (string, error) {
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
	return raw, nil
}

// isB64Token reports whether s is what RFC 6750 calls b64token.
func isB64Token(s string) bool {
	s = strings.TrimRight(s, "=")
	for i := range len(s) {
		if c := s[i]; !isBase64URL(c) && c != '.' && c != '~' && c != '+' && c != '/' {
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
