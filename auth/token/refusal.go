package token

import (
	"errors"
	"net/http"
	"strings"
)

// Codes of RFC 6750, section 3.1.
const (
	CodeInvalidRequest    = "invalid_request"
	CodeInvalidToken      = "invalid_token"
	CodeInsufficientScope = "insufficient_scope"
)

// Error says why a request is not let through.
type Error struct {
	// Status is the HTTP status of the answer: 400, 401, 403, or 503 when tokens cannot be checked at
	// the moment and trying again may help.
	Status int
	// Code is RFC 6750's error code. It is empty for a request without a token, which that RFC wants
	// answered without one, and for 503.
	Code string
	// Description is one sentence for people. It never contains a part of the token.
	Description string

	cause error
}

func (e *Error) Error() string {
	if e.cause != nil {
		return e.Description + ": " + e.cause.Error()
	}
	return e.Description
}

func (e *Error) Unwrap() error { return e.cause }

// The refusals are made once: a flood of bad tokens must not cost memory. Their wording gives away
// nothing that whoever wrote the token does not know, so telling them apart, also by time, is harmless.
var (
	errNoToken       = &Error{Status: http.StatusUnauthorized, Description: "a bearer token is needed in the Authorization header"}
	errManyHeaders   = badRequest("there must be one Authorization header, not several")
	errInQuery       = badRequest("the token must be in the Authorization header, not in the query")
	errHeaderSyntax  = badRequest("the Authorization header must be: Bearer, a space, and one token of the characters A-Z a-z 0-9 - . _ ~ + / =")
	errTooLong       = badToken("the token is longer than 8 KiB")
	errMalformed     = badToken("the token is not a compact JWS with a JSON header and JSON claims")
	errAlgorithm     = badToken("the token must be signed with EdDSA, ES256 or RS256, as the key that its kid names is made for")
	errType          = badToken("the token's typ must be at+jwt or JWT")
	errCritical      = badToken("the token's header asks for an extension (crit), and none is understood")
	errNoKeyID       = badToken("the token's header must name its key (kid)")
	errUnknownKey    = badToken("the token is signed with a key that its issuer does not publish")
	errSignature     = badToken("the token's signature is wrong")
	errIssuer        = badToken("the token is of another issuer")
	errAudience      = badToken("the token is for another audience")
	errNoExpiry      = badToken("the token has no time of expiry (exp)")
	errExpired       = badToken("the token has expired")
	errNotYet        = badToken("the token is not valid yet (nbf)")
	errIssuedLater   = badToken("the token was issued in the future (iat)")
	errRevoked       = badToken("the token has been revoked")
	errNotCallable   = forbidden("the token does not allow calling this function")
	errFunctionScope = forbidden("the token's scope must contain " + ScopeFunction)
	errSystemScope   = forbidden("the token's scope must contain " + ScopeSystem)
)

func badRequest(description string) *Error {
	return &Error{Status: http.StatusBadRequest, Code: CodeInvalidRequest, Description: description}
}

func badToken(description string) *Error {
	return &Error{Status: http.StatusUnauthorized, Code: CodeInvalidToken, Description: description}
}

func forbidden(description string) *Error {
	return &Error{Status: http.StatusForbidden, Code: CodeInsufficientScope, Description: description}
}

// unavailable is for what may be different in a moment; the cause is for the log.
func unavailable(description string, cause error) *Error {
	return &Error{Status: http.StatusServiceUnavailable, Description: description, cause: cause}
}

// Realm of every challenge. faas-cli fetches a token and tries again only when it reads exactly this,
// which is what stock of-watchdog sends.
const Realm = "IAM function invoke"

// Challenge is the value of WWW-Authenticate for an error of this package (RFC 6750, section 3). The
// realm comes first, and directives are separated by a comma and one space, because that is how
// faas-cli takes the header apart.
func Challenge(err error) string {
	challenge := `Bearer realm="` + Realm + `"`
	var refused *Error
	if !errors.As(err, &refused) || refused.Code == "" {
		return challenge
	}
	return challenge + `, error="` + refused.Code + `", error_description="` + quotable(refused.Description) + `"`
}

// quotable replaces what RFC 6750 does not admit in error_description.
func quotable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r == '\\':
			return '/'
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, s)
}
