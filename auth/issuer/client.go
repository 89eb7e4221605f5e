package issuer

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/faas-predict/faas-predict/auth/token"
)

// Limits on clients. A token must stay below token.MaxBytes with all the patterns that it may carry.
const (
	MaxClients      = 10_000
	maxPatternBytes = 3 << 10 // of one client's patterns together
	maxPattern      = 253
)

// Errors of the functions that change clients.
var (
	ErrNoClient = errors.New("there is no such client")
	ErrExists   = errors.New("there is such a client already")
)

// InvalidError says what is wrong with a client that somebody wants to register.
type InvalidError struct{ Rule string }

func (e *InvalidError) Error() string { return e.Rule }

// Client is a program that may ask for tokens.
type Client struct {
	// Name is its client id: 1 to 63 of a-z, 0-9 and -, not beginning with -.
	Name string `json:"name"`
	// Functions are patterns as token.Grants has them: what its tokens may call.
	Functions []string `json:"functions"`
	// Admin lets it ask for tokens of scope system.
	Admin bool `json:"admin,omitempty"`
	// Disabled clients get no tokens, and have none that hold.
	Disabled bool `json:"disabled,omitempty"`
	// AccessTTLSeconds replaces the issuer's AccessTTL for this client; 0 does not.
	AccessTTLSeconds int `json:"access_ttl_seconds,omitempty"`
	// Created is set by AddClient.
	Created time.Time `json:"created_at"`
}

type clientRecord struct {
	Client
	Secret secretHash `json:"secret"`
}

var clientName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// ValidatePattern refuses what token.Match would not read as somebody might think it does.
func ValidatePattern(pattern string) error {
	if pattern == "*" {
		return nil
	}
	namespace, function, found := strings.Cut(pattern, ":")
	for _, part := range []string{namespace, function} {
		if part == "" || !found || len(pattern) > maxPattern || strings.ContainsFunc(part, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._*", r)
		}) {
			return &InvalidError{fmt.Sprintf("function pattern %q: it must be NAMESPACE:FUNCTION of letters, digits, - . _ and * for any run of them, or * alone", printable(pattern))}
		}
	}
	return nil
}

func (c *Client) validate() error {
	if !clientName.MatchString(c.Name) {
		return &InvalidError{fmt.Sprintf("client name %q: it must be 1 to 63 of a-z, 0-9 and -, and not begin with -", printable(c.Name))}
	}
	// An administrator may deploy any function and read any secret, so leaving the patterns out is
	// taken to mean all. They are written down here, and no rule elsewhere makes an exception.
	if c.Admin && len(c.Functions) == 0 {
		c.Functions = []string{"*"}
	}
	if len(c.Functions) == 0 {
		return &InvalidError{fmt.Sprintf("client %s: it must have at least one function pattern, or be an administrator", c.Name)}
	}
	size := 0
	for _, pattern := range c.Functions {
		if err := ValidatePattern(pattern); err != nil {
			return err
		}
		size += len(pattern)
	}
	if size > maxPatternBytes {
		return &InvalidError{fmt.Sprintf("client %s: its function patterns must not be longer than %d bytes together, or its tokens become too long", c.Name, maxPatternBytes)}
	}
	if ttl := time.Duration(c.AccessTTLSeconds) * time.Second; c.AccessTTLSeconds != 0 && (ttl < MinAccessTTL || ttl > MaxAccessTTL) {
		return &InvalidError{fmt.Sprintf("client %s: the lifetime of its tokens must be from %s to %s", c.Name, MinAccessTTL, MaxAccessTTL)}
	}
	return nil
}

// AddClient registers a client and returns its secret, which is kept nowhere in readable form: it
// cannot be asked for again. The error is an *InvalidError, or ErrExists.
func (i *Issuer) AddClient(c Client) (secret string, err error) {
	if err := c.validate(); err != nil {
		return "", err
	}
	c.Created = i.now().UTC().Truncate(time.Second)
	c.Functions = slices.Clone(c.Functions)
	secret, hash := i.secrets.generate()
	record := &clientRecord{Client: c, Secret: hash}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.clients[c.Name] != nil {
		return "", fmt.Errorf("client %s: %w", c.Name, ErrExists)
	}
	if len(i.clients) >= MaxClients {
		return "", &InvalidError{fmt.Sprintf("client %s: there are %d clients, which is the most", c.Name, MaxClients)}
	}
	if err := i.update(func(tx *bbolt.Tx) error {
		if err := put(tx, clientsBucket, c.Name, record); err != nil {
			return err
		}
		return i.raiseTTL(tx, i.ttl(record))
	}); err != nil {
		return "", err
	}
	i.clients[c.Name] = record
	i.audit(entry{event: "client added", client: c.Name, functions: c.Functions, scope: scopeOf(record)})
	return secret, nil
}

