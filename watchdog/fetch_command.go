package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/fetch"
	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/server"
)

// fetchFlags are fetch's, which fill r.
func fetchFlags(r *fetch.Request) *flag.FlagSet {
	flags := flag.NewFlagSet("fetch", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // run's caller says what is wrong
	flags.StringVar(&r.Version.ID, "version", "", "the `VERSION` that is wanted")
	flags.StringVar(&r.Version.CodeDigest, "code-digest", "", "its code's digest, 64 hex `DIGITS`")
	flags.StringVar(&r.Version.CoefficientsDigest, "coefficients-digest", "", "its coefficients' digest, 64 hex `DIGITS`")
	flags.StringVar(&r.Credential, "credential", "", "`FILE` with the bearer token to ask with; none without it")
	flags.StringVar(&r.CA, "ca", "", "`FILE` with the authorities (PEM) of an https URL; the system's without it")
	flags.StringVar(&r.Environment, "environment", "", "`FOLDER` for the Python packages that the bundle asks for; .environment beside DIR without it")
	flags.Int64Var(&r.MaxBytes, "max-bytes", model.DefaultLimits.MaxBytes, "largest zip, in `BYTES`")
	flags.DurationVar(&r.Patience, "patience", 10*time.Minute, "how `LONG` a provider is asked again that does not answer")
	return flags
}

// fetchBundle is the command fetch: it reads the arguments behind it.
func fetchBundle(settings server.Settings, args []string) error {
	var r fetch.Request
	flags := fetchFlags(&r)
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	if flags.NArg() != 2 {
		return errors.New("fetch takes a URL and a directory, behind its options")
	}
	r.URL = flags.Arg(0)
	if r.Version.ID == "" || !model.ValidSHA256(r.Version.CodeDigest) || !model.ValidSHA256(r.Version.CoefficientsDigest) {
		return errors.New("fetch takes -version, -code-digest and -coefficients-digest: without them anything could be served")
	}
	if r.MaxBytes < 1 || r.Patience < 0 {
		return errors.New("fetch takes a -max-bytes of 1 or more, and a -patience of 0s or more")
	}
	dir, err := filepath.Abs(flags.Arg(1))
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	r.Dir = dir
	if r.Environment == "" {
		r.Environment = filepath.Join(filepath.Dir(dir), ".environment")
	}
	r.Log = server.StdLogs(settings).Logger
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return fetch.Run(ctx, r)
}
