// Command faas-predict serves models as OpenFaaS functions and is the client of such a provider.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	sdk "github.com/openfaas/go-sdk"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	// In an image with nothing but the program, no registry, issuer or caller would be believed.
	_ "golang.org/x/crypto/x509roots/fallback"

	"github.com/faas-predict/faas-predict/auth/build"
	"github.com/faas-predict/faas-predict/auth/certificate"
	"github.com/faas-predict/faas-predict/auth/setting"
	"github.com/faas-predict/faas-predict/provider/api"
	"github.com/faas-predict/faas-predict/provider/client"
	"github.com/faas-predict/faas-predict/provider/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "faas-predict:", err)
		os.Exit(1)
	}
}

// release is set by the build (-ldflags "-X main.release=v1.2.3").
var release string

func version() string { return build.Version(release) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "faas-predict",
		Short: "Serve models as OpenFaaS functions",
		Long: `faas-predict serves models as OpenFaaS functions. A model is a folder or zip with a
main.py that defines predict(request), and optionally init().

  faas-predict serve               run a provider on this machine
  faas-predict push iris/          give it a model
  faas-predict deploy -f stack.yml push and deploy what a stack.yml describes
  faas-cli list                    every OpenFaaS client works with it`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(issuerCommands()...)
	root.AddCommand(serveCommand(), pushCommand(), deployCommand(), versionsCommand(), labelsCommand(), trafficCommand(), rollbackCommand(), asyncCommand(),
		tokenCommand(), loginCommand(), &cobra.Command{
			Use:   "version",
			Short: "Print the version of this program",
			Args:  cobra.NoArgs,
			Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version()) },
		})
	return root
}

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a provider on this machine",
		Long: `Run a provider on this machine until SIGINT or SIGTERM. Every setting is an environment variable
(port=9090) or a flag (--port 9090); a flag wins.`,
		Args: cobra.NoArgs,
	}
	setting.Flags(config.Settings, cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Read(setting.Lookup(cmd.Flags()))
		if err != nil {
			return err
		}
		return serve(cmd.Context(), cfg)
	}
	return cmd
}

// endpoint is the flags that say where the provider is, and how it is talked to.
type endpoint struct{ gateway, cacert, cert, key string }

func (e *endpoint) register(flags *pflag.FlagSet) {
	flags.StringVarP(&e.gateway, "gateway", "g", defaultGateway(), "URL of the provider (env OPENFAAS_URL)")
	flags.StringVar(&e.cacert, "cacert", "", "file with the authorities (PEM) that an https provider is checked with; default: the system's, or env SSL_CERT_FILE")
	flags.StringVar(&e.cert, "cert", "", "file with the certificate (PEM) to show to a provider that asks for one")
	flags.StringVar(&e.key, "key", "", "file with that certificate's private key (PEM)")
}

func (e *endpoint) client(auth sdk.ClientAuth) (*client.Client, error) {
	secure, err := certificate.ClientConfig(e.cacert, e.cert, e.key)
	if err != nil {
		return nil, err
	}
	c, err := client.New(e.gateway, auth)
	if err != nil {
		return nil, err
	}
	c.SetTLS(secure)
	return c, nil
}

// connection is the flags that every client command has.
type connection struct {
	endpoint
	username, dataDir string
	passwordStdin     bool
	dataDirFlag       *pflag.Flag
}

func defaultGateway() string {
	if gateway := os.Getenv("OPENFAAS_URL"); gateway != "" {
		return gateway
	}
	return "http://127.0.0.1:8080"
}

func (c *connection) flags(cmd *cobra.Command) { c.register(cmd.Flags()) }

func (c *connection) register(flags *pflag.FlagSet) {
	c.endpoint.register(flags)
	flags.StringVarP(&c.username, "username", "u", "", "user; default: what faas-cli login or faas-predict login saved, else the local provider's admin files")
	flags.BoolVarP(&c.passwordStdin, "password-stdin", "s", false, "read the password from standard input")
	flags.StringVar(&c.dataDir, "data-dir", os.Getenv("data_dir"), "data_dir of a provider on this machine, for its admin files (env data_dir)")
	c.dataDirFlag = flags.Lookup("data-dir")
}

func (c *connection) open(stdin io.Reader) (*client.Client, error) {
	if c.passwordStdin != (c.username != "") {
		return nil, errors.New("--username and --password-stdin go together")
	}
	if c.passwordStdin {
		password, err := readSecret(stdin)
		if err != nil {
			return nil, err
		}
		return c.client(&sdk.BasicAuth{Username: c.username, Password: password})
	}
	cfg, err := config.Read(func(name string) string {
		if name == "data_dir" {
			return c.dataDir
		}
		return ""
	})
	if err != nil {
		return nil, err
	}
	credentials, err := client.FindCredentials(c.gateway, cfg.AdminDir(), c.dataDirFlag.Changed)
	if err != nil {
		return nil, err
	}
	return c.client(credentials)
}

