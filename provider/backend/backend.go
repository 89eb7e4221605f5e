// Package backend says what runs functions, whatever that is: processes of this machine or an
// engine's containers. The API room calls these interfaces and nothing else of a backend.
//
// No HTTP, no routes and no storage may enter here.
package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"
)

// DefaultNamespace is where functions live whose caller names no namespace. It always exists.
const DefaultNamespace = "openfaas-fn"

// Errors that backends wrap; callers find them with errors.Is.
var (
	ErrNotFound  = errors.New("not found")
	ErrExists    = errors.New("already exists")
	ErrInvalid   = errors.New("invalid")         // the request breaks a rule; asking again does not help
	ErrInUse     = errors.New("in use")          // something else still needs it
	ErrFailed    = errors.New("failed to start") // the model's own fault; the text says why, traceback included
	ErrNotReady  = errors.New("not ready")       // worth asking again soon
	ErrScaledOff = errors.New("scaled to zero")
)

// Ref names a function.
type Ref struct{ Namespace, Name string }

// String is the form that URLs use: name.namespace.
func (r Ref) String() string { return r.Name + "." + r.Namespace }

// maxName is the longest DNS label.
const maxName = 63

// ValidName reports whether s is a DNS label (RFC 1123), which every name here must be. It is on the
// path of every call, where a regular expression would show.
func ValidName(s string) bool {
	if s == "" || len(s) > maxName || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// CheckName is ValidName with an error that says what kind of name it was about.
func CheckName(kind, s string) error {
	if ValidName(s) {
		return nil
	}
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return fmt.Errorf("%w %s name %q: use 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends", ErrInvalid, kind, s)
}

// ParseRef reads "name" or "name.namespace"; namespace is what holds when the name carries none.
// Both may be given only when they agree.
func ParseRef(name, namespace string) (Ref, error) {
	name, suffix, found := strings.Cut(name, ".")
	switch {
	case found && namespace != "" && suffix != namespace:
		return Ref{}, fmt.Errorf("%w function name: it says namespace %q, the request says %q", ErrInvalid, suffix, namespace)
	case found:
		namespace = suffix
	case namespace == "":
		namespace = DefaultNamespace
	}
	if err := CheckName("function", name); err != nil {
		return Ref{}, err
	}
	if err := CheckName("namespace", namespace); err != nil {
		return Ref{}, err
	}
	return Ref{Namespace: namespace, Name: name}, nil
}

// Functions is what a backend does with functions. Every method may be called at any time from any
// goroutine; changes to one function happen one after the other.
type Functions interface {
	// List returns the namespace's functions sorted by name: what was deployed, and its status.
	List(ctx context.Context, namespace string) ([]types.FunctionStatus, error)
	// Get returns one function; with usage also its CPU (millicores since the last time it was
	// asked) and memory.
	Get(ctx context.Context, ref Ref, usage bool) (types.FunctionStatus, error)
	// Create deploys a new function and returns when it is ready to be called, MUST refuse one that
	// exists with ErrExists, and MUST leave nothing behind when it fails.
	Create(ctx context.Context, spec types.FunctionDeployment) error
	// Update replaces a function and MUST keep the old one answering until the new one is ready.
	// When the new one fails the old one stays and the error says why. No accepted call is lost.
	Update(ctx context.Context, spec types.FunctionDeployment) error
	// Scale sets the number of replicas and returns when they are there.
	Scale(ctx context.Context, ref Ref, replicas uint64) error
	// Delete returns when the function can no longer be called; what it had accepted is answered.
	Delete(ctx context.Context, ref Ref) error
	// Logs sends what was asked for and closes the channel at its end: with Follow that is when ctx
	// ends or the function is removed.
	Logs(ctx context.Context, query logs.Request) (<-chan logs.Message, error)
}

// Secrets is what a backend does with secrets. A value is given to the functions that name it and
// to nobody else; List never returns values.
type Secrets interface {
	ListSecrets(ctx context.Context, namespace string) ([]types.Secret, error)
	CreateSecret(ctx context.Context, secret types.Secret) error
	UpdateSecret(ctx context.Context, secret types.Secret) error
	DeleteSecret(ctx context.Context, name, namespace string) error
}

// Namespaces is what a backend does with namespaces.
type Namespaces interface {
	ListNamespaces(ctx context.Context) ([]types.FunctionNamespace, error)
	CreateNamespace(ctx context.Context, namespace types.FunctionNamespace) error
	UpdateNamespace(ctx context.Context, namespace types.FunctionNamespace) error
	// DeleteNamespace MUST refuse one that still holds functions with ErrInUse.
	DeleteNamespace(ctx context.Context, name string) error
}

// Backend is a whole backend.
type Backend interface {
	Functions
	Traffic
	Secrets
	Namespaces
	// Close stops every function after it answered what it had accepted, within ctx.
	Close(ctx context.Context) error
}

// Model is a stored bundle that a function runs. It cannot be deleted until Release is called, once.
type Model struct {
	Name, Version string
	Runtime       string // model.RuntimePython or model.RuntimeR; "" is Python
	Dir           string // the bundle's directory, read-only
	Release       func()
}

// Models finds bundles by what image: says. An image that names none gives ErrInvalid with the
// sentence that tells how to push it. Resolve may fetch a bundle from elsewhere, within ctx.
type Models interface {
	Resolve(ctx context.Context, image string) (Model, error)
	// Pin is Resolve for an exact version, as a stored function remembers it.
	Pin(name, version string) (Model, error)
}
