package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	sdk "github.com/openfaas/go-sdk"
	"github.com/spf13/pflag"
)

// chooser chooses a codec for each of some blocks.
type chooser interface {
	choose(ctx context.Context, blocks []features) ([]string, error)
}

// asking is how to reach the model.
type asking struct {
	gateway, function, client, secretFile, fixed, version string
}

func (a *asking) flags(f *pflag.FlagSet) {
	f.StringVar(&a.gateway, "gateway", "http://127.0.0.1:8080", "OpenFaaS gateway or provider")
	f.StringVar(&a.function, "function", "compression", "the model's function")
	f.StringVar(&a.client, "client", "store", "client id, for a function that wants tokens")
	f.StringVar(&a.secretFile, "secret-file", "", "file with the client's secret; without it calls carry no token")
	f.StringVar(&a.fixed, "codec", "", "use this codec for all blocks and ask no model")
	f.StringVar(&a.version, "model-version", "", "ask this version of the model, whatever the split")
}

func (a *asking) chooser() (chooser, error) {
	if a.fixed != "" {
		_, err := codecOf(a.fixed)
		return always(a.fixed), err
	}
	gateway, err := url.Parse(a.gateway)
	if err != nil {
		return nil, err
	}
	m := &model{function: a.function, version: a.version, answered: map[string]int{}}
	httpClient := &http.Client{Timeout: time.Minute}
	if a.secretFile == "" {
		m.sdk = sdk.NewClientWithOpts(gateway, httpClient)
		return m, nil
	}
	secret, err := os.ReadFile(a.secretFile)
	if err != nil {
		return nil, err
	}
	// What the client may do is asked for once; a token for this function alone comes of it by exchange.
	source := sdk.NewClientCredentialsTokenSource(a.client, strings.TrimSpace(string(secret)), gateway.JoinPath("/oauth/token").String(),
		"function", "client_credentials", "")
	m.sdk = sdk.NewClientWithOpts(gateway, httpClient, sdk.WithFunctionTokenSource(source), sdk.WithFunctionTokenCache(sdk.NewMemoryTokenCache()))
	m.auth = true
	return m, nil
}

// always chooses one codec.
type always string

func (c always) choose(_ context.Context, blocks []features) ([]string, error) {
	names := make([]string, len(blocks))
	for i := range names {
		names[i] = string(c)
	}
	return names, nil
}

// model asks the function, for all blocks in one call.
type model struct {
	sdk      *sdk.Client
	function string
	version  string
	auth     bool
	answered map[string]int // calls by the version that answered
}

// String says who answered.
func (m *model) String() string {
	var by []string
	for version, calls := range m.answered {
		by = append(by, fmt.Sprintf("%s (%d calls)", version, calls))
	}
	slices.Sort(by)
	return strings.Join(by, ", ")
}

// maxAnswer bounds an answer: a codec's name, or an error, a row.
const maxAnswer = 1 << 20

func (m *model) choose(ctx context.Context, blocks []features) ([]string, error) {
	var body bytes.Buffer
	for _, block := range blocks {
		fmt.Fprintf(&body, "%q\n", block.String())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "", &body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	if m.version != "" {
		req.Header.Set("X-Model-Version", m.version)
	}
	resp, err := m.sdk.InvokeFunction(m.function, "", false, m.auth, req)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", m.function, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return nil, fmt.Errorf("ask %s: %s: %s", m.function, resp.Status, said)
	}
	lines := bufio.NewScanner(io.LimitReader(resp.Body, maxAnswer))
	names := make([]string, 0, len(blocks))
	for lines.Scan() {
		var name string
		if err := json.Unmarshal(lines.Bytes(), &name); err != nil {
			return nil, fmt.Errorf("ask %s: row %d: %.300s", m.function, len(names)+1, lines.Bytes())
		}
		if _, err := codecOf(name); err != nil {
			return nil, fmt.Errorf("ask %s: row %d: %w", m.function, len(names)+1, err)
		}
		names = append(names, name)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("ask %s: %w", m.function, err)
	}
	if len(names) != len(blocks) {
		return nil, fmt.Errorf("ask %s: %d answers to %d rows", m.function, len(names), len(blocks))
	}
	m.answered[resp.Header.Get("X-Model-Version")]++
	return names, nil
}
