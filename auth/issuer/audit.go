package issuer

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/faas-predict/faas-predict/auth/token"
)

// entry is one line of the audit log. It has nothing that a stranger wrote: whatever people send, it may
// be a secret in the wrong field.
type entry struct {
	event     string
	client    string
	subject   string
	id        string // jti
	grant     string
	scope     []string
	functions []string // that may be called
	audience  []string // to which that is narrowed
	key       string
	remote    netip.Addr
	failure   string // error code
	reason    string
}

// issued takes note of a token that was made.
func (e *entry) issued(c *token.Claims) {
	e.client = c.ClientID
	e.about(c)
}

// about takes note of a token whose client need not be the one that asks.
func (e *entry) about(c *token.Claims) {
	e.subject, e.id, e.scope = c.Subject, c.ID, strings.Fields(c.Scope)
	e.functions, e.audience = c.Function.Permissions, c.Function.Audience
}

// named returns the name of the client that a request says it is from, if there is such a client.
func (i *Issuer) named(q *request) string {
	name := q.form.Get("client_id")
	if inHeader, _, ok := q.BasicAuth(); ok {
		name = inHeader
	}
	i.mu.RLock()
	defer i.mu.RUnlock()
	if i.clients[name] == nil {
		return ""
	}
	return name
}

func (i *Issuer) audit(e entry) {
	attrs := []slog.Attr{slog.Bool("audit", true), slog.String("event", e.event)}
	for _, a := range []struct{ name, value string }{
		{"client_id", e.client}, {"sub", e.subject}, {"jti", e.id}, {"grant_type", e.grant}, {"scope", strings.Join(e.scope, " ")},
		{"functions", strings.Join(e.functions, " ")}, {"audience", strings.Join(e.audience, " ")}, {"kid", e.key},
		{"error", e.failure}, {"reason", e.reason},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.name, a.value))
		}
	}
	if e.remote.IsValid() {
		attrs = append(attrs, slog.String("remote", e.remote.String()))
	}
	i.log.LogAttrs(context.Background(), slog.LevelInfo, e.event, attrs...)
}
