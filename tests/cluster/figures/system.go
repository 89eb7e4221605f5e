package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"
)

const (
	deploys = 5
	rounds  = 5
	loadFor = "4s"

	function = "iris"
	request  = "5.1,3.5,1.4,0.2"
	answer   = "setosa"
)

// system is a provider with a backend, and what differs between backends.
type system struct {
	url, password string
	labels        map[string]string // of the function
	// direct is where what runs the function takes calls without the provider.
	direct func(context.Context) (string, error)
	// forget, if there is one, takes from the provider what it keeps of a removed function's image.
	forget func(context.Context) error
}

func (s system) client() (*sdk.Client, error) {
	at, err := url.Parse(s.url)
	if err != nil {
		return nil, err
	}
	return sdk.NewClient(at, &sdk.BasicAuth{Username: "admin", Password: s.password}, http.DefaultClient), nil
}

// deploys prints the time from a deployment to the first answer, of a function that is not there. It stays deployed.
func (s system) deploys(ctx context.Context, what, image string) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	var took []time.Duration
	for range deploys {
		if err := s.remove(ctx, client); err != nil {
			return err
		}
		one, err := s.deploy(ctx, client, image)
		if err != nil {
			return err
		}
		took = append(took, one)
	}
	row("from a deployment to the first answer, "+what, spread(took, seconds))
	return nil
}

// deploy deploys the function, and returns how long it was until its first answer.
func (s system) deploy(ctx context.Context, client *sdk.Client, image string) (time.Duration, error) {
	began := time.Now()
	status, err := client.Deploy(ctx, types.FunctionDeployment{Service: function, Image: image, Labels: &s.labels})
	if err != nil || status != http.StatusAccepted {
		return 0, errors.Join(fmt.Errorf("deploy %s: status %d", image, status), err)
	}
	err = s.called(ctx)
	return time.Since(began), err
}

// remove returns once nothing of the function is there.
func (s system) remove(ctx context.Context, client *sdk.Client) error {
	err := client.DeleteFunction(ctx, function, "")
	if err != nil && !strings.Contains(err.Error(), "404") && !strings.Contains(strings.ToLower(err.Error()), "not found") {
		return err
	}
	if err := wait(ctx, func() error {
		if address, err := s.direct(ctx); err == nil {
			return fmt.Errorf("%s still answers", address)
		}
		return nil
	}); err != nil {
		return err
	}
	if s.forget != nil {
		return s.forget(ctx)
	}
	return nil
}

// called returns after the first answer.
func (s system) called(ctx context.Context) error {
	return wait(ctx, func() error {
		response, err := http.Post(s.url+"/function/"+function, "text/plain", strings.NewReader(request))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err == nil && string(body) != answer {
			err = fmt.Errorf("a call: %s %s", response.Status, body)
		}
		return err
	})
}

// errNone means that nothing runs the function.
var errNone = errors.New("there is none")

func get(url string) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// wait asks until there is no error any more, for two minutes.
func wait(ctx context.Context, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err := ask()
	for err != nil && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
		err = ask()
	}
	return err
}

// throughput prints requests/s through the provider and direct, in pairs of rounds.
func (b *bench) throughput(ctx context.Context, s system) error {
	direct, err := s.direct(ctx)
	if err != nil {
		return err
	}
	var with, without, ratios []float64
	for round := range rounds + 1 {
		w, err := b.wrk(ctx, s.url+"/function/"+function)
		if err != nil {
			return err
		}
		wo, err := b.wrk(ctx, direct)
		if err != nil {
			return err
		}
		if round > 0 { // the first warms up
			with, without, ratios = append(with, w), append(without, wo), append(ratios, w/wo)
		}
	}
	row("requests/s direct, wrk -t1 -c32", spread(without, rate))
	row("requests/s through the provider", spread(with, rate))
	row("through the provider against direct", spread(ratios, times))
	return nil
}

var perSecond = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)

// wrk is the requests/s at url. A call that fails is an error.
func (b *bench) wrk(ctx context.Context, url string) (float64, error) {
	script := filepath.Join(b.dir, "post.lua")
	lua := "wrk.method='POST'\nwrk.body='" + request + "'\nwrk.headers['Content-Type']='text/plain'\n"
	if err := os.WriteFile(script, []byte(lua), 0o600); err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, "wrk", "-t1", "-c32", "-d"+loadFor, "-s", script, url).CombinedOutput()
	found := perSecond.FindSubmatch(out)
	if err != nil || found == nil || bytes.Contains(out, []byte("Non-2xx")) || bytes.Contains(out, []byte("Socket errors")) {
		return 0, errors.Join(fmt.Errorf("wrk %s: %s", url, out), err)
	}
	return strconv.ParseFloat(string(found[1]), 64)
}
