package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"
)

// Credentials are the user and password of the API. They are kept as digests, so that comparing
// takes the same time whatever and however much is wrong.
type Credentials struct{ user, password [sha256.Size]byte }

// NewCredentials returns credentials that match exactly the user and password.
func NewCredentials(user, password string) *Credentials {
	return &Credentials{sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))}
}

func (c *Credentials) match(user, password string) bool {
	u, p := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))
	return subtle.ConstantTimeCompare(u[:], c.user[:])&subtle.ConstantTimeCompare(p[:], c.password[:]) == 1
}

// require lets requests at and below prefix pass with the credentials only, whether or not there is
// such a route: a route that is added later cannot be forgotten here.
func (c *Credentials) require(prefix string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path := r.URL.Path; path == prefix || strings.HasPrefix(path, prefix+"/") {
			user, password, given := r.BasicAuth()
			if !given || !c.match(user, password) {
				w.Header().Set("WWW-Authenticate", `Basic realm="Restricted"`)
				http.Error(w, "invalid credentials", http.StatusUnauthorized)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}
