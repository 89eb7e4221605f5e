package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/faas-predict/faas-predict/auth/issuer"
)

// Commands returns the commands `client` and `key`. open is called by each when it runs, and done when
// it has ended; flags that open needs are the caller's to add to both.
func Commands(open func(*cobra.Command) (c *Client, done func() error, err error)) []*cobra.Command {
	run := func(do func(cmd *cobra.Command, args []string, c *Client) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) (err error) {
			c, done, err := open(cmd)
			if err != nil {
				return err
			}
			defer func() {
				if closeErr := done(); err == nil {
					err = closeErr
				}
			}()
			return do(cmd, args, c)
		}
	}
	return []*cobra.Command{clientCommand(run), keyCommand(run)}
}

type runner func(func(cmd *cobra.Command, args []string, c *Client) error) func(*cobra.Command, []string) error

func clientCommand(run runner) *cobra.Command {
	parent := &cobra.Command{
		Use:   "client",
		Short: "Register the programs that may ask for tokens",
		Long: `Register the programs that may ask for tokens. The secret of a client is printed once, alone on standard
output, so that it can go straight to where it is needed.`,
		Example: "  client add shop --functions 'openfaas-fn:iris*' > /run/secrets/shop",
	}
	var wanted issuer.Client
	var ttl time.Duration
	add := &cobra.Command{
		Use:   "add NAME",
		Short: "Register a client and print its secret",
		Args:  cobra.ExactArgs(1),
		RunE: run(func(cmd *cobra.Command, args []string, c *Client) error {
			wanted.Name, wanted.AccessTTLSeconds = args[0], int(ttl/time.Second)
			got, err := c.Add(cmd.Context(), wanted)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "client %s may call %s%s; its secret is shown only now\n", got.Name, strings.Join(got.Functions, ", "), administrator(got.Client))
			fmt.Fprintln(cmd.OutOrStdout(), got.Secret)
			return nil
		}),
	}
	add.Flags().StringSliceVar(&wanted.Functions, "functions", nil, "what it may call: NAMESPACE:FUNCTION, where * stands for any run of letters, or * for all; may be repeated")
	add.Flags().BoolVar(&wanted.Admin, "admin", false, "let it get tokens of scope system, which administer the provider; without --functions it may call all")
	add.Flags().DurationVar(&ttl, "access-ttl", 0, "how long its access tokens hold; default: the issuer's setting")
	var output string
	list := &cobra.Command{
		Use:   "list",
		Short: "List the clients",
		Args:  cobra.NoArgs,
		RunE: run(func(cmd *cobra.Command, _ []string, c *Client) error {
			all, err := c.List(cmd.Context())
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, all, "NAME\tADMIN\tDISABLED\tCREATED\tFUNCTIONS", func(c issuer.Client) string {
				return fmt.Sprintf("%s\t%t\t%t\t%s\t%s", c.Name, c.Admin, c.Disabled, c.Created.Format(time.RFC3339), strings.Join(c.Functions, " "))
			})
		}),
	}
	outputFlag(list, &output)
	parent.AddCommand(add, list,
		&cobra.Command{
			Use:   "remove NAME",
			Short: "Remove a client and take back its tokens",
			Args:  cobra.ExactArgs(1),
			RunE: run(func(cmd *cobra.Command, args []string, c *Client) error {
				return done(cmd, c.Remove(cmd.Context(), args[0]), "client %s removed; its tokens are taken back", args[0])
			}),
		},
		&cobra.Command{
			Use:   "reset-secret NAME",
			Short: "Take back a client's secret and its tokens, and print a new secret",
			Args:  cobra.ExactArgs(1),
			RunE: run(func(cmd *cobra.Command, args []string, c *Client) error {
				got, err := c.ResetSecret(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), got.Secret)
				return nil
			}),
		},
		&cobra.Command{
			Use:   "disable NAME",
			Short: "Give a client no more tokens, and take back those it has",
			Args:  cobra.ExactArgs(1),
			RunE: run(func(cmd *cobra.Command, args []string, c *Client) error {
				return done(cmd, c.SetDisabled(cmd.Context(), args[0], true), "client %s disabled; its tokens are taken back", args[0])
			}),
		},
		&cobra.Command{
			Use:   "enable NAME",
			Short: "Let a disabled client get tokens again",
			Args:  cobra.ExactArgs(1),
			RunE: run(func(cmd *cobra.Command, args []string, c *Client) error {
				return done(cmd, c.SetDisabled(cmd.Context(), args[0], false), "client %s enabled", args[0])
			}),
		},
		&cobra.Command{
			Use:   "revoke-tokens CLIENT-ID",
			Short: "Take back all tokens of a client, or of somebody with an outside issuer's token (ISSUER|SUBJECT)",
			Args:  cobra.ExactArgs(1),
			RunE: run(func(cmd *cobra.Command, args []string, c *Client) error {
				return done(cmd, c.RevokeTokens(cmd.Context(), args[0]), "tokens of %s taken back", args[0])
			}),
		})
	return parent
}

// done says what was done, unless it was not.
func done(cmd *cobra.Command, err error, format string, args ...any) error {
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
	return err
}

func administrator(c issuer.Client) string {
	if c.Admin {
		return " and administer the provider"
	}
	return ""
}

func keyCommand(run runner) *cobra.Command {
	parent := &cobra.Command{
		Use:   "key",
		Short: "Look after the keys that sign tokens",
		Long: `Look after the keys that sign tokens. They rotate by themselves; these commands are for looking, and for
the day that a key may be in other hands.`,
	}
	var output string
	list := &cobra.Command{
		Use:   "list",
		Short: "List the published keys",
		Args:  cobra.NoArgs,
		RunE: run(func(cmd *cobra.Command, _ []string, c *Client) error {
			all, err := c.Keys(cmd.Context())
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, all, "KID\tALGORITHM\tSTATE\tSIGNS FROM\tPUBLISHED UNTIL", func(k issuer.KeyInfo) string {
				until := "-"
				if !k.PublishedUntil.IsZero() {
					until = k.PublishedUntil.Format(time.RFC3339)
				}
				return fmt.Sprintf("%s\t%s\t%s\t%s\t%s", k.ID, k.Algorithm, k.State, k.SignsFrom.Format(time.RFC3339), until)
			})
		}),
	}
	outputFlag(list, &output)
	parent.AddCommand(list,
		&cobra.Command{
			Use:   "rotate",
			Short: "Publish a new key, which signs after 10 minutes",
			Args:  cobra.NoArgs,
			RunE: run(func(cmd *cobra.Command, _ []string, c *Client) error {
				next, err := c.RotateKeys(cmd.Context())
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s signs from %s\n", next.ID, next.SignsFrom.Format(time.RFC3339))
				return nil
			}),
		},
		&cobra.Command{
			Use:   "revoke KID",
			Short: "Take back a key at once, and with it every token that it signed",
			Args:  cobra.ExactArgs(1),
			RunE: run(func(cmd *cobra.Command, args []string, c *Client) error {
				return done(cmd, c.RevokeKey(cmd.Context(), args[0]), "key %s revoked, with every token that it signed", args[0])
			}),
		})
	return parent
}

func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "table or json")
}

func show[T any](out io.Writer, format string, all []T, head string, row func(T) string) error {
	switch format {
	case "json":
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(all)
	case "table":
	default:
		return fmt.Errorf("output %q: want table or json", format)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, head)
	for _, one := range all {
		fmt.Fprintln(table, row(one))
	}
	return table.Flush()
}
