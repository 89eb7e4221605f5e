package fetch

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/faas-predict/faas-predict/watchdog/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// iris is a bundle, its version and its zip.
func iris(t *testing.T, files map[string]string) (model.Version, []byte) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "iris")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "main.py"), []byte("def predict(request): return request\n"), 0o644))
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	b, err := model.Open(dir)
	must(t, err)
	var packed bytes.Buffer
	must(t, b.Pack(&packed))
	return b.Version, packed.Bytes()
}

// request is one for what handler serves, with its log.
func request(t *testing.T, v model.Version, handler http.HandlerFunc) (Request, *bytes.Buffer) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	var log bytes.Buffer
	credential := filepath.Join(t.TempDir(), "credential")
	must(t, os.WriteFile(credential, []byte("s3cret\n"), 0o600))
	dir := t.TempDir()
	return Request{
		URL: server.URL + "/bundle", Dir: filepath.Join(dir, "iris"), Version: v, Environment: filepath.Join(dir, ".environment"),
		Credential: credential, MaxBytes: 1 << 20, Patience: 10 * time.Second, Log: slog.New(slog.NewTextHandler(&log, nil)),
	}, &log
}

func serve(zip []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer s3cret" {
			http.Error(w, "invalid credentials", http.StatusUnauthorized)
			return
		}
		_, _ = w.Write(zip)
	}
}

func left(t *testing.T, r Request) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(r.Dir))
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestABundleIsFetchedOnceAndWhole(t *testing.T) {
	v, zip := iris(t, map[string]string{"weights.bin": "1 2 3"})
	asked := 0
	r, log := request(t, v, func(w http.ResponseWriter, r *http.Request) { asked++; serve(zip)(w, r) })
	for range 2 {
		must(t, Run(t.Context(), r))
	}
	if asked != 1 {
		t.Errorf("it was asked for %d times, want once", asked)
	}
	b, err := model.Open(r.Dir)
	must(t, err)
	if b.Version != v || b.Name != "iris" {
		t.Errorf("it is %s %+v, want %+v", b.Name, b.Version, v)
	}
	if names := left(t, r); len(names) != 1 {
		t.Errorf("left beside the bundle: %v", names)
	}
	if strings.Contains(log.String(), "s3cret") {
		t.Error("the log has the credential:", log)
	}
	// What somebody spoilt is fetched anew.
	must(t, os.WriteFile(filepath.Join(r.Dir, "weights.bin"), []byte("4"), 0o644))
	must(t, Run(t.Context(), r))
	if b, err := model.Open(r.Dir); err != nil || b.Version != v {
		t.Errorf("after it was spoilt it is %+v, %v", b, err)
	}
}

func TestWhatIsNotTheVersionIsRefusedAtOnce(t *testing.T) {
	v, zip := iris(t, nil)
	_, other := iris(t, map[string]string{"weights.bin": "other coefficients"})
	_, code := iris(t, map[string]string{"main.py": "def predict(request): return 'no'\n"})
	label := v
	label.ID = "1.0_2026"
	for name, c := range map[string]struct {
		version model.Version
		handler http.HandlerFunc
		limit   int64
		says    string
	}{
		"other coefficients": {v, serve(other), 0, "its coefficients is"},
		"other code":         {v, serve(code), 0, "its code is"},
		"another label":      {label, serve(zip), 0, "its version is"},
		"no zip":             {v, serve([]byte("hello")), 0, "bundle is not a zip file"},
		"too large":          {v, serve(zip), int64(len(zip)) - 1, "are allowed"},
		"too large, unannounced": {v, func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			serve(zip)(w, r)
		}, int64(len(zip)) - 1, "is larger than"},
		"a path that escapes": {v, serve(escaping(t)), 0, "leaves the bundle"},
		"a link":              {v, serve(link(t)), 0, "is a link"},
		"401": {v, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "invalid credentials", http.StatusUnauthorized)
		}, 0, "401 Unauthorized: invalid credentials"},
		"404": {v, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such version", http.StatusNotFound) }, 0, "404 Not Found: no such version"},
		"a redirect": {v, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://elsewhere.example/", http.StatusFound)
		}, 0, "302 Found"},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			r, log := request(t, c.version, func(w http.ResponseWriter, r *http.Request) { asked++; c.handler(w, r) })
			if c.limit > 0 {
				r.MaxBytes = c.limit
			}
			err := Run(t.Context(), r)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			if asked != 1 {
				t.Errorf("it was asked for %d times", asked)
			}
			if names := left(t, r); len(names) > 0 {
				t.Errorf("left behind: %v", names)
			}
			if strings.Contains(log.String()+fmt.Sprint(err), "s3cret") {
				t.Errorf("the credential is in the log or the error: %s %v", log, err)
			}
		})
	}
}

