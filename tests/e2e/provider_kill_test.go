package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/client"
	"github.com/faas-predict/faas-predict/provider/traffic"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// acknowledged is what the provider has said yes to. An operation that got no answer may have
// happened or not; its subject is left out until the next answer about it.
type acknowledged struct {
	mu         sync.Mutex
	models     map[string]string // the version pushed last
	functions  map[string]int    // replicas
	splits     map[string]traffic.Split
	secrets    map[string]string
	namespaces map[string]bool
	answers    int
}

// chaos does one random operation after the other until the provider goes away. Each worker has
// subjects of its own, so that it knows what the last answer about each of them was.
func (a *acknowledged) chaos(ctx context.Context, p *provider, worker int, bundles []pushable, versions []string) {
	for ctx.Err() == nil {
		subject := fmt.Sprintf("w%d-%d", worker, rand.IntN(2))
		var err error
		switch rand.IntN(10) {
		case 0:
			a.mu.Lock()
			version := a.models[subject]
			delete(a.models, subject)
			a.mu.Unlock()
			if version != "" && rand.IntN(4) == 0 {
				_ = p.deleteVersion(ctx, subject, version)
				break
			}
			b := bundles[rand.IntN(len(bundles))]
			if rand.IntN(2) == 0 {
				err = p.putModel(ctx, subject, b.zip)
			} else {
				err = p.pushByDigest(ctx, subject, b.dir)
			}
			a.note(err, func() { a.models[subject] = b.version })
		case 1, 2:
			a.forgetFunction(subject)
			spec := types.FunctionDeployment{Service: subject, Image: "echo"}
			status, uerr := p.Update(ctx, spec)
			if err = uerr; status == http.StatusNotFound {
				_, err = p.Deploy(ctx, spec)
			}
			a.note(err, func() { a.functions[subject] = -1 })
		case 3:
			a.mu.Lock()
			_, exists := a.functions[subject]
			a.mu.Unlock()
			if exists {
				n := 1 + rand.IntN(3)
				a.forgetReplicas(subject)
				err = p.ScaleFunction(ctx, subject, "", uint64(n))
				a.note(err, func() { a.functions[subject] = n })
			}
		case 4:
			a.forgetFunction(subject)
			_ = p.DeleteFunction(ctx, subject, "") // whether or not it was there, what is known of it is nothing
		case 5, 6:
			value := fmt.Sprint(rand.Int())
			a.mu.Lock()
			_, exists := a.secrets[subject]
			delete(a.secrets, subject)
			a.mu.Unlock()
			secret := types.Secret{Name: subject, Value: value}
			if exists {
				_, err = p.UpdateSecret(ctx, secret)
			} else if status, cerr := p.CreateSecret(ctx, secret); status == http.StatusConflict {
				_, err = p.UpdateSecret(ctx, secret)
			} else {
				err = cerr
			}
			a.note(err, func() { a.secrets[subject] = value })
		case 7:
			status, cerr := p.CreateNamespace(ctx, types.FunctionNamespace{Name: subject})
			if err = cerr; status == http.StatusConflict {
				err = nil
			}
			a.note(err, func() { a.namespaces[subject] = true })
		case 8, 9:
			a.mu.Lock()
			_, exists := a.functions[subject]
			delete(a.splits, subject)
			a.mu.Unlock()
			if exists {
				var got traffic.Split
				got, err = p.moveTraffic(ctx, subject, versions)
				a.note(err, func() { a.splits[subject] = got })
			}
		}
	}
}

func (a *acknowledged) note(err error, did func()) {
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers++
	did()
}

func (a *acknowledged) forgetFunction(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.functions, name)
	delete(a.splits, name)
}

func (a *acknowledged) forgetReplicas(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.functions[name] = -1 // exists, replicas unknown
}

// moveTraffic sets a random split, or rolls back, and returns the split that was answered.
func (p *provider) moveTraffic(ctx context.Context, name string, versions []string) (got traffic.Split, err error) {
	method, what, body := http.MethodPost, "rollback", []byte(nil)
	if rand.IntN(3) > 0 {
		share := rand.IntN(1001)
		method, what = http.MethodPut, "traffic"
		if body, err = json.Marshal(split(versions[0], share, versions[1], 1000-share)); err != nil {
			return got, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, p.url("/system/models/"+name+"/"+what), bytes.NewReader(body))
	if err != nil {
		return got, err
	}
	req.SetBasicAuth("admin", p.password)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return got, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return got, fmt.Errorf("status %d", res.StatusCode)
	}
	return got, json.NewDecoder(res.Body).Decode(&got)
}

