// Command fwatchdog serves a model bundle as an OpenFaaS function.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/faas-predict/faas-predict/auth/build"
	"github.com/faas-predict/faas-predict/watchdog/fetch"
	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/pool"
	"github.com/faas-predict/faas-predict/watchdog/runner"
	"github.com/faas-predict/faas-predict/watchdog/scratch"
	"github.com/faas-predict/faas-predict/watchdog/server"
)

// release is set by the build (-ldflags "-X main.release=v1.2.3").
var release string

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fwatchdog:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	settings, settingsErr := server.ReadSettings(os.Getenv)
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "":
		if settingsErr != nil {
			return settingsErr
		}
		return serve(settings)
	case "version", "check":
		path := settings.ModelPath
		switch len(args) {
		case 1:
		case 2:
			path = args[1]
		default:
			return fmt.Errorf("%s takes one path", command)
		}
		bundle, cleanup, err := load(path)
		if err != nil {
			return err
		}
		defer cleanup()
		if command == "version" {
			return printVersion(bundle)
		}
		if settingsErr != nil {
			return settingsErr
		}
		return check(settings, bundle)
	case "fetch":
		return fetchBundle(settings, args[1:])
	case "-run-healthcheck", "--run-healthcheck":
		if _, err := os.Stat(server.LockPath()); err != nil {
			return fmt.Errorf("not healthy: %s is missing", server.LockPath())
		}
		return nil
	case "-version", "--version":
		fmt.Println(build.Version(release))
		return nil
	case "-h", "-help", "--help", "help":
		usage()
		return nil
	}
	return fmt.Errorf("unknown command %q; fwatchdog --help lists them", command)
}

func usage() {
	fmt.Print(`fwatchdog serves a model bundle as an OpenFaaS function.

  fwatchdog                   serve model_path until SIGTERM
  fwatchdog version PATH      print the bundle's version as JSON
  fwatchdog check PATH        run init and the bundle's examples, and report
  fwatchdog fetch URL DIR     bring a version from a provider to DIR, and its Python packages
  fwatchdog -run-healthcheck  exit 0 while a watchdog in this container is healthy
  fwatchdog -version          print fwatchdog's own version

PATH is a directory or a zip. Options of fetch, which stand before URL:

`)
	table := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fetchFlags(&fetch.Request{}).VisitAll(func(f *flag.Flag) {
		value, meaning := flag.UnquoteUsage(f)
		fmt.Fprintf(table, "  -%s %s\t%s\t%s\n", f.Name, value, f.DefValue, meaning)
	})
	table.Flush()
	fmt.Print("\nSettings are environment variables:\n\n")
	for _, v := range server.Variables {
		fmt.Fprintf(table, "  %s\t%s\t%s\n", v.Name, v.Default, v.Meaning)
	}
	table.Flush()
}

// load opens a bundle; cleanup removes what a zip was unpacked to.
func load(path string) (bundle *model.Bundle, cleanup func(), err error) {
	folder, err := scratch.New("bundle")
	if err != nil {
		return nil, nil, err
	}
	cleanup = folder.Remove
	if bundle, err = model.Load(context.Background(), path, folder.Path, model.DefaultLimits); err != nil {
		cleanup()
		return nil, nil, err
	}
	return bundle, cleanup, nil
}

// leaveCores keeps the watchdog to half of the cores unless GOMAXPROCS says otherwise. The workers need
// the rest, and threads that hand a call to each other cost more than they gain: on two cores one
// thread serves a fifth more calls than two.
func leaveCores() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
}

func serve(settings server.Settings) error {
	logs := server.StdLogs(settings)
	if n := scratch.Sweep(); n > 0 {
		logs.Logger.Info("removed what a killed watchdog left in the temporary directory", "folders", n)
	}
	bundle, cleanup, err := load(settings.ModelPath)
	if err != nil {
		return err
	}
	defer cleanup()
	// What the watchdog keeps is a few megabytes, so collecting at every doubling of that would cost
	// a tenth of its time; beyond the limit it collects as often as it must.
	debug.SetGCPercent(800)
	debug.SetMemoryLimit(256 << 20)
	leaveCores()

	var interrupted atomic.Bool
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for s := range signals {
			if s == syscall.SIGINT {
				interrupted.Store(true)
			}
			stop()
		}
	}()
	return server.Run(ctx, settings, bundle, logs, interrupted.Load)
}

func printVersion(b *model.Bundle) error {
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(struct {
		Name string `json:"name"`
		model.Version
		Runtime string `json:"runtime"`
	}{b.Name, b.Version, b.Runtime})
}

// check runs init and the examples as serving would, and fails if an answer differs.
func check(settings server.Settings, b *model.Bundle) error {
	settings.PrefixLogs = false
	logs := server.NewLogs(settings, os.Stderr, os.Stderr)
	startMethod := b.StartMethod
	if settings.StartMethod != "" {
		startMethod = settings.StartMethod
	}
	began := time.Now()
	p := pool.New(pool.Config{
		Runner: runner.Config{
			Bundle: b, StartMethod: startMethod, Interpreter: settings.Interpreter, InitTimeout: settings.InitTimeout,
			Log: logs.ModelLine, LogBuffer: settings.LogBufferSize, Logger: logs.Logger,
		},
		Workers: 1, QueueDepth: 1, BatchMaxSize: 1, Logger: slog.New(slog.DiscardHandler), Metrics: &pool.Metrics{},
	})
	defer p.Close()
	for p.Ready() != nil {
		changed := p.Changed()
		if err := p.Failed(); err != nil {
			return err
		}
		if p.Ready() == nil {
			break
		}
		<-changed
	}
	fmt.Printf("%s %s: init took %s\n", b.Name, b.Version.ID, time.Since(began).Round(time.Millisecond))
	if err := server.CheckExamples(context.Background(), p, b, settings.ExecTimeout); err != nil {
		return err
	}
	fmt.Printf("%d of %d examples answered as expected\n", len(b.Examples), len(b.Examples))
	return nil
}
