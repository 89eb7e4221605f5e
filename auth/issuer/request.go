package issuer

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxBody bounds the body of a request.
const maxBody = 64 << 10

// Error codes of RFC 6749, section 5.2, and RFC 8693, section 2.2.2.
const (
	codeInvalidRequest   = "invalid_request"
	codeInvalidClient    = "invalid_client"
	codeInvalidGrant     = "invalid_grant"
	codeUnsupportedGrant = "unsupported_grant_type"
	codeInvalidScope     = "invalid_scope"
	codeInvalidTarget    = "invalid_target"
	codeUnauthorized     = "unauthorized_client"
	codeUnavailable      = "temporarily_unavailable"
	codeServerError      = "server_error"
)

// refusal is an error of one of the endpoints.
type refusal struct {
	status int
	code   string
	// reason is a sentence of our own. about is what the client sent, and stands in its answer but in
	// no log: people put secrets into the strangest fields.
	reason, about string
	retry         time.Duration
	cause         error // for the log
}

func refuse(code, reason string) *refusal {
	return &refusal{status: http.StatusBadRequest, code: code, reason: reason}
}

// refuseAbout is refuse with a part of the request that the reason is about.
func refuseAbout(code, about, reason string) *refusal {
	return &refusal{status: http.StatusBadRequest, code: code, reason: reason, about: about}
}

func failed(cause error) *refusal {
	return &refusal{status: http.StatusInternalServerError, code: codeServerError, reason: "the issuer could not do it; its log says why", cause: cause}
}

func later(reason string, retry time.Duration) *refusal {
	return &refusal{status: http.StatusServiceUnavailable, code: codeUnavailable, reason: reason, retry: retry}
}

func (r *refusal) description() string {
	if r.about == "" {
		return r.reason
	}
	return printable(r.about) + ": " + r.reason
}

// printable cuts text of a stranger to what RFC 6749 admits in error_description, and to a bearable
// length.
func printable(s string) string {
	const longest = 100
	if len(s) > longest {
		s = s[:longest] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '?'
		}
		return r
	}, s)
}

// request is what the endpoints work on.
type request struct {
	*http.Request
	form    url.Values
	address netip.Addr
}

// repeatable are the parameters that may come more than once (RFC 8693, section 2.1). No other may:
// two readers of such a request could each see another one.
var repeatable = map[string]bool{"audience": true, "resource": true}

// read takes the form out of a request. Nothing may be in the query, which logs keep.
func (i *Issuer) read(w http.ResponseWriter, r *http.Request) (*request, *refusal) {
	q := &request{Request: r, address: ClientAddress(r, i.cfg.TrustedProxies)}
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return q, refuse(codeInvalidRequest, "parameters must be in the body, not in the query")
	}
	if len(r.Header["Authorization"]) > 1 {
		return q, refuse(codeInvalidRequest, "there must be at most one Authorization header")
	}
	types := r.Header["Content-Type"]
	if len(types) != 1 {
		return q, refuse(codeInvalidRequest, "there must be one Content-Type, application/x-www-form-urlencoded")
	}
	if kind, _, err := mime.ParseMediaType(types[0]); err != nil || kind != "application/x-www-form-urlencoded" {
		return q, refuse(codeInvalidRequest, "the Content-Type must be application/x-www-form-urlencoded")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		return q, &refusal{status: http.StatusRequestEntityTooLarge, code: codeInvalidRequest, reason: fmt.Sprintf("the body must not be longer than %d bytes", maxBody)}
	}
	if err != nil {
		return q, refuse(codeInvalidRequest, "the body ended early")
	}
	form, refused := parseForm(string(body))
	q.form = form
	return q, refused
}

// parseForm reads a body as RFC 6749 wants it read: a parameter without a value is one that is not
// there (section 3.1).
func parseForm(body string) (url.Values, *refusal) {
	form, err := url.ParseQuery(body)
	if err != nil { // which may quote the body
		return nil, refuse(codeInvalidRequest, "the body is not a form: it has a semicolon or a broken % escape")
	}
	for name, values := range form {
		if len(values) > 1 && !repeatable[name] {
			return nil, refuseAbout(codeInvalidRequest, name, "the parameter must not come more than once")
		}
		given := values[:0]
		for _, v := range values {
			if v != "" {
				given = append(given, v)
			}
		}
		if len(given) == 0 {
			delete(form, name)
		} else {
			form[name] = given
		}
	}
	return form, nil
}

