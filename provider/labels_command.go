package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/faas-predict/faas-predict/provider/image"
	"github.com/faas-predict/faas-predict/watchdog/model"
)

// labelsCommand prints what a build has to be told, because a Dockerfile cannot compute labels.
func labelsCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "labels DIR",
		Short: "Print the labels of a bundle's container image, one KEY=VALUE a line",
		Example: "  docker build $(faas-predict labels examples/iris | sed 's/^/--label /') …\n" +
			"  faas-cli build --filter iris $(faas-predict labels examples/iris | sed 's/^/--build-label /')",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			bundle, err := model.Open(args[0])
			if err != nil {
				return err
			}
			if name == "" {
				name = bundle.Name
			}
			labels := image.Labels(name, bundle.Runtime, bundle.Version)
			for _, key := range slices.Sorted(maps.Keys(labels)) {
				fmt.Fprintf(cmd.OutOrStdout(), "%s=%s\n", key, labels[key])
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "the model's name; default: the bundle's own")
	return cmd
}
