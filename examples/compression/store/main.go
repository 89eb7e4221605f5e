// Command store keeps files compressed, block by block, each with the codec that a model chooses. The
// model is a function on OpenFaaS: what store sends are features of blocks, what comes back are names of
// codecs.
//
//	store put     --store DIR PATH …    add files, and all files below directories
//	store list    --store DIR           what is in it
//	store verify  --store DIR           read every block and check every byte
//	store restore --store DIR --to DIR  write the files again
//	store measure PATH … > FILE.csv     what each codec does to each block: what the model learns from
//	store judge   FILE.csv              what the model's choices cost, against simpler ones
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "store:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{Use: "store", Short: "files compressed as a model says", SilenceUsage: true, SilenceErrors: true}
	var dir string
	stored := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&dir, "store", "", "the store's directory")
		_ = c.MarkFlagRequired("store")
		return c
	}
	var ask asking
	asks := func(c *cobra.Command) *cobra.Command {
		ask.flags(c.Flags())
		return c
	}
	var to string
	var sample int64
	var seed uint64
	restore := stored(&cobra.Command{Use: "restore", Short: "write the files again", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return with(dir, func(s *store) error { return s.restore(c.Context(), to) })
	}})
	restore.Flags().StringVar(&to, "to", "", "directory to write below; it must be empty or not there")
	_ = restore.MarkFlagRequired("to")
	measure := &cobra.Command{
		Use: "measure PATH …", Short: "what each codec does to each block", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return measure(c.Context(), c.OutOrStdout(), c.ErrOrStderr(), args, sample, seed)
		},
	}
	measure.Flags().Int64Var(&sample, "sample", 20<<20, "bytes to take below each path, in files drawn by chance")
	measure.Flags().Uint64Var(&seed, "seed", 1, "which ones")
	root.AddCommand(
		asks(stored(&cobra.Command{Use: "put PATH …", Short: "add files, and all files below directories", Args: cobra.MinimumNArgs(1), RunE: func(c *cobra.Command, args []string) error {
			chooser, err := ask.chooser()
			if err != nil {
				return err
			}
			return with(dir, func(s *store) error {
				began := time.Now()
				sum, err := s.put(c.Context(), chooser, args)
				fmt.Fprintf(c.OutOrStdout(), "%s in %v\n", sum, time.Since(began).Round(time.Millisecond))
				if m, ok := chooser.(*model); ok {
					fmt.Fprintf(c.OutOrStdout(), "answered by %s\n", m)
				}
				return err
			})
		}})),
		stored(&cobra.Command{Use: "list", Short: "what is in it", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return with(dir, func(s *store) error { return s.list(c.OutOrStdout()) })
		}}),
		stored(&cobra.Command{Use: "verify", Short: "read every block and check every byte", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return with(dir, func(s *store) error {
				files, bytes, err := s.verify(c.Context())
				fmt.Fprintf(c.OutOrStdout(), "%d files, %d bytes, all as they were\n", files, bytes)
				return err
			})
		}}),
		restore, measure,
		asks(&cobra.Command{Use: "judge FILE.csv", Short: "what the model's choices cost", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			chooser, err := ask.chooser()
			if err != nil {
				return err
			}
			return judge(c.Context(), c.OutOrStdout(), chooser, args[0])
		}}),
	)
	return root
}

func with(dir string, do func(*store) error) error {
	s, err := open(dir)
	if err != nil {
		return err
	}
	err = do(s)
	if closed := s.close(); err == nil {
		err = closed
	}
	return err
}