// basicName is what the challenge for client_secret_basic calls this place.
const basicName = "faas-auth"

// credentials are a client's id and secret, from one of the two places they may be in. given is false
// when there are none.
func (q *request) credentials() (name, secret string, given bool, refused *refusal) {
	name, secret = q.form.Get("client_id"), q.form.Get("client_secret")
	header := q.Header.Get("Authorization")
	if header == "" {
		return name, secret, secret != "", nil
	}
	if secret != "" {
		return "", "", false, refuse(codeInvalidRequest, "the client's secret must be in the header or in the body, not in both")
	}
	inHeader, secret, ok := q.BasicAuth()
	if ok {
		var errs [2]error
		inHeader, errs[0] = url.QueryUnescape(inHeader) // RFC 6749, section 2.3.1
		secret, errs[1] = url.QueryUnescape(secret)
		ok = errs[0] == nil && errs[1] == nil
	}
	if !ok {
		return "", "", false, unknownClient("the Authorization header must be Basic, with id and secret encoded as in a form")
	}
	if name != "" && name != inHeader {
		return "", "", false, refuse(codeInvalidRequest, "client_id differs between header and body")
	}
	return inHeader, secret, true, nil
}

func unknownClient(reason string) *refusal {
	return &refusal{status: http.StatusUnauthorized, code: codeInvalidClient, reason: reason}
}

// wrongSecret says no more than that: which of the two is wrong is nobody's business.
const wrongSecret = "the client's id or its secret is wrong"

// authenticate returns the client that the request is from. It need no longer be registered as it is
// when the caller gets it; see current.
func (i *Issuer) authenticate(q *request) (*clientRecord, *refusal) {
	name, secret, given, refused := q.credentials()
	if refused != nil {
		return nil, refused
	}
	if !given {
		return nil, unknownClient("the client must send its id and its secret")
	}
	i.mu.RLock()
	c := i.clients[name]
	i.mu.RUnlock()
	if !i.secrets.known(c, name, secret) {
		if refused := i.checkSecret(q, c, name, secret); refused != nil {
			return nil, refused
		}
	}
	if c.Disabled {
		return nil, unknownClient("the client is disabled")
	}
	return c, nil
}

func (i *Issuer) checkSecret(q *request, c *clientRecord, name, secret string) *refusal {
	counted := name
	if !clientName.MatchString(name) {
		counted = "" // of any length; all that no client can have count as one
	}
	address := limitedAs(q.address)
	if wait := i.failures.begin(counted, address, i.now()); wait > 0 {
		return &refusal{status: http.StatusTooManyRequests, code: codeUnavailable, reason: "too many wrong secrets; try again later", retry: wait}
	}
	right, err := i.secrets.check(q.Context(), c, name, secret)
	if right || err != nil {
		i.failures.succeeded(counted, address) // one that was not looked at did not fail
	}
	switch {
	case errors.Is(err, errBusy):
		return later("too many client secrets are being checked; try again shortly", time.Second)
	case err != nil:
		return later("the client left", 0)
	case !right:
		return unknownClient(wrongSecret)
	}
	return nil
}

// current refuses a client that was changed since authenticate returned it. The caller has mu.
func (i *Issuer) current(c *clientRecord) *refusal {
	if i.clients[c.Name] != c {
		return unknownClient(wrongSecret)
	}
	return nil
}

// answerRefusal writes an error as RFC 6749, section 5.2, wants it.
func answerRefusal(w http.ResponseWriter, r *refusal) {
	if r.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="`+basicName+`", charset="UTF-8"`)
	}
	if r.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((r.retry+time.Second-1)/time.Second)))
	}
	answer(w, r.status, struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{r.code, r.description()})
}
