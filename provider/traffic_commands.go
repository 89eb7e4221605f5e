package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/traffic"
)

// chosen is the flags that name a function and how to print it.
type chosen struct {
	connection
	namespace, output string
}

func (c *chosen) flags(cmd *cobra.Command) {
	c.connection.flags(cmd)
	cmd.Flags().StringVarP(&c.namespace, "namespace", "n", "", "the function's namespace; default: "+backend.DefaultNamespace)
	cmd.Flags().StringVarP(&c.output, "output", "o", "table", "table or json")
}

func (c *chosen) function(name string) (backend.Ref, error) {
	if c.output != "table" && c.output != "json" {
		return backend.Ref{}, fmt.Errorf("output %q: want table or json", c.output)
	}
	return backend.ParseRef(name, c.namespace)
}

func trafficCommand() *cobra.Command {
	var c chosen
	var mirror string
	cmd := &cobra.Command{
		Use:   "traffic FUNCTION [VERSION=PERCENT ...]",
		Short: "Show or set which versions get which share of a function's calls",
		Long: `Show or set which versions get which share of a function's calls. The percentages, with at most one
decimal, add up to 100. A version that is not loaded is loaded first and must pass its examples; then
the calls move in one step. A version with 0 gets only calls that name it in X-Model-Version.`,
		Example: "  faas-predict traffic iris\n  faas-predict traffic iris 1.0_may=90 1.0_june=10\n" +
			"  faas-predict traffic iris 1.0_may=100 --mirror 1.0_june",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := c.function(args[0])
			if err != nil {
				return err
			}
			split := traffic.Split{Mirror: mirror}
			for _, arg := range args[1:] {
				version, percent, ok := strings.Cut(arg, "=")
				if !ok {
					return fmt.Errorf("%q: want VERSION=PERCENT", arg)
				}
				weight, err := traffic.ParseWeight(percent)
				if err != nil {
					return err
				}
				split.Targets = append(split.Targets, traffic.Target{Version: version, Weight: weight})
			}
			provider, err := c.open(cmd.InOrStdin())
			if err != nil {
				return err
			}
			var status backend.TrafficStatus
			switch {
			case len(args) > 1:
				if err := split.Check(); err != nil {
					return err
				}
				status, err = provider.SetTraffic(cmd.Context(), ref, split)
			case mirror != "":
				return fmt.Errorf("--mirror goes with the split that it belongs to: %s FUNCTION VERSION=100 --mirror %s", cmd.CommandPath(), mirror)
			default:
				status, err = provider.Traffic(cmd.Context(), ref)
			}
			if err != nil {
				return err
			}
			return printTraffic(cmd.OutOrStdout(), status, c.output)
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&mirror, "mirror", "", "a version that gets a copy of each call and whose answers nobody sees")
	return cmd
}

func rollbackCommand() *cobra.Command {
	var c chosen
	cmd := &cobra.Command{
		Use:   "rollback FUNCTION",
		Short: "Move a function's calls to the split before this one",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := c.function(args[0])
			if err != nil {
				return err
			}
			provider, err := c.open(cmd.InOrStdin())
			if err != nil {
				return err
			}
			status, err := provider.Rollback(cmd.Context(), ref)
			if err != nil {
				return err
			}
			return printTraffic(cmd.OutOrStdout(), status, c.output)
		},
	}
	c.flags(cmd)
	return cmd
}

func printTraffic(out io.Writer, status backend.TrafficStatus, output string) error {
	if output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(status)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FUNCTION\tVERSION\tPERCENT\tSTATE\tCALLS\tERRORS\tREASON")
	for _, v := range status.Versions {
		state := string(v.State)
		if v.Version == status.Mirror {
			state += ", mirror"
		}
		reason, _, _ := strings.Cut(v.Reason, "\n")
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", status.Function, v.Version, v.Weight, state, v.Calls, v.Errors, reason)
	}
	if err := table.Flush(); err != nil || status.RolloutNote == "" {
		return err
	}
	_, err := fmt.Fprintf(out, "rollout: %s\n", status.RolloutNote)
	return err
}
