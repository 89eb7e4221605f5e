// Package fetch brings a bundle from a provider to where it is served, for a container whose image has only a runtime:
// it downloads the zip, checks that it is the version that was meant, to the digest, and provides the packages that it
// asks for.
//
// What comes over the network is untrusted until the digests say otherwise. Nothing of a bundle is run here but the code
// that its packages bring along.
package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/packages"
)

// Request is what to fetch, and where to. No field may be left out but those that say so.
type Request struct {
	URL string // http or https
	// Dir is where the bundle will be, and there only when it is complete. Its parent exists, and takes what is in
	// the making too. A bundle without a name of its own has Dir's.
	Dir string
	// Version is the one that is wanted: its ID and both digests.
	Version model.Version
	// Environment is the folder for an environment with the Python packages that the bundle asks for. It is made if
	// the bundle asks for any.
	Environment string
	Credential  string        // a file; "" is none
	CA          string        // a file with authorities (PEM) for https; "" is the system's
	MaxBytes    int64         // of the zip
	Patience    time.Duration // how long a provider is asked again that does not answer
	Log         *slog.Logger
}

// Run returns when the bundle is at Dir with its packages. What is there already from a run before, complete and of that
// version, is not fetched again.
func Run(ctx context.Context, r Request) error {
	bundle, err := r.bundle(ctx)
	if err != nil {
		return err
	}
	if bundle.Runtime == model.RuntimeR {
		return r.checkR(ctx)
	}
	return r.install(ctx)
}

func (r Request) bundle(ctx context.Context) (*model.Bundle, error) {
	if bundle, err := model.Open(r.Dir); err == nil && r.check(bundle) == nil {
		r.Log.Info("the bundle is there", "version", bundle.Version.ID)
		return bundle, nil
	}
	if err := r.replaceable(); err != nil {
		return nil, err
	}
	work, err := r.empty(".fetch")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	began := time.Now()
	zip := filepath.Join(work, "bundle.zip")
	size, err := r.download(ctx, zip)
	if err != nil {
		return nil, err
	}
	unpacked := filepath.Join(work, filepath.Base(r.Dir))
	if err := os.Mkdir(unpacked, 0o755); err != nil {
		return nil, fmt.Errorf("unpack bundle: %w", err)
	}
	if err := model.Extract(ctx, zip, unpacked, model.DefaultLimits); err != nil {
		return nil, err
	}
	bundle, err := model.Open(unpacked)
	if err != nil {
		return nil, err
	}
	if err := r.check(bundle); err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(r.Dir), os.Rename(unpacked, r.Dir)); err != nil {
		return nil, fmt.Errorf("put the bundle in place: %w", err)
	}
	r.Log.Info("fetched the bundle", "version", bundle.Version.ID, "bytes", size, "took", time.Since(began).Round(time.Millisecond))
	return bundle, nil
}

// replaceable holds what is at Dir to what a run may take away once it has the bundle: nothing, or another bundle.
func (r Request) replaceable() error {
	entries, err := os.ReadDir(r.Dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err == nil {
		_, err = model.Open(r.Dir)
	}
	if err != nil {
		return fmt.Errorf("%s is not replaced, because it is no bundle: %w", r.Dir, err)
	}
	return nil
}

// empty makes an empty folder beside Dir.
func (r Request) empty(name string) (string, error) {
	dir := filepath.Join(filepath.Dir(r.Dir), name)
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return "", fmt.Errorf("make a folder for what is fetched: %w", err)
	}
	return dir, nil
}

// check holds a bundle to the version that is wanted. A label alone proves nothing: the digests decide.
func (r Request) check(b *model.Bundle) error {
	for _, half := range []struct{ name, want, got string }{
		{"code", r.Version.CodeDigest, b.Version.CodeDigest},
		{"coefficients", r.Version.CoefficientsDigest, b.Version.CoefficientsDigest},
		{"version", r.Version.ID, b.Version.ID},
	} {
		if half.got != half.want {
			return fmt.Errorf("%s gave another bundle than version %s: its %s is %s, want %s", r.URL, r.Version.ID, half.name, half.got, half.want)
		}
	}
	return nil
}

// checkR says in one sentence which packages the bundle asks for that R does not have: installing them here would take
// compilers and libraries that an image of a runtime does not have.
func (r Request) checkR(ctx context.Context) error {
	names, err := packages.R(r.Dir)
	if err == nil && len(names) > 0 {
		names, err = packages.MissingR(ctx, "Rscript", names, os.Environ(), nil)
	}
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("%s; that is, in the image that this runs on", packages.LackingR(names))
	}
	return nil
}

// completeMarker is in an environment that is complete, and says for which list and interpreter.
const completeMarker = ".complete"

// install makes the environment, if the bundle asks for packages.
func (r Request) install(ctx context.Context) error {
	list, err := packages.Requirements(r.Dir)
	if err != nil || list == nil {
		return err
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		return fmt.Errorf("the bundle asks for Python packages: %w", err)
	}
	marker := filepath.Join(r.Environment, completeMarker)
	complete := fmt.Appendf(nil, "%x %s\n", sha256.Sum256(list), python)
	if found, err := os.ReadFile(marker); err == nil && bytes.Equal(found, complete) {
		r.Log.Info("the packages are there", "environment", r.Environment)
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the packages: %w", err)
	}
	work, err := r.empty(".install")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := errors.Join(os.RemoveAll(r.Environment), os.Mkdir(r.Environment, 0o755)); err != nil {
		return fmt.Errorf("make the environment: %w", err)
	}
	began := time.Now()
	r.Log.Info("installing the packages of " + packages.RequirementsFile)
	installer := packages.Installer{
		Python: python, Variables: os.Environ(), Progress: func(line string) { r.Log.Info(line) },
	}
	if uv, err := exec.LookPath("uv"); err == nil {
		installer.UV = uv
	}
	if err := installer.Install(ctx, r.Environment, filepath.Join(r.Dir, packages.RequirementsFile), work); err != nil {
		return err
	}
	if err := os.WriteFile(marker, complete, 0o644); err != nil {
		return fmt.Errorf("finish the environment: %w", err)
	}
	r.Log.Info("installed the packages", "took", time.Since(began).Round(time.Millisecond))
	return nil
}
