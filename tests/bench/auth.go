package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/faas-predict/faas-predict/auth/token"
)

// issuerOf serves a key as an issuer does, and makes tokens for every function.
type issuerOf struct {
	url string
	key *token.Key
}

func newIssuer(algorithm token.Algorithm) (*issuerOf, error) {
	key, err := token.NewKey(algorithm)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	i := &issuerOf{url: "http://" + l.Addr().String(), key: key}
	mux := http.NewServeMux()
	answer := func(path string, v any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) })
	}
	answer(token.DiscoveryPath, token.Discovery{Issuer: i.url, JWKSURI: i.url + "/keys", RevocationListURI: i.url + "/revoked"})
	answer("/keys", token.PublicSet(key))
	answer("/revoked", token.RevocationList{})
	go func() { _ = http.Serve(l, mux) }() //nolint:gosec // on loopback, for as long as the bench runs
	return i, nil
}

func (i *issuerOf) token() (string, error) {
	now := time.Now()
	return i.key.Sign(&token.Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: i.url, Audience: jwt.ClaimStrings{i.url}, Subject: "bench", ID: uuid.NewString(),
			IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(time.Hour)),
		},
		ClientID: "bench", Scope: token.ScopeFunction, Function: token.Grants{Permissions: []string{"*"}},
	})
}

// rotation is a wrk script that sends the tokens one after the other.
const rotation = `local n, requests = 0, {}
function init(args)
  for token in io.lines("%s") do
    wrk.headers["Authorization"] = "Bearer " .. token
    requests[#requests + 1] = wrk.format("POST", nil, nil, "` + request + `")
  end
end
function request()
  n = n %% #requests + 1
  return requests[n]
end
`

// bearing is a wrk script that sends a token.
func bearing(t string) string {
	return posting(request) + "wrk.headers['Authorization']='Bearer " + t + "'\n"
}

// protected is a provider with its issuer, iris, iris-protected, and a client of the two.
type protected struct {
	provider               *exec.Cmd
	gateway, secret, token string
}

func (b *bench) protectedIris(port int) (p protected, err error) {
	data := filepath.Join(b.dir, "data-"+strconv.Itoa(port))
	p.gateway = "http://127.0.0.1:" + strconv.Itoa(port)
	if p.provider, err = b.start(p.gateway+"/healthz", nil, "bin/faas-predict", "serve", "--port", strconv.Itoa(port),
		"--listen-address", "127.0.0.1", "--data-dir", data); err != nil {
		return p, err
	}
	if out, err := exec.Command("bin/faas-predict", "deploy", "-f", "stack.yml", "--filter", "iris*", "--gateway", p.gateway, "--data-dir", data).CombinedOutput(); err != nil {
		return p, fmt.Errorf("deploy iris and iris-protected: %w: %s", err, out)
	}
	secret, err := exec.Command("bin/faas-predict", "client", "add", "bench", "--functions", "*", "--gateway", p.gateway, "--data-dir", data).Output()
	if err != nil {
		return p, fmt.Errorf("register a client: %w", err)
	}
	fetch := exec.Command("bin/faas-predict", "token", "-g", p.gateway, "-u", "bench", "-s")
	fetch.Stdin = strings.NewReader(string(secret))
	issued, err := fetch.Output()
	if err != nil {
		return p, fmt.Errorf("get a token: %w", err)
	}
	p.secret, p.token = strings.TrimSpace(string(secret)), strings.TrimSpace(string(issued))
	return p, nil
}

// authRounds are many: the differences are smaller than the noise of one.
const authRounds = 15

func (b *bench) auth() error {
	iris, err := filepath.Abs("examples/iris")
	if err != nil {
		return err
	}
	issuer, err := newIssuer(token.ES256)
	if err != nil {
		return err
	}
	const many = 1000
	tokens := make([]string, many)
	for i := range tokens {
		if tokens[i], err = issuer.token(); err != nil {
			return err
		}
	}
	list := filepath.Join(b.dir, "tokens")
	if err := os.WriteFile(list, []byte(strings.Join(tokens, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	if _, err := b.watchdog(29500, iris, 2); err != nil {
		return err
	}
	if _, err := b.watchdog(29510, iris, 2, "jwt_auth=true", "authority="+issuer.url, "OPENFAAS_NAME=iris", "OPENFAAS_NAMESPACE=openfaas-fn"); err != nil {
		return err
	}
	protected, err := b.protectedIris(29530)
	if err != nil {
		return err
	}
	gateway := protected.gateway
	rotated := fmt.Sprintf(rotation, list)
	open, guarded := "http://127.0.0.1:29500/", "http://127.0.0.1:29510/"
	comparisons := []struct {
		what              string
		url, script       string
		againstURL, plain string
		least             float64
	}{
		{what: "with one token, checked, against the same unchecked", url: guarded, script: bearing(tokens[0]), againstURL: open, plain: bearing(tokens[0]), least: 0.97},
		{what: "with one token, checked, against none sent", url: guarded, script: bearing(tokens[0]), againstURL: open, plain: posting(request), least: 0.97},
		{what: "1,000 tokens in rotation, checked, against unchecked", url: guarded, script: rotated, againstURL: open, plain: rotated, least: 0.95},
		{what: "a protected function through the provider, against an open one", url: gateway + "/function/iris-protected", script: bearing(protected.token),
			againstURL: gateway + "/function/iris", plain: posting(request), least: 0.97},
	}
	for _, c := range comparisons {
		var rates, unchecked []float64
		for range authRounds {
			without, err := b.wrk(c.plain, c.againstURL)
			if err != nil {
				return err
			}
			rate, err := b.wrk(c.script, c.url)
			if err != nil {
				return err
			}
			rates, unchecked = append(rates, rate), append(unchecked, without)
		}
		ratio("requests/s "+c.what, rates, unchecked, c.least)
	}
	if err := b.firstTimes(); err != nil {
		return err
	}
	form := "wrk.method='POST'\nwrk.body='grant_type=client_credentials&client_id=bench&client_secret=" + protected.secret +
		"'\nwrk.headers['Content-Type']='application/x-www-form-urlencoded'\n"
	var rates []float64
	for range rounds {
		rate, err := b.wrk(form, gateway+"/oauth/token")
		if err != nil {
			return err
		}
		rates = append(rates, rate)
	}
	fmt.Printf("%-74s %9.0f/s    %.0f..%.0f\n", "the issuer's tokens (client_credentials, ES256), wrk -t1 -c32", median(rates), slices.Min(rates), slices.Max(rates))
	return nil
}

// firstTimes prints what a token costs that was not seen before, by algorithm.
func (b *bench) firstTimes() error {
	const tokens = 300
	for _, algorithm := range token.Algorithms {
		issuer, err := newIssuer(algorithm)
		if err != nil {
			return err
		}
		keys, err := token.NewLocalKeys(issuer.url, issuer.key)
		if err != nil {
			return err
		}
		v := token.NewVerifier(token.Config{Keys: keys})
		took := make([]float64, tokens)
		for i := range took {
			raw, err := issuer.token()
			if err != nil {
				return err
			}
			began := time.Now()
			if _, err := v.Verify(context.Background(), raw); err != nil {
				return err
			}
			took[i] = float64(time.Since(began).Nanoseconds()) / 1000
		}
		fmt.Printf("%-74s %9.0f us    median of %d tokens\n", "checking a token for the first time, "+string(algorithm), median(took), tokens)
	}
	return nil
}
