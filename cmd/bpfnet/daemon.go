// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/signal"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
)

func daemonCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "daemon",
		Short: "Follow the host: new uplinks, addresses, routes",
		Long: `Stay, and make the kernel follow the host: an uplink that appears gets its programs;
addresses, routes and rules that come, go or change are obeyed at once; a program that
somebody has detached is put back. A line on standard error for each change.

Nothing that runs depends on it: without it, run bpfnet reconcile after such a change.
SIGTERM and SIGINT end it.`,
		Example: "  bpfnet daemon",
		Args:    wantsNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			debug.SetGCPercent(100) // this one stays
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return a.with(func(m *control.Manager) error {
				return m.Daemon(ctx, func(line string) { fmt.Fprintf(a.err, "bpfnet: %s\n", oneLine(line)) })
			})
		},
	}
}
