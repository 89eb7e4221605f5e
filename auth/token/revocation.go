package token

import "time"

// Revocations know which tokens were taken back before their time.
type Revocations interface {
	// Revoked reports whether a token no longer holds: by its id (the claim "jti"), or because the
	// client it was issued to lost everything issued until some time. It is asked for every call,
	// must not block, and is safe for concurrent use. id and clientID are empty, and issuedAt is zero,
	// when the token does not say.
	Revoked(id, clientID string, issuedAt time.Time) bool
}

// RevocationList is what an issuer serves for verifiers elsewhere, at the URL that its discovery
// document names as revocation_list_uri. It is of this project's making: RFC 7009 lets clients revoke,
// but no standard tells verifiers of it. An issuer without it is fine; its tokens hold until they expire.
type RevocationList struct {
	// Revoked are single tokens. An issuer drops one from the list when it has expired.
	Revoked []RevokedToken `json:"revoked"`
	// Clients are those that lost everything that was issued to them until some time.
	Clients []RevokedClient `json:"clients"`
	// Keys are the ids (kid) of signing keys that were revoked before their time, and with them all that
	// they signed.
	Keys []string `json:"keys,omitempty"`
}

// RevokedToken is a token that no longer holds.
type RevokedToken struct {
	ID string `json:"jti"`
	// Expires is when the token would have expired, in seconds of Unix time. Later it does not matter.
	Expires int64 `json:"exp"`
}

// RevokedClient says that of a client's tokens only those that were issued after Before hold.
type RevokedClient struct {
	ClientID string `json:"client_id"`
	// Before is in seconds of Unix time, and that second is still included: an issuer's times have no
	// finer resolution. A token without a time of issue counts as issued before.
	Before int64 `json:"before"`
}

// RevocationSet is a RevocationList as Verify asks it. It does not change.
type RevocationSet struct {
	tokens  map[string]struct{}
	clients map[string]int64
}

var _ Revocations = (*RevocationSet)(nil)

// NewRevocationSet takes over a list, without what has expired by now.
func NewRevocationSet(list RevocationList, now time.Time) *RevocationSet {
	s := &RevocationSet{tokens: make(map[string]struct{}), clients: make(map[string]int64, len(list.Clients))}
	expired := now.Add(-Leeway).Unix()
	for _, t := range list.Revoked {
		if t.Expires >= expired {
			s.tokens[t.ID] = struct{}{}
		}
	}
	for _, c := range list.Clients {
		s.clients[c.ClientID] = max(c.Before, s.clients[c.ClientID])
	}
	return s
}

// Revoked implements Revocations.
func (s *RevocationSet) Revoked(id, clientID string, issuedAt time.Time) bool {
	if id != "" {
		if _, revoked := s.tokens[id]; revoked {
			return true
		}
	}
	if clientID == "" {
		return false
	}
	before, known := s.clients[clientID]
	return known && issuedAt.Unix() <= before
}
