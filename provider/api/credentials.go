package api

import (
	"crypto/sha256"
	"crypto/subtle"
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
