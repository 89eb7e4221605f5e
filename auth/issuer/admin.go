package issuer

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// AdminRoutes is every route of AdminHandler.
var AdminRoutes = []Route{
	{"GET", "/system/clients", "Every client, without its secret.", method((*Issuer).listClients)},
	{"POST", "/system/clients", "Register a client: 201 with its secret, 400 for one that breaks a rule, 409 when there is one of that name.", method((*Issuer).createClient)},
	{"DELETE", "/system/clients/{name}", "Remove a client and take back its tokens: 204, 404.", method((*Issuer).deleteClient)},
	{"POST", "/system/clients/{name}/secret", "Give a client a new secret and take back its tokens: 200 with the secret, 404.", method((*Issuer).resetClient)},
	{"POST", "/system/clients/{name}/disable", "Disable a client and take back its tokens: 204, 404.", method((*Issuer).disableClient)},
	{"POST", "/system/clients/{name}/enable", "Enable a client again: 204, 404.", method((*Issuer).enableClient)},
	{"POST", "/system/revocations", "Take back all tokens of the client_id in the body: 204, 400.", method((*Issuer).revokeAll)},
	{"GET", "/system/keys", "The published signing keys.", method((*Issuer).listKeys)},
	{"POST", "/system/keys", "Make the next signing key: 201, or 200 when there is one already.", method((*Issuer).rotateKeys)},
	{"DELETE", "/system/keys/{kid}", "Revoke a signing key and with it every token it signed: 204, 404.", method((*Issuer).deleteKey)},
}

// ClientSecret is the answer when a client is registered or gets a new secret.
type ClientSecret struct {
	Client
	Secret string `json:"client_secret"`
}

// AdminHandler answers those who register clients: see AdminRoutes. It asks for no credentials. Whoever
// mounts it lets only administrators reach it. Errors are plain text, which faas-cli prints.
func (i *Issuer) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	for _, route := range AdminRoutes {
		mux.HandleFunc(route.Method+" "+route.Path, route.handler(i))
	}
	return mux
}

// readJSON reads a body with exactly the fields of into. It answers what is wrong and returns false.
func readJSON(w http.ResponseWriter, r *http.Request, into any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	if err == nil && !errors.Is(decoder.Decode(&struct{}{}), io.EOF) {
		err = errors.New("there is more after the object")
	}
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		http.Error(w, "the body is too long", http.StatusRequestEntityTooLarge)
	case err != nil:
		http.Error(w, "the body cannot be read: "+printable(err.Error()), http.StatusBadRequest)
	}
	return err == nil
}

// adminError answers an error of the functions that change something.
func (i *Issuer) adminError(w http.ResponseWriter, err error) {
	var invalid *InvalidError
	status := http.StatusInternalServerError
	switch {
	case errors.As(err, &invalid):
		status = http.StatusBadRequest
	case errors.Is(err, ErrNoClient), errors.Is(err, ErrNoKey):
		status = http.StatusNotFound
	case errors.Is(err, ErrExists):
		status = http.StatusConflict
	default:
		i.log.Error("a request could not be answered", "error", err)
	}
	http.Error(w, err.Error(), status)
}

func (i *Issuer) listClients(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, i.Clients())
}

func (i *Issuer) createClient(w http.ResponseWriter, r *http.Request) {
	var wanted struct { // what a client can be given; the rest of Client is not for the caller to say
		Name             string   `json:"name"`
		Functions        []string `json:"functions"`
		Admin            bool     `json:"admin"`
		AccessTTLSeconds int      `json:"access_ttl_seconds"`
	}
	if !readJSON(w, r, &wanted) {
		return
	}
	c := Client{Name: wanted.Name, Functions: wanted.Functions, Admin: wanted.Admin, AccessTTLSeconds: wanted.AccessTTLSeconds}
	secret, err := i.AddClient(c)
	if err != nil {
		i.adminError(w, err)
		return
	}
	i.answerSecret(w, http.StatusCreated, c.Name, secret)
}

func (i *Issuer) resetClient(w http.ResponseWriter, r *http.Request) {
	secret, err := i.ResetSecret(r.PathValue("name"))
	if err != nil {
		i.adminError(w, err)
		return
	}
	i.answerSecret(w, http.StatusOK, r.PathValue("name"), secret)
}

func (i *Issuer) answerSecret(w http.ResponseWriter, status int, name, secret string) {
	out := ClientSecret{Secret: secret}
	i.mu.RLock()
	if c := i.clients[name]; c != nil {
		out.Client = c.Client
	}
	i.mu.RUnlock()
	answer(w, status, out)
}

// done answers a change that there is nothing to say about.
func (i *Issuer) done(w http.ResponseWriter, err error) {
	if err != nil {
		i.adminError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (i *Issuer) deleteClient(w http.ResponseWriter, r *http.Request) {
	i.done(w, i.RemoveClient(r.PathValue("name")))
}

func (i *Issuer) disableClient(w http.ResponseWriter, r *http.Request) {
	i.done(w, i.SetDisabled(r.PathValue("name"), true))
}

func (i *Issuer) enableClient(w http.ResponseWriter, r *http.Request) {
	i.done(w, i.SetDisabled(r.PathValue("name"), false))
}

func (i *Issuer) revokeAll(w http.ResponseWriter, r *http.Request) {
	var whose struct {
		ClientID string `json:"client_id"`
	}
	if readJSON(w, r, &whose) {
		i.done(w, i.RevokeTokens(whose.ClientID))
	}
}

func (i *Issuer) listKeys(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, i.SigningKeys())
}

func (i *Issuer) rotateKeys(w http.ResponseWriter, _ *http.Request) {
	next, created, err := i.RotateKeys()
	if err != nil {
		i.adminError(w, err)
		return
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	answer(w, status, next)
}

func (i *Issuer) deleteKey(w http.ResponseWriter, r *http.Request) {
	i.done(w, i.RevokeKey(r.PathValue("kid")))
}