// ResetSecret gives a client a new secret. The old one, and every token that it got, is worth nothing
// from now on: whoever resets a secret may do so because somebody else has it.
func (i *Issuer) ResetSecret(name string) (secret string, err error) {
	secret, hash := i.secrets.generate()
	err = i.change("client secret reset", name, func(c *clientRecord) *clientRecord {
		return &clientRecord{Client: c.Client, Secret: hash}
	})
	if err != nil {
		return "", err
	}
	return secret, nil
}

// SetDisabled disables a client, which takes back its tokens, or enables it again.
func (i *Issuer) SetDisabled(name string, disabled bool) error {
	event := "client enabled"
	if disabled {
		event = "client disabled"
	}
	return i.change(event, name, func(c *clientRecord) *clientRecord {
		changed := *c
		changed.Disabled = disabled
		return &changed
	})
}

// RemoveClient removes a client and takes back its tokens.
func (i *Issuer) RemoveClient(name string) error {
	return i.change("client removed", name, func(*clientRecord) *clientRecord { return nil })
}

// change replaces a client, or removes it, and takes back all its tokens.
func (i *Issuer) change(event, name string, to func(*clientRecord) *clientRecord) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	old := i.clients[name]
	if old == nil {
		return fmt.Errorf("client %q: %w", printable(name), ErrNoClient)
	}
	changed := to(old)
	until := i.allUntilNow(name)
	has := !old.Disabled // tokens; they were taken back when it was disabled, and it got none since
	if err := i.update(func(tx *bbolt.Tx) error {
		if has {
			if err := takeBackAll(tx, name, until); err != nil {
				return err
			}
		}
		if changed == nil {
			return tx.Bucket(clientsBucket).Delete([]byte(name))
		}
		return put(tx, clientsBucket, name, changed)
	}); err != nil {
		return err
	}
	if has {
		i.revoked.addClient(name, until)
	}
	i.secrets.forget(name)
	if changed == nil {
		delete(i.clients, name)
	} else {
		i.clients[name] = changed
	}
	i.audit(entry{event: event, client: name})
	return nil
}

// RevokeTokens takes back every token that a client has, which stays registered. The id may also be
// that of somebody who came with an outside issuer's token: ISSUER|SUBJECT.
func (i *Issuer) RevokeTokens(clientID string) error {
	if len(clientID) == 0 || len(clientID) > maxSubject {
		return &InvalidError{fmt.Sprintf("client id: it must have 1 to %d bytes", maxSubject)}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	until := i.allUntilNow(clientID)
	if err := i.update(func(tx *bbolt.Tx) error { return takeBackAll(tx, clientID, until) }); err != nil {
		return err
	}
	i.revoked.addClient(clientID, until)
	i.audit(entry{event: "tokens revoked", client: clientID})
	return nil
}

// takeBackAll revokes a client's access tokens and removes its refresh tokens.
func takeBackAll(tx *bbolt.Tx, clientID string, until revokedClient) error {
	if err := put(tx, revokedClientsBucket, clientID, until); err != nil {
		return err
	}
	if err := deleteWhere(tx, revokedBucket, func(t *revokedToken) bool { return t.ClientID == clientID }); err != nil {
		return err
	}
	return removeFamilies(tx, clientID)
}

// Clients returns all clients, by name.
func (i *Issuer) Clients() []Client {
	i.mu.RLock()
	defer i.mu.RUnlock()
	all := make([]Client, 0, len(i.clients))
	for _, name := range slices.Sorted(maps.Keys(i.clients)) {
		all = append(all, i.clients[name].Client)
	}
	return all
}

func (i *Issuer) ttl(c *clientRecord) time.Duration {
	if c.AccessTTLSeconds != 0 {
		return time.Duration(c.AccessTTLSeconds) * time.Second
	}
	return i.cfg.AccessTTL
}

// longestTTL is that of the tokens that are issued now. The caller has mu.
func (i *Issuer) longestTTL() time.Duration {
	longest := i.cfg.AccessTTL
	for _, c := range i.clients {
		longest = max(longest, i.ttl(c))
	}
	return longest
}

// scopeOf is all that a client may ask for.
func scopeOf(c *clientRecord) []string {
	if c.Admin {
		return []string{token.ScopeFunction, token.ScopeSystem}
	}
	return []string{token.ScopeFunction}
}
