// Package images builds functions' images with a real engine, from the shrink-wrapped context that go-sdk makes: the
// same that faas-cli makes and that CI builds.
package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/openfaas/go-sdk/builder"

	"github.com/faas-predict/faas-predict/tests/cluster/engine"
)

// Watchdog is the name of fwatchdog's image in the engine.
const Watchdog = "local/fwatchdog:latest"

// MakeWatchdog builds the programs' images of the project in root, as users do, on bases that the engine has.
func MakeWatchdog(ctx context.Context, e *engine.Engine, root string) error {
	dir, err := os.MkdirTemp("", "programs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.CommandContext(ctx, "make", "--directory", root, "images", "IMAGE_PREFIX=local", "BIN="+dir,
		engine.Python.Argument(), engine.R.Argument())
	cmd.Env = e.Environ()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make images: %w: %s", err, out)
	}
	return nil
}

// Function is what is to be built.
type Function struct {
	Language string // a template's name
	Base     engine.Base
	Handler  string   // the bundle's folder
	Image    string   // the name that the image gets
	Args     []string // further arguments of docker build
}

// Build builds the function with the templates of the project in root. Its steps may reach what this machine reaches.
func Build(ctx context.Context, e *engine.Engine, root string, f Function) error {
	dir, err := os.MkdirTemp("", "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	folder, err := builder.CreateBuildContext("function", f.Handler, f.Language, nil,
		builder.WithBuildDir(dir), builder.WithTemplateDir(filepath.Join(root, "template")))
	if err != nil {
		return fmt.Errorf("make build context: %w", err)
	}
	args := append([]string{"build", "--network", "host", "--tag", f.Image,
		"--build-arg", "WATCHDOG_IMAGE=" + Watchdog, "--build-arg", f.Base.Argument()}, f.Args...)
	_, err = e.Docker(ctx, append(args, folder)...)
	return err
}