// packed is a zip with one entry that a bundle may not have.
func packed(t *testing.T, name string, mode fs.FileMode) []byte {
	t.Helper()
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	header := &zip.FileHeader{Name: name}
	header.SetMode(mode)
	entry, err := archive.CreateHeader(header)
	must(t, err)
	_, err = entry.Write([]byte("/etc/passwd"))
	must(t, errors.Join(err, archive.Close()))
	return out.Bytes()
}

func escaping(t *testing.T) []byte { return packed(t, "../main.py", 0o644) }
func link(t *testing.T) []byte     { return packed(t, "main.py", fs.ModeSymlink|0o777) }

func TestAProviderThatRestartsIsAskedAgain(t *testing.T) {
	v, zip := iris(t, nil)
	for name, trouble := range map[string]http.HandlerFunc{
		"it answers 503": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"it hangs up":    func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"it hangs up in the middle": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(zip[:9])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"it sends less than it promised": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "99")
			_, _ = w.Write(zip[:9])
		},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			r, log := request(t, v, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) < 3 {
					trouble(w, r)
					return
				}
				serve(zip)(w, r)
			})
			if err := Run(t.Context(), r); err != nil {
				t.Errorf("%v\n%s", err, log)
			}
			if n := strings.Count(log.String(), "it is tried again"); n != 2 {
				t.Errorf("the log tells of %d failures, want 2:\n%s", n, log)
			}
		})
	}
}

