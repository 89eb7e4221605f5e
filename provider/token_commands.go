package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faas-predict/faas-predict/auth/admin"
	"github.com/faas-predict/faas-predict/auth/token"
	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/client"
)

// issuerCommands are those that register clients and rotate keys of a running provider's issuer.
func issuerCommands() []*cobra.Command {
	var c connection
	commands := admin.Commands(func(cmd *cobra.Command) (*admin.Client, func() error, error) {
		provider, err := c.open(cmd.InOrStdin())
		if err != nil {
			return nil, nil, err
		}
		return provider.Tokens(), func() error { return nil }, nil
	})
	for _, cmd := range commands {
		c.register(cmd.PersistentFlags())
	}
	return commands
}

// registered is the flags of commands that ask for a token as a registered client.
type registered struct {
	endpoint
	name        string
	secretStdin bool
}

func (r *registered) flags(cmd *cobra.Command) {
	r.register(cmd.Flags())
	cmd.Flags().StringVarP(&r.name, "username", "u", "", "name of a registered client")
	cmd.Flags().BoolVarP(&r.secretStdin, "password-stdin", "s", false, "read the client's secret from standard input")
}

func (r *registered) open(stdin io.Reader) (c *client.Client, secret string, err error) {
	if r.name == "" || !r.secretStdin {
		// Arguments of a process are there for everyone to read, so there is no flag for the secret.
		return nil, "", errors.New("give --username and the client's secret on standard input with --password-stdin")
	}
	if secret, err = readSecret(stdin); err != nil {
		return nil, "", err
	}
	c, err = r.client(nil)
	return c, secret, err
}

func readSecret(stdin io.Reader) (string, error) {
	const longest = 4 << 10
	raw, err := io.ReadAll(io.LimitReader(stdin, longest+1))
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	if len(raw) > longest {
		return "", fmt.Errorf("the password on standard input is longer than %d bytes", longest)
	}
	return strings.TrimSpace(string(raw)), nil
}

func tokenCommand() *cobra.Command {
	var r registered
	var functions []string
	var scope string
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Print an access token of a registered client",
		Example: "  faas-predict token -u shop -s < shop.secret\n" +
			"  curl -H \"Authorization: Bearer $(faas-predict token -u shop -s < shop.secret)\" -d '5.1,3.5,1.4,0.2' http://127.0.0.1:8080/function/iris-protected",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			audience := make([]string, 0, len(functions))
			for _, name := range functions {
				ref, err := backend.ParseRef(name, "")
				if err != nil {
					return err
				}
				audience = append(audience, ref.Namespace+":"+ref.Name)
			}
			provider, secret, err := r.open(cmd.InOrStdin())
			if err != nil {
				return err
			}
			issued, err := provider.Token(cmd.Context(), r.name, secret, scope, audience)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), issued.AccessToken)
			return err
		},
	}
	r.flags(cmd)
	cmd.Flags().StringVar(&scope, "scope", token.ScopeFunction, "what the token is for: function, to call functions, or system, to administer the provider (faas-cli's --token)")
	cmd.Flags().StringSliceVar(&functions, "function", nil, "a token for this function only, NAME or NAME.NAMESPACE; may be repeated")
	return cmd
}

func loginCommand() *cobra.Command {
	var r registered
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Save a token for this program and faas-cli",
		Long: `Save an access token of a registered client where faas-cli looks for one, so that faas-cli and this program
need no password. A client that was registered with --admin may deploy; others may call their functions.
The token holds for half an hour unless the client or the provider was given another time; then log in again.`,
		Example: "  faas-predict client add ops --admin --access-ttl 8h > ops.secret\n  faas-predict login -u ops -s < ops.secret\n  faas-cli list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			provider, secret, err := r.open(cmd.InOrStdin())
			if err != nil {
				return err
			}
			issued, err := provider.Token(cmd.Context(), r.name, secret, "", nil)
			if err != nil {
				return err
			}
			file, err := provider.Save(issued.AccessToken)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "token for %s (%s) saved in %s; it holds until %s\n", provider.Gateway(), issued.Scope, file, issued.Expires.Format(time.DateTime))
			return nil
		},
	}
	r.flags(cmd)
	return cmd
}
