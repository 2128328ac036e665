// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control/demo"
)

func demoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show the main job in a lab of its own",
		Long: `A client, a host and two containers, in network namespaces, a store, pins and a
cgroup of their own: a web server is published and reached from everywhere.
Explained line by line; leaves nothing behind.`,
		Example: "  sudo bpfnet demo",
		Args:    wantsNothing,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := untilInterrupted()
			defer stop()
			err := demo.Run(ctx, a.out)
			if errors.Is(err, context.Canceled) {
				return &exitStatus{130, errors.New("demo: interrupted; nothing is left behind")}
			}
			return err
		},
	}
}