func TestPatienceAndSignalsEndIt(t *testing.T) {
	v, _ := iris(t, nil)
	r, _ := request(t, v, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	r.Patience = time.Second
	began := time.Now()
	if err := Run(t.Context(), r); err == nil || !strings.Contains(err.Error(), "given up after") || time.Since(began) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	r.Patience = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := Run(ctx, r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestACredentialBelongsInAFile(t *testing.T) {
	v, zip := iris(t, nil)
	r, _ := request(t, v, serve(zip))
	r.URL = strings.Replace(r.URL, "http://", "http://admin:s3cret@", 1)
	if err := Run(t.Context(), r); err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "a credential belongs in a file") {
		t.Errorf("got %v", err)
	}
}

func TestPythonPackagesAreInstalledBesideTheBundle(t *testing.T) {
	index := t.TempDir()
	wheel(t, index, "plants")
	t.Setenv("PIP_NO_INDEX", "1")
	t.Setenv("PIP_FIND_LINKS", index)
	t.Setenv("UV_NO_INDEX", "1")
	t.Setenv("UV_FIND_LINKS", index)
	v, zip := iris(t, map[string]string{"requirements.txt": "plants==1.0\n"})
	r, log := request(t, v, serve(zip))
	for range 2 {
		if err := Run(t.Context(), r); err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
	}
	if found, _ := filepath.Glob(filepath.Join(r.Environment, "lib", "python3*", "site-packages", "plants.py")); len(found) != 1 {
		t.Errorf("the package is not in the environment; the log says\n%s", log)
	}
	if n := strings.Count(log.String(), "installed the packages"); n != 1 {
		t.Errorf("they were installed %d times", n)
	}
}

// A volume may outlive a version.
func TestAnotherVersionsPackagesAreInstalledAnew(t *testing.T) {
	index := t.TempDir()
	for _, name := range []string{"plants", "roses"} {
		wheel(t, index, name)
	}
	t.Setenv("PIP_NO_INDEX", "1")
	t.Setenv("PIP_FIND_LINKS", index)
	t.Setenv("UV_NO_INDEX", "1")
	t.Setenv("UV_FIND_LINKS", index)
	var r Request
	for n, list := range []string{"plants==1.0\n", "plants==1.0\nroses==1.0\n"} {
		v, zip := iris(t, map[string]string{"requirements.txt": list})
		next, log := request(t, v, serve(zip))
		if n > 0 {
			next.Dir, next.Environment = r.Dir, r.Environment
		}
		r = next
		if err := Run(t.Context(), r); err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
	}
	if found, _ := filepath.Glob(filepath.Join(r.Environment, "lib", "python3*", "site-packages", "roses.py")); len(found) != 1 {
		t.Error("the second version's package is not in the environment")
	}
}

func TestNothingIsTakenAwayBeforeTheBundleIsThere(t *testing.T) {
	v, zip := iris(t, nil)
	r, _ := request(t, v, serve(zip))
	must(t, Run(t.Context(), r))
	// Another version that cannot be had leaves this one.
	other, _ := iris(t, map[string]string{"weights.bin": "other"})
	r.Version = other
	if err := Run(t.Context(), r); err == nil {
		t.Fatal("another version was taken for the one that was wanted")
	}
	if b, err := model.Open(r.Dir); err != nil || b.Version != v {
		t.Errorf("what was there is %+v, %v", b, err)
	}
	// A folder that holds something else is not a place for a bundle.
	r, _ = request(t, v, serve(zip))
	must(t, os.Mkdir(r.Dir, 0o755))
	precious := filepath.Join(r.Dir, "precious")
	must(t, os.WriteFile(precious, []byte("x"), 0o644))
	if err := Run(t.Context(), r); err == nil || !strings.Contains(err.Error(), "no bundle") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeInstalledSaysWhy(t *testing.T) {
	bin := t.TempDir()
	must(t, os.WriteFile(filepath.Join(bin, "python3"), []byte("#!/bin/sh\necho no distribution for roses==1\nexit 1\n"), 0o755))
	t.Setenv("PATH", bin)
	v, zip := iris(t, map[string]string{"requirements.txt": "roses==1\n"})
	r, log := request(t, v, serve(zip))
	err := Run(t.Context(), r)
	if want := "requirements.txt cannot be installed: python3: exit status 1\nno distribution for roses==1"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if !strings.Contains(log.String(), "no distribution for roses==1") {
		t.Error("the log does not tell of it:", log)
	}
	if names := left(t, r); !slices.Contains(names, "iris") || slices.Contains(names, ".install") {
		t.Errorf("left: %v", names)
	}
}

// wheel makes a package of one module.
func wheel(t *testing.T, dir, name string) {
	t.Helper()
	out, err := os.Create(filepath.Join(dir, name+"-1.0-py3-none-any.whl"))
	must(t, err)
	archive := zip.NewWriter(out)
	for file, text := range map[string]string{
		"NAME.py":                     "def name(): return 'iris'\n",
		"NAME-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: NAME\nVersion: 1.0\n",
		"NAME-1.0.dist-info/WHEEL":    "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		"NAME-1.0.dist-info/RECORD":   "NAME.py,,\nNAME-1.0.dist-info/METADATA,,\nNAME-1.0.dist-info/WHEEL,,\nNAME-1.0.dist-info/RECORD,,\n",
	} {
		entry, err := archive.Create(strings.ReplaceAll(file, "NAME", name))
		must(t, err)
		_, err = entry.Write([]byte(strings.ReplaceAll(text, "NAME", name)))
		must(t, err)
	}
	must(t, errors.Join(archive.Close(), out.Close()))
}

func TestRPackagesThatAreMissingAreNamed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "iris")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "main.R"), []byte("predict <- function(request) request\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "packages.txt"), []byte("stats\nnoSuchPackage\n"), 0o644))
	b, err := model.Open(dir)
	must(t, err)
	var zip bytes.Buffer
	must(t, b.Pack(&zip))
	r, _ := request(t, b.Version, serve(zip.Bytes()))
	if err := Run(t.Context(), r); err == nil || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "packages.txt names noSuchPackage, which is not installed") {
		t.Errorf("got %v", err)
	}
}

func TestOverHTTPSOnlyAKnownAuthorityIsBelieved(t *testing.T) {
	v, zip := iris(t, nil)
	var asked atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked.Add(1); serve(zip)(w, r) }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	r, _ := request(t, v, serve(zip))
	r.URL = server.URL
	if err := Run(t.Context(), r); err == nil || !strings.Contains(err.Error(), "certificate") || asked.Load() > 0 {
		t.Errorf("with the system's authorities it was asked for %d times: %v", asked.Load(), err)
	}
	r.CA = filepath.Join(t.TempDir(), "ca.crt")
	must(t, os.WriteFile(r.CA, []byte("no certificate"), 0o644))
	if err := Run(t.Context(), r); err == nil || !strings.Contains(err.Error(), "ca.crt has no certificate (PEM)") {
		t.Errorf("a file without any: %v", err)
	}
	must(t, os.WriteFile(r.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644))
	must(t, Run(t.Context(), r))
}
