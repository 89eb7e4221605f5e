// Command figures prints what containers cost, in one run on one machine: the sizes of images and of what a push sends,
// the time of builds, the time from a deployment to the first answer, and requests/s through the provider against direct
// to what runs the model. Each backend runs as users have it, on a real engine.
//
// It needs root, wrk, what `make build` and `make engines` build, and what .ci/setup installs. Arguments choose among images,
// process, swarm and kubernetes; without any, all are measured.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/faas-predict/faas-predict/tests/cluster/engine"
	"github.com/faas-predict/faas-predict/tests/cluster/images"
	"github.com/faas-predict/faas-predict/tests/cluster/kube"
)

func main() {
	kube.Main()
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

// bases is where the roots of base images are kept.
const bases = ".cache/bases"

// bench is what the steps share: an engine that builds, and a registry that it pushes to.
type bench struct {
	dir      string
	docker   *engine.Engine
	registry *registry
}

func run(ctx context.Context, chosen []string) (err error) {
	b := &bench{}
	if b.dir, err = os.MkdirTemp("", "figures-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	// A function on the process backend has a user of its own, which must reach the provider's data.
	if err := os.Chmod(b.dir, 0o711); err != nil {
		return err
	}
	if b.registry, err = startRegistry(); err != nil {
		return err
	}
	defer b.registry.stop()
	if b.docker, err = engine.Start(ctx, "10.198.0.0/16"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.docker.Stop()) }()
	if err := b.docker.MakeBase(ctx, engine.Python, bases); err != nil {
		return err
	}
	if _, err := b.docker.Docker(ctx, "build", "--quiet", "--file", "watchdog/Dockerfile", "--tag", images.Watchdog, "bin"); err != nil {
		return fmt.Errorf("make build comes first: %w", err)
	}
	iris, err := b.build(ctx, small, small.folder)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		run  func(context.Context, built) error
	}{
		{"images", func(ctx context.Context, _ built) error { return b.images(ctx) }},
		{"process", b.process},
		{"swarm", b.swarm},
		{"kubernetes", b.kubernetes},
	} {
		if len(chosen) > 0 && !slices.Contains(chosen, step.name) {
			continue
		}
		fmt.Printf("\n%s\n", step.name)
		if err := step.run(ctx, iris); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// row prints a figure.
func row(what, figure string) { fmt.Printf("  %-72s %s\n", what, figure) }

// spread is the median of several figures, with the least and the most.
func spread[T int64 | float64 | time.Duration](of []T, show func(T) string) string {
	sorted := slices.Sorted(slices.Values(of))
	return fmt.Sprintf("%s (%s to %s)", show(sorted[len(sorted)/2]), show(sorted[0]), show(sorted[len(sorted)-1]))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
func times(ratio float64) string     { return fmt.Sprintf("%.2fx", ratio) }
func rate(perSecond float64) string  { return fmt.Sprintf("%.0f/s", perSecond) }

// size shows bytes; a MB has 1,000,000 of them, as docker has it.
func size(bytes int64) string {
	switch {
	case bytes < 10_000:
		return fmt.Sprintf("%d B", bytes)
	case bytes < 1_000_000:
		return fmt.Sprintf("%.0f kB", float64(bytes)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(bytes)/1e6)
}
