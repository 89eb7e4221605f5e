// Command faas-auth issues the bearer tokens that say who may call which function, and answers gateways
// that ask whether a call may pass.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/faas-predict/faas-predict/auth/admin"
	"github.com/faas-predict/faas-predict/auth/build"
	"github.com/faas-predict/faas-predict/auth/config"
	"github.com/faas-predict/faas-predict/auth/issuer"
	"github.com/faas-predict/faas-predict/auth/setting"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "faas-auth:", err)
		os.Exit(1)
	}
}

// release is set by the build (-ldflags "-X main.release=v1.2.3").
var release string

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "faas-auth",
		Short: "Issue bearer tokens for functions",
		Long: `faas-auth issues the bearer tokens that say who may call which function.

  faas-auth serve                                           run an issuer
  faas-auth client add shop --functions 'openfaas-fn:iris*' register a client; prints its secret
  curl -d grant_type=client_credentials -u shop http://127.0.0.1:8090/oauth/token
                                                            get a token`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), build.Version(release)) },
	})
	commands := admin.Commands(func(cmd *cobra.Command) (*admin.Client, func() error, error) {
		cfg, err := config.Read(setting.Lookup(cmd.Flags()))
		if err != nil {
			return nil, nil, err
		}
		return openAdmin(cfg, cmd.Name() == "add")
	})
	for _, c := range commands {
		c.PersistentFlags().String("data-dir", "", "directory with the issuer's state (env data_dir); it may be serving")
		root.AddCommand(c)
	}
	return root
}

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run an issuer until SIGINT or SIGTERM",
		Long: `Run an issuer until SIGINT or SIGTERM. Every setting is an environment variable (port=9090) or a flag
(--port 9090); a flag wins.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Read(setting.Lookup(cmd.Flags()))
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg)
		},
	}
	setting.Flags(config.Settings, cmd.Flags())
	return cmd
}

// openAdmin returns a client of the faas-auth that serves data_dir. When none does, this process serves
// the socket itself until done is called, so that there is one way for both.
func openAdmin(cfg *config.Config, mayCreate bool) (_ *admin.Client, done func() error, err error) {
	client := &admin.Client{URL: "http://faas-auth", HTTP: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", cfg.AdminSocket())
		},
	}}}
	conn, err := net.Dial("unix", cfg.AdminSocket())
	if err == nil {
		return client, func() error { client.HTTP.CloseIdleConnections(); return nil }, conn.Close()
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil, fmt.Errorf("data_dir %s belongs to another user: run this command as the user that faas-auth runs as", cfg.DataDir)
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "state.db")); err == nil {
		return nil, nil, fmt.Errorf("data_dir %s is a faas-predict provider's, which has an issuer of its own: use faas-predict client and faas-predict key", cfg.DataDir)
	}
	// A typing mistake must not make an empty issuer that then has no such client.
	if _, err := os.Stat(filepath.Join(cfg.DataDir, issuer.File)); err != nil && !mayCreate {
		return nil, nil, fmt.Errorf("no issuer has served data_dir yet, and none does now: %w", err)
	}
	state, err := issuer.Open(issuer.Config{
		URL: cfg.URL(cfg.Port), Dir: cfg.DataDir, AccessTTL: cfg.AccessTTL, RefreshTTL: cfg.RefreshTTL,
		Algorithm: cfg.SigningAlgorithm, KeyRotation: cfg.KeyRotation, Log: quiet(), Idle: true,
	})
	if errors.Is(err, issuer.ErrInUse) {
		return nil, nil, fmt.Errorf("data_dir %s is in use by a process that does not answer on %s; if that is a faas-predict provider, use faas-predict client and faas-predict key: %w", cfg.DataDir, cfg.AdminSocket(), err)
	}
	if err != nil {
		return nil, nil, err
	}
	server, err := serveAdmin(cfg, state)
	if err != nil {
		return nil, nil, errors.Join(err, state.Close())
	}
	return client, func() error {
		client.HTTP.CloseIdleConnections()
		return errors.Join(server.Shutdown(context.Background()), state.Close())
	}, nil
}
