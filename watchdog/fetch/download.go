package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	// A provider that restarts is asked again after these waits, each twice the one before, give or take a fifth:
	// all pods of a node may wait for it.
	leastWait = 250 * time.Millisecond
	mostWait  = 5 * time.Second
	// silence is how long a provider may send nothing before it is given up and asked anew.
	silence = 30 * time.Second
	// tellEvery is how often a long download says how far it is.
	tellEvery = 5 * time.Second
	// maxAnswer bounds what is read of an answer that is no bundle.
	maxAnswer = 400
	// maxCredential bounds the file with the credential.
	maxCredential = 16 << 10
)

// refusal is what asking again does not change.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// download writes the zip to file and returns its size. What may pass, such as a provider that restarts, is tried again
// for as long as Patience says.
func (r Request) download(ctx context.Context, file string) (int64, error) {
	client, err := r.client()
	if err != nil {
		return 0, err
	}
	defer client.CloseIdleConnections()
	began := time.Now()
	for wait := leastWait; ; wait = min(2*wait, mostWait) {
		size, err := r.attempt(ctx, client, file)
		var final refusal
		switch {
		case err == nil:
			return size, nil
		case ctx.Err() != nil:
			return 0, fmt.Errorf("fetch %s: %w", r.URL, ctx.Err())
		case errors.As(err, &final):
			return 0, fmt.Errorf("fetch %s: %w", r.URL, err)
		case time.Since(began)+wait > r.Patience:
			return 0, fmt.Errorf("fetch %s: given up after %s: %w", r.URL, time.Since(began).Round(time.Millisecond), err)
		}
		r.Log.Warn("the bundle cannot be fetched now; it is tried again", "error", err, "in", wait)
		select {
		case <-time.After(wait*4/5 + rand.N(wait*2/5)):
		case <-ctx.Done():
		}
	}
}

// client is one for the provider alone: it follows no redirect, which could lead the credential elsewhere, and takes no
// proxy, which is for what packages come from.
func (r Request) client() (*http.Client, error) {
	u, err := url.Parse(r.URL)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is no URL of a bundle: it must begin with http:// or https:// and a host", r.URL)
	}
	if u.User != nil {
		return nil, errors.New("the URL has a user in it: a credential belongs in a file, where no list of processes shows it")
	}
	transport := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: silence,
		DisableCompression:    true, // what is unpacked has a limit, and only there
	}
	if r.CA != "" {
		text, err := os.ReadFile(r.CA)
		if err != nil {
			return nil, fmt.Errorf("read the authorities: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s has no certificate (PEM)", r.CA)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

func (r Request) attempt(ctx context.Context, client *http.Client, file string) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL, nil)
	if err != nil {
		return 0, refusal{err}
	}
	ask.Header.Set("User-Agent", "fwatchdog")
	if r.Credential != "" {
		// Each time anew: it may have been replaced meanwhile.
		credential, err := readCredential(r.Credential)
		if err != nil {
			return 0, err
		}
		ask.Header.Set("Authorization", "Bearer "+credential)
	}
	answer, err := client.Do(ask)
	if err != nil {
		var uncertain *tls.CertificateVerificationError
		if errors.As(err, &uncertain) {
			return 0, refusal{err}
		}
		return 0, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return 0, unwelcome(answer)
	}
	if answer.ContentLength > r.MaxBytes {
		return 0, refusal{fmt.Errorf("the bundle is %d bytes; %d are allowed", answer.ContentLength, r.MaxBytes)}
	}
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, refusal{err}
	}
	body := &patient{Reader: io.LimitReader(answer.Body, r.MaxBytes+1), told: time.Now()}
	body.tell = func(n int64) { r.Log.Info("fetching the bundle", "bytes", n) }
	body.silent = time.AfterFunc(silence, func() { cancel(fmt.Errorf("nothing came for %s", silence)) })
	defer body.silent.Stop()
	size, err := io.Copy(out, body)
	closeErr := out.Close()
	switch {
	case err != nil && context.Cause(ctx) != nil:
		return 0, fmt.Errorf("cut off after %d bytes: %w", size, context.Cause(ctx))
	case err != nil:
		return 0, fmt.Errorf("cut off after %d bytes: %w", size, err)
	case closeErr != nil:
		return 0, refusal{closeErr}
	case size > r.MaxBytes:
		return 0, refusal{fmt.Errorf("the bundle is larger than the %d bytes that are allowed", r.MaxBytes)}
	}
	return size, nil
}

func readCredential(file string) (string, error) {
	in, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("read the credential: %w", err)
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, maxCredential))
	if err != nil {
		return "", fmt.Errorf("read the credential: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// unwelcome is the error of an answer that is no bundle.
func unwelcome(answer *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(answer.Body, maxAnswer)) // the status says enough without it
	err := fmt.Errorf("the provider answers %s: %s", answer.Status, strings.TrimSpace(strings.ToValidUTF8(string(text), "\ufffd")))
	switch code := answer.StatusCode; {
	case code >= http.StatusInternalServerError, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return err
	}
	return refusal{err}
}

// patient reads a body that may take long, says now and then how much of it there is, and has it given up when nothing
// comes.
type patient struct {
	io.Reader
	n      int64
	told   time.Time
	tell   func(n int64)
	silent *time.Timer
}

func (p *patient) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.n += int64(n)
	if n > 0 {
		p.silent.Reset(silence)
	}
	if time.Since(p.told) > tellEvery {
		p.told = time.Now()
		p.tell(p.n)
	}
	return n, err
}
