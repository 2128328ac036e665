// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/docker"
)

func daemonCommand(a *app) *cobra.Command {
	var follow bool
	var engine docker.Options
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Follow the host: new uplinks, addresses, routes",
		Long: `Stay, and make the kernel follow the host: an uplink that appears gets its programs;
addresses, routes and rules that come, go or change are obeyed at once; a program that
somebody has detached is put back. A line on standard error for each change.

Nothing that runs depends on it: without it, run bpfnet reconcile after such a change.
SIGTERM and SIGINT end it.

With --docker it also carries the packets of a Docker Engine that was started with
--iptables=false --ip6tables=false --userland-proxy=false: published ports, masquerade,
icc, internal networks, isolation, links. An Engine that is away is waited for.`,
		Example: "  bpfnet daemon\n  bpfnet daemon --docker",
		Args:    wantsNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("docker-host") && !follow {
				return usageError(cmd, "--docker-host: only with --docker")
			}
			debug.SetGCPercent(100) // this one stays
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			log := func(line string) { fmt.Fprintf(a.err, "bpfnet: %s\n", oneLine(line)) }
			engine.Log = log
			return a.with(func(m *control.Manager) error {
				if !follow {
					return m.Daemon(ctx, log)
				}
				return a.withEngine(ctx, func(ctx context.Context) error { return m.Daemon(ctx, log) }, engine)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&follow, "docker", false, "carry the packets of the Docker Engine's containers, too")
	f.StringVar(&engine.Host, "docker-host", "", "`URL` of the Engine (default "+docker.DefaultHost+")")
	return cmd
}

// withEngine runs the daemon, and beside it what follows the Engine: with one of them the
// other ends.
func (a *app) withEngine(ctx context.Context, daemon func(context.Context) error, o docker.Options) error {
	m, err := a.open()
	if err != nil {
		return err
	}
	defer m.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		defer stop()
		ended <- docker.Follow(ctx, m, o)
	}()
	err = daemon(ctx)
	stop()
	return errors.Join(err, <-ended)
}