func (p *provider) putModel(ctx context.Context, name string, zip []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, p.url("/system/models/"+name), bytes.NewReader(zip))
	if err != nil {
		return err
	}
	req.SetBasicAuth("admin", p.password)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated && res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}

func (p *provider) pushByDigest(ctx context.Context, name, dir string) error {
	c, err := client.New(p.url(""), &sdk.BasicAuth{Username: "admin", Password: p.password})
	if err != nil {
		return err
	}
	_, err = c.Push(ctx, dir, name, nil)
	return err
}

func (p *provider) deleteVersion(ctx context.Context, name, version string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, p.url("/system/models/"+name+"/versions/"+version), nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth("admin", p.password)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// pushable is a bundle in the forms that a push takes.
type pushable struct {
	dir, version string
	zip          []byte
}

// verify holds the provider to what was acknowledged, and its directory to what it says.
func (a *acknowledged) verify(p *provider) {
	t := p.t
	t.Helper()
	for name, replicas := range a.functions {
		p.eventually(name+" serves again", func() bool {
			status, body := p.call(name, "back")
			return status == http.StatusOK && body == "back"
		})
		if wanted, _ := p.replicas(name); replicas > 0 && wanted != replicas {
			t.Errorf("function %s wants %d replicas, %d were acknowledged", name, wanted, replicas)
		}
	}
	for name, want := range a.splits {
		var got backend.TrafficStatus
		if p.system(http.MethodGet, "/system/models/"+name+"/traffic", nil, &got); !got.Equal(want) {
			t.Errorf("the calls of %s are split %s, %s was acknowledged", name, got.Split, want)
		}
	}
	secrets, err := p.GetSecrets(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, s := range secrets {
		names[s.Name] = true
	}
	for name := range a.secrets {
		if !names[name] {
			t.Errorf("secret %s is gone", name)
		}
	}
	namespaces, err := p.GetNamespaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name := range a.namespaces {
		if !strings.Contains(strings.Join(namespaces, " "), name) {
			t.Errorf("namespace %s is gone", name)
		}
	}
	for name, version := range a.models {
		if _, err := os.Stat(filepath.Join(p.data(), "models", name, version)); err != nil {
			t.Errorf("version %s of model %s is gone", version, name)
		}
	}
	// Every version that can be seen is whole: it still has the name that its content gives it.
	versions, _ := filepath.Glob(filepath.Join(p.data(), "models", "*", "*_*"))
	for _, dir := range versions {
		b, err := model.Open(dir)
		if err != nil || b.Version.ID != filepath.Base(dir) {
			t.Errorf("version %s is torn: %v", dir, err)
		}
	}
}

func TestProviderComesBackWithEverythingItAcknowledged(t *testing.T) {
	p := startProvider(t)
	p.model("echo", talkativeModel)
	p.model("echo", talkativeModel+"# the same in another version\n")
	var pushed struct {
		Versions []struct{ Version string }
	}
	if p.system(http.MethodGet, "/system/models/echo", nil, &pushed); len(pushed.Versions) != 2 {
		t.Fatalf("pushed: %+v", pushed)
	}
	versions := []string{pushed.Versions[0].Version, pushed.Versions[1].Version}
	var bundles []pushable
	for i := range 6 {
		// Large enough that a kill meets a push at every stage of it.
		b, err := model.Open(bundle(t, map[string]string{"main.py": talkativeModel, "coefficients/w": strings.Repeat(fmt.Sprint(i), 1<<20)}))
		if err != nil {
			t.Fatal(err)
		}
		var zip bytes.Buffer
		if err := b.Pack(&zip); err != nil {
			t.Fatal(err)
		}
		bundles = append(bundles, pushable{b.Dir, b.Version.ID, zip.Bytes()})
	}
	a := &acknowledged{models: map[string]string{}, functions: map[string]int{}, splits: map[string]traffic.Split{}, secrets: map[string]string{}, namespaces: map[string]bool{}}
	const kills = 12
	for range kills {
		ctx, cancel := context.WithCancel(t.Context())
		var workers sync.WaitGroup
		for worker := range 4 {
			workers.Go(func() { a.chaos(ctx, p, worker, bundles, versions) })
		}
		time.Sleep(time.Duration(50+rand.IntN(700)) * time.Millisecond)
		p.kill()
		cancel()
		workers.Wait()
		p.eventually("the killed provider's functions are gone", func() bool { return len(p.children()) == 0 })
		p.start()
		a.verify(p)
	}
	t.Logf("%d kills, %d acknowledged changes, all there: %d functions, %d splits, %d models, %d secrets, %d namespaces", kills, a.answers, len(a.functions), len(a.splits), len(a.models), len(a.secrets), len(a.namespaces))
}
