package issuer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// A process of its own does one operation on an issuer and is killed at one step of it, or does many
// and is killed at any time. These variables tell it so; without them the test binary runs tests.
const (
	crashDir       = "ISSUER_CRASH_DIR"
	crashOperation = "ISSUER_CRASH_OPERATION" // "": many, for ever
	crashStep      = "ISSUER_CRASH_STEP"      // counted from 0; -1: live, and print the name of each step
)

// prepared is what the parent has made before the operation, as the child reads it.
type prepared struct {
	Secret  string // of shop
	Refresh string // shop's, unused
	Used    string // shop's, used: the family's next one is Refresh of another family
	Access  string // shop's
}

func configAt(dir string) Config {
	return Config{URL: "http://auth.example", Dir: dir, Log: discard}
}

// ask sends a form to an issuer in this process.
func ask(i *Issuer, path string, form ...string) (out reply) {
	v := url.Values{}
	for pair := range slices.Chunk(form, 2) {
		v.Add(pair[0], pair[1])
	}
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(v.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	i.Handler().ServeHTTP(w, r)
	_ = json.Unmarshal(w.Body.Bytes(), &out)
	out.Status, out.Body = w.Code, w.Body.String()
	return out
}

func askAs(i *Issuer, name, secret, path string, form ...string) reply {
	return ask(i, path, append(form, "client_id", name, "client_secret", secret)...)
}

func prepare(t *testing.T, dir string) prepared {
	t.Helper()
	i, err := Open(configAt(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	var p prepared
	if p.Secret, err = i.AddClient(Client{Name: "shop", Functions: []string{"*"}}); err != nil {
		t.Fatal(err)
	}
	offline := func() reply {
		return askAs(i, "shop", p.Secret, tokenPath, "grant_type", GrantClientCredentials, "scope", "offline_access")
	}
	first, second := offline(), offline()
	p.Refresh, p.Access, p.Used = first.RefreshToken, first.AccessToken, second.RefreshToken
	if got := askAs(i, "shop", p.Secret, tokenPath, "grant_type", GrantRefreshToken, "refresh_token", p.Used); got.Status != http.StatusOK {
		t.Fatal(got.Body)
	}
	raw, _ := json.Marshal(p)
	if err := os.WriteFile(filepath.Join(dir, "prepared.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// visible says all there is to see of an issuer, in short.
func visible(i *Issuer) string {
	var names []string
	for _, c := range i.Clients() {
		names = append(names, fmt.Sprintf("%s disabled=%t", c.Name, c.Disabled))
	}
	families := 0
	_ = i.db.View(func(tx *bbolt.Tx) error { families = len(familiesOf(tx, "shop")); return nil })
	tokens, clients := i.revoked.sizes()
	return fmt.Sprintf("clients %v, families %d, revoked %d tokens %d clients, keys %d", names, families, tokens, clients, len(i.keys))
}

// operations are the changes there are. Each must do one transaction.
var operations = map[string]struct {
	do    func(i *Issuer, p prepared) (acknowledged string, ok bool)
	after string
	// proof holds after the operation was acknowledged, and only then.
	proof func(i *Issuer, p prepared, acknowledged string) bool
}{
	"add": {
		do: func(i *Issuer, _ prepared) (string, bool) {
			secret, err := i.AddClient(Client{Name: "new", Functions: []string{"a:*"}})
			return secret, err == nil
		},
		after: "clients [new disabled=false shop disabled=false], families 2, revoked 0 tokens 0 clients, keys 1",
		proof: func(i *Issuer, _ prepared, secret string) bool {
			return askAs(i, "new", secret, tokenPath, "grant_type", GrantClientCredentials).Status == http.StatusOK
		},
	},
	"reset": {
		do: func(i *Issuer, _ prepared) (string, bool) {
			secret, err := i.ResetSecret("shop")
			return secret, err == nil
		},
		after: "clients [shop disabled=false], families 0, revoked 0 tokens 1 clients, keys 1",
		proof: func(i *Issuer, p prepared, secret string) bool {
			return askAs(i, "shop", secret, tokenPath, "grant_type", GrantClientCredentials).Status == http.StatusOK &&
				askAs(i, "shop", p.Secret, tokenPath, "grant_type", GrantClientCredentials).Status != http.StatusOK
		},
	},
	"disable": {
		do:    func(i *Issuer, _ prepared) (string, bool) { return "", i.SetDisabled("shop", true) == nil },
		after: "clients [shop disabled=true], families 0, revoked 0 tokens 1 clients, keys 1",
	},
	"remove": {
		do:    func(i *Issuer, _ prepared) (string, bool) { return "", i.RemoveClient("shop") == nil },
		after: "clients [], families 0, revoked 0 tokens 1 clients, keys 1",
	},
	"issue": {
		do: func(i *Issuer, p prepared) (string, bool) {
			got := askAs(i, "shop", p.Secret, tokenPath, "grant_type", GrantClientCredentials, "scope", "offline_access")
			return got.RefreshToken, got.Status == http.StatusOK
		},
		after: "clients [shop disabled=false], families 3, revoked 0 tokens 0 clients, keys 1",
		proof: func(i *Issuer, p prepared, refresh string) bool {
			return askAs(i, "shop", p.Secret, tokenPath, "grant_type", GrantRefreshToken, "refresh_token", refresh).Status == http.StatusOK
		},
	},
	"refresh": {
		do: func(i *Issuer, p prepared) (string, bool) {
			got := askAs(i, "shop", p.Secret, tokenPath, "grant_type", GrantRefreshToken, "refresh_token", p.Refresh)
			return got.RefreshToken, got.Status == http.StatusOK
		},
		after: "clients [shop disabled=false], families 2, revoked 0 tokens 0 clients, keys 1",
		proof: func(i *Issuer, p prepared, refresh string) bool {
			return askAs(i, "shop", p.Secret, tokenPath, "grant_type", GrantRefreshToken, "refresh_token", refresh).Status == http.StatusOK &&
				askAs(i, "shop", p.Secret, tokenPath, "grant_type", GrantRefreshToken, "refresh_token", p.Refresh).Status != http.StatusOK
		},
	},
	"reuse": {
		do: func(i *Issuer, p prepared) (string, bool) {
			got := askAs(i, "shop", p.Secret, tokenPath, "grant_type", GrantRefreshToken, "refresh_token", p.Used)
			return "", got.Error == codeInvalidGrant
		},
		after: "clients [shop disabled=false], families 1, revoked 4 tokens 0 clients, keys 1", // two tokens, each with what may be made of it
	},
	"revoke": {
		do: func(i *Issuer, p prepared) (string, bool) {
			return "", askAs(i, "shop", p.Secret, revokePath, "token", p.Access).Status == http.StatusOK
		},
		after: "clients [shop disabled=false], families 2, revoked 2 tokens 0 clients, keys 1",
		proof: func(i *Issuer, p prepared, _ string) bool {
			return strings.Contains(askAs(i, "shop", p.Secret, introspectPath, "token", p.Access).Body, `"active":false`)
		},
	},
	"revoke a refresh token": {
		do: func(i *Issuer, p prepared) (string, bool) {
			return "", askAs(i, "shop", p.Secret, revokePath, "token", p.Refresh).Status == http.StatusOK
		},
		after: "clients [shop disabled=false], families 1, revoked 2 tokens 0 clients, keys 1",
	},
	"rotate": {
		do: func(i *Issuer, _ prepared) (string, bool) {
			next, _, err := i.RotateKeys()
			return next.ID, err == nil
		},
		after: "clients [shop disabled=false], families 2, revoked 0 tokens 0 clients, keys 2",
		proof: func(i *Issuer, _ prepared, id string) bool { return i.keys[1].ID() == id },
	},
	"revoke the key": {
		do: func(i *Issuer, _ prepared) (string, bool) {
			id := i.keys[0].ID()
			return id, i.RevokeKey(id) == nil
		},
		after: "clients [shop disabled=false], families 2, revoked 0 tokens 0 clients, keys 1",
		proof: func(i *Issuer, p prepared, id string) bool {
			return i.keys[0].ID() != id && askAs(i, "shop", p.Secret, tokenPath, "grant_type", GrantClientCredentials).Status == http.StatusOK
		},
	},
}

const untouched = "clients [shop disabled=false], families 2, revoked 0 tokens 0 clients, keys 1"

// operate does not return.
func operate() {
	fatal := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	dir := os.Getenv(crashDir)
	i, err := Open(configAt(dir))
	fatal(err)
	if os.Getenv(crashOperation) == "" {
		fatal(busy(i))
	}
	raw, err := os.ReadFile(filepath.Join(dir, "prepared.json"))
	fatal(err)
	var p prepared
	fatal(json.Unmarshal(raw, &p))
	last, err := strconv.Atoi(os.Getenv(crashStep))
	fatal(err)
	count := 0
	step = func(name string) {
		if last < 0 {
			fmt.Println(name)
		}
		if count == last {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		count++
	}
	acknowledged, ok := operations[os.Getenv(crashOperation)].do(i, p)
	if !ok {
		fatal(fmt.Errorf("%s failed: %s", os.Getenv(crashOperation), acknowledged))
	}
	fmt.Println("acknowledged", acknowledged)
	os.Exit(0)
}

// child runs an operation in a process of its own and returns what it printed.
func child(dir, operation string, step int) (string, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashOperation+"="+operation, crashStep+"="+strconv.Itoa(step))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, &stderr)
	}
	return string(out), err
}

func TestKillAtAnyStepLosesNothing(t *testing.T) {
	start := filepath.Join(t.TempDir(), "auth")
	p := prepare(t, start)
	copied := func(t *testing.T) string { // hashing a secret each time would take long
		dir := filepath.Join(t.TempDir(), "auth")
		if err := os.CopyFS(dir, os.DirFS(start)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	kills := 0
	for name, op := range operations {
		dir := copied(t)
		out, err := child(dir, name, -1)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		acknowledged, ok := strings.CutPrefix(lines[len(lines)-1], "acknowledged ")
		if !ok && lines[len(lines)-1] == "acknowledged" {
			acknowledged, ok = "", true
		}
		steps := lines[:len(lines)-1]
		if committed := slices.Index(steps, "committed"); !ok || committed < 2 || slices.Contains(steps[committed+1:], "begun") {
			t.Fatalf("%s printed %q; it must be one transaction", name, lines)
		}
		i, err := Open(configAt(dir))
		if err != nil {
			t.Fatal(err)
		}
		if got := visible(i); got != op.after {
			t.Errorf("%s: acknowledged, but there is: %s\nwant: %s", name, got, op.after)
		}
		if op.proof != nil && !op.proof(i, p, strings.TrimSpace(acknowledged)) {
			t.Errorf("%s: what was acknowledged is not so", name)
		}
		i.Close()
		for n, at := range steps {
			t.Run(fmt.Sprintf("%s/%d %s", name, n, at), func(t *testing.T) {
				dir := copied(t)
				if _, err := child(dir, name, n); err == nil || !strings.HasPrefix(err.Error(), "signal: killed") {
					t.Fatalf("was not killed: %v", err)
				}
				kills++
				want := untouched
				if n >= slices.Index(steps, "committed") {
					want = op.after
				}
				i, err := Open(configAt(dir))
				if err != nil {
					t.Fatal(err)
				}
				defer i.Close()
				if got := visible(i); got != want {
					t.Errorf("there is: %s\nwant: %s", got, want)
				}
			})
		}
	}
	t.Logf("%d kills", kills)
}

// note is a line that the busy child prints: before it asks for something, and when it was answered.
type note struct {
	Do, Name, Secret, Refresh, Revoked string
	Done                               bool
}

// busy adds clients, renews and revokes their tokens and removes some of them, until it is killed.
func busy(i *Issuer) error {
	out := json.NewEncoder(os.Stdout)
	type known struct{ name, secret, refresh string }
	var all []known
	for n := 0; ; n++ {
		if n%20 == 0 {
			c := known{name: fmt.Sprintf("c%d", n)}
			out.Encode(note{Do: "add", Name: c.name})
			secret, err := i.AddClient(Client{Name: c.name, Functions: []string{"*"}})
			if err != nil {
				return err
			}
			c.secret = secret
			out.Encode(note{Do: "add", Name: c.name, Secret: secret, Done: true})
			got := askAs(i, c.name, secret, tokenPath, "grant_type", GrantClientCredentials, "scope", "offline_access")
			c.refresh = got.RefreshToken
			out.Encode(note{Do: "refresh", Name: c.name, Refresh: c.refresh, Done: true})
			all = append(all, c)
		}
		c := &all[rand.IntN(len(all))]
		out.Encode(note{Do: "refresh", Name: c.name})
		got := askAs(i, c.name, c.secret, tokenPath, "grant_type", GrantRefreshToken, "refresh_token", c.refresh)
		if got.Status == http.StatusTooManyRequests { // so many live tokens of one family
			c.refresh = askAs(i, c.name, c.secret, tokenPath, "grant_type", GrantClientCredentials, "scope", "offline_access").RefreshToken
			out.Encode(note{Do: "refresh", Name: c.name, Refresh: c.refresh, Done: true})
			continue
		}
		if got.Status != http.StatusOK {
			return fmt.Errorf("refresh: %s", got.Body)
		}
		c.refresh = got.RefreshToken
		out.Encode(note{Do: "refresh", Name: c.name, Refresh: c.refresh, Done: true})
		if n%3 == 0 {
			if got := askAs(i, c.name, c.secret, revokePath, "token", got.AccessToken); got.Status != http.StatusOK {
				return fmt.Errorf("revoke: %s", got.Body)
			}
			out.Encode(note{Do: "revoke", Name: c.name, Revoked: got.AccessToken, Done: true})
		}
		if n%50 == 49 {
			out.Encode(note{Do: "remove", Name: all[0].name})
			if err := i.RemoveClient(all[0].name); err != nil {
				return err
			}
			out.Encode(note{Do: "remove", Name: all[0].name, Done: true})
			all = all[1:]
		}
	}
}

func TestKillAtAnyTimeLosesNothing(t *testing.T) {
	acknowledged := 0
	for n := range 12 {
		dir := filepath.Join(t.TempDir(), "auth")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		cmd.Stderr = os.Stderr
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// After some changes, however long the machine takes for them, and then at any moment.
		changes, moment := 5+rand.IntN(40), time.Duration(rand.IntN(20_000))*time.Microsecond
		begun, clients, revoked := note{}, map[string]note{}, []string{}
		for scanner := bufio.NewScanner(pipe); scanner.Scan(); {
			var line note
			if json.Unmarshal(scanner.Bytes(), &line) != nil {
				break // cut off
			}
			if begun = line; !line.Done {
				continue
			}
			acknowledged++
			if changes--; changes == 0 {
				timer := time.AfterFunc(moment, func() { cmd.Process.Kill() })
				defer timer.Stop()
			}
			c := clients[line.Name]
			switch line.Do {
			case "add":
				c.Secret = line.Secret
			case "refresh":
				c.Refresh = line.Refresh
			case "revoke":
				revoked = append(revoked, line.Revoked)
			}
			if clients[line.Name] = c; line.Do == "remove" {
				delete(clients, line.Name)
			}
		}
		err = cmd.Wait()
		if err == nil || err.Error() != "signal: killed" {
			t.Fatalf("run %d: %v", n, err)
		}
		i, err := Open(configAt(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range revoked {
			if _, err := i.own.Verify(t.Context(), raw); err == nil {
				t.Errorf("run %d: a revoked token holds", n)
			}
		}
		for name, c := range clients {
			if begun.Name == name && !begun.Done { // either way is right
				continue
			}
			form := []string{"grant_type", GrantRefreshToken, "refresh_token", c.Refresh}
			if c.Refresh == "" { // killed before it had one
				form = []string{"grant_type", GrantClientCredentials}
			}
			got := askAs(i, name, c.Secret, tokenPath, form...)
			if got.Status != http.StatusOK && got.Status != http.StatusTooManyRequests {
				t.Errorf("run %d: what %s was given last: %s", n, name, got.Body)
			}
		}
		for _, c := range i.Clients() {
			if _, there := clients[c.Name]; !there && c.Name != begun.Name {
				t.Errorf("run %d: %s is there", n, c.Name)
			}
		}
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d changes were acknowledged", acknowledged)
}