func pushCommand() *cobra.Command {
	var c connection
	var name string
	cmd := &cobra.Command{
		Use:     "push DIR|ZIP",
		Short:   "Give the provider a model",
		Example: "  faas-predict push examples/iris\n  faas-predict push model.zip --name iris",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			provider, err := c.open(cmd.InOrStdin())
			if err != nil {
				return err
			}
			v, err := provider.Push(cmd.Context(), args[0], name, progress(cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			what := "pushed"
			if !v.Created {
				what = "unchanged:"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s:%s (%d files, %s)\n", what, v.Model, v.ID, len(v.Files), humanize.IBytes(uint64(v.Bytes)))
			if !v.Zipped {
				fmt.Fprintln(cmd.OutOrStdout(), sent(v))
			}
			return nil
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&name, "name", "", "the model's name; default: the bundle's own")
	return cmd
}

// sent says what of the bundle went over the wire.
func sent(v client.Pushed) string {
	half := func(name string, sent, all int64) string {
		switch sent {
		case 0:
			return name + " unchanged"
		case all:
			return name + " " + humanize.IBytes(uint64(all)) + " sent"
		}
		return fmt.Sprintf("%s %s of %s sent", name, humanize.IBytes(uint64(sent)), humanize.IBytes(uint64(all)))
	}
	return half("coefficients", v.CoefficientsSent, v.CoefficientsBytes) + ", " + half("code", v.CodeSent, v.CodeBytes)
}

// progress draws on a terminal and is silent elsewhere.
func progress(out io.Writer) func(sent, total int64) {
	file, ok := out.(*os.File)
	if !ok {
		return nil
	}
	if info, err := file.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	last := int64(-1)
	return func(sent, total int64) {
		percent := sent * 100 / max(total, 1)
		if percent == last {
			return
		}
		last = percent
		fmt.Fprintf(out, "\rpushing %s of %s (%d %%)", humanize.IBytes(uint64(sent)), humanize.IBytes(uint64(total)), percent)
		if sent == total {
			fmt.Fprintln(out)
		}
	}
}

func deployCommand() *cobra.Command {
	var c connection
	var file, filter, name string
	cmd := &cobra.Command{
		Use:   "deploy [-f stack.yml | DIR|ZIP]",
		Short: "Push models and deploy them as functions",
		Example: "  faas-predict deploy -f stack.yml\n  faas-predict deploy -f stack.yml --filter 'iris*'\n" +
			"  faas-predict deploy examples/iris",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (file == "") == (len(args) == 0) {
				return errors.New("give either -f with a stack file, or a bundle's folder or zip")
			}
			provider, err := c.open(cmd.InOrStdin())
			if err != nil {
				return err
			}
			if file != "" {
				return provider.DeployStack(cmd.Context(), file, filter, cmd.OutOrStdout())
			}
			return provider.DeployBundle(cmd.Context(), args[0], name, progress(cmd.ErrOrStderr()), cmd.OutOrStdout())
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVarP(&file, "yaml", "f", "", "stack file")
	cmd.Flags().StringVar(&filter, "filter", "", "deploy only the functions whose names match, * matches anything")
	cmd.Flags().StringVar(&name, "name", "", "with a bundle: the model's and the function's name; default: the bundle's own")
	return cmd
}

func versionsCommand() *cobra.Command {
	var c connection
	var output string
	cmd := &cobra.Command{
		Use:     "versions [MODEL]",
		Aliases: []string{"models"},
		Short:   "List the versions of a model, or of all",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("output %q: want table or json", output)
			}
			provider, err := c.open(cmd.InOrStdin())
			if err != nil {
				return err
			}
			var all []api.Model
			if len(args) == 1 {
				var m api.Model
				m, err = provider.Model(cmd.Context(), args[0])
				all = []api.Model{m}
			} else {
				all, err = provider.Models(cmd.Context())
			}
			if err != nil {
				return err
			}
			return printModels(cmd.OutOrStdout(), all, output)
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func printModels(out io.Writer, all []api.Model, output string) error {
	if output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(all)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MODEL\tVERSION\tLATEST\tSTATE\tSIZE\tPUSHED")
	for _, m := range all {
		for _, v := range m.Versions {
			latest := ""
			if v.ID == m.Latest {
				latest = "yes"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, v.ID, latest, v.State, humanize.IBytes(uint64(v.Bytes)), humanize.Time(v.PushedAt))
		}
	}
	return table.Flush()
}
