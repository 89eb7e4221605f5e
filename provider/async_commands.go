package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/faas-predict/faas-predict/provider/async"
	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/client"
)

func asyncCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "async",
		Short: "Asynchronous calls that were given up: list, requeue and delete them",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(
		deadCommand("list", "List the dead letters", nil),
		deadCommand("requeue", "Have dead letters tried again: a call is executed again, a result is reported again", (*client.Client).RequeueDead),
		deadCommand("delete", "Delete dead letters", (*client.Client).DeleteDead),
	)
	return cmd
}

// deadCommand lists dead letters when do is nil, else it does that to those that are chosen.
func deadCommand(use, short string, do func(*client.Client, context.Context, uint64) error) *cobra.Command {
	var c chosen
	var function string
	var all bool
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	if do != nil {
		cmd.Use, cmd.Args = use+" [ID ...]", cobra.ArbitraryArgs
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var ref backend.Ref
		var err error
		if function != "" {
			if ref, err = c.function(function); err != nil {
				return err
			}
		}
		provider, err := c.open(cmd.InOrStdin())
		if err != nil {
			return err
		}
		if do == nil {
			return listDead(cmd, provider, ref, c.output)
		}
		var ids []uint64
		for _, arg := range args {
			id, err := strconv.ParseUint(arg, 10, 63)
			if err != nil {
				return fmt.Errorf("%q is not the id of a dead letter: see the list", arg)
			}
			ids = append(ids, id)
		}
		switch {
		case len(ids) > 0 && (all || function != ""):
			return errors.New("ids, or --function or --all, but not both")
		case len(ids) == 0 && !all && function == "":
			return errors.New("which ones? Give ids, --function or --all")
		case len(ids) == 0:
			// First all ids: what is requeued may be dead again before the list has been read.
			if err := provider.DeadLetters(cmd.Context(), ref, func(d async.DeadLetter) error {
				ids = append(ids, d.ID)
				return nil
			}); err != nil {
				return err
			}
		}
		for _, id := range ids {
			if err := do(provider, cmd.Context(), id); err != nil {
				return fmt.Errorf("%s %d: %w", use, id, err)
			}
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d dead letters: %sd\n", len(ids), use)
		return nil
	}
	c.connection.flags(cmd)
	cmd.Flags().StringVarP(&c.namespace, "namespace", "n", "", "the function's namespace; default: "+backend.DefaultNamespace)
	cmd.Flags().StringVar(&function, "function", "", "only those of this function")
	c.output = "table"
	if do == nil {
		cmd.Flags().StringVarP(&c.output, "output", "o", "table", "table or json, a line each")
	} else {
		cmd.Flags().BoolVar(&all, "all", false, "every dead letter")
	}
	return cmd
}

func listDead(cmd *cobra.Command, provider *client.Client, ref backend.Ref, output string) error {
	if output == "json" {
		e := json.NewEncoder(cmd.OutOrStdout())
		return provider.DeadLetters(cmd.Context(), ref, func(d async.DeadLetter) error { return e.Encode(d) })
	}
	table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tTIME\tFUNCTION\tCALL\tSTEP\tSTATUS\tREASON")
	if err := provider.DeadLetters(cmd.Context(), ref, func(d async.DeadLetter) error {
		fmt.Fprintf(table, "%d\t%s\t%s\t%q\t%s\t%d\t%s\n", d.ID, d.Time.Local().Format(time.DateTime), d.Function, d.CallID, d.Step, d.Status, d.Reason)
		return nil
	}); err != nil {
		return err
	}
	return table.Flush()
}
