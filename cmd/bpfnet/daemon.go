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
	"github.com/bpfnet/bpfnet/control/docker"
	"github.com/bpfnet/bpfnet/control/dockerdriver"
)

func daemonCommand(a *app) *cobra.Command {
	var follow bool
	var engine docker.Options
	var driver dockerdriver.Options
	cmd := &cobra.Command{
		Use:   "daemon [flags]",
		Short: "Follow the host: new uplinks, addresses, routes",
		Long: `Stay, and make the kernel follow the host: an uplink that appears gets its programs;
addresses, routes and rules that come, go or change are obeyed at once; a program that
somebody has detached is put back. A line on standard error for each change.

Nothing that runs depends on it: without it, run bpfnet reconcile after such a change.
SIGTERM and SIGINT end it.

With --docker it also carries the packets of a Docker Engine that was started with
--iptables=false --ip6tables=false --userland-proxy=false: published ports, masquerade,
icc, internal networks, isolation, links. An Engine that is away is waited for.

With --docker-driver it is also a network driver of the Docker Engine's, for
docker network create -d bpfnet: on the socket where the Engine looks for one, or
--docker-driver=PATH.`,
		Example: "  bpfnet daemon\n  bpfnet daemon --docker\n  bpfnet daemon --docker-driver",
		Args:    wantsNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("docker-host") && !follow {
				return usageError(cmd, "--docker-host: only with --docker")
			}
			debug.SetGCPercent(100) // this one stays
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			log := func(line string) { fmt.Fprintf(a.err, "bpfnet: %s\n", oneLine(line)) }
			awaited := awaitedReadiness(log)
			follows := awaited.part()
			run := []work{func(ctx context.Context, m *control.Manager) error { return m.Daemon(ctx, log, follows) }}
			if follow {
				engine.Log = log
				run = append(run, func(ctx context.Context, m *control.Manager) error { return docker.Follow(ctx, m, engine) })
			}
			if cmd.Flags().Changed("docker-driver") {
				driver.Log, driver.Ready = log, awaited.part()
				run = append(run, func(ctx context.Context, m *control.Manager) error { return dockerdriver.Serve(ctx, m, driver) })
			}
			return a.together(ctx, run...)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&follow, "docker", false, "carry the packets of the Docker Engine's containers, too")
	f.StringVar(&engine.Host, "docker-host", "", "`URL` of the Engine (default "+docker.DefaultHost+")")
	f.StringVar(&driver.Socket, "docker-driver", "", "be a network driver of the Docker Engine's, on the socket `PATH`")
	f.Lookup("docker-driver").NoOptDefVal = dockerdriver.DefaultSocket
	complete(cmd, "docker-driver", anyFile)
	return cmd
}

// work is a part of the daemon, with a Manager of its own.
type work func(ctx context.Context, m *control.Manager) error

// together runs all parts; with one of them the others end.
func (a *app) together(ctx context.Context, parts ...work) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, len(parts))
	for _, part := range parts {
		go func() {
			defer stop()
			ended <- a.with(func(m *control.Manager) error { return part(ctx, m) })
		}()
	}
	var failed several
	for range parts {
		if err := <-ended; err != nil {
			failed = append(failed, err)
		}
	}
	return failed.orNil()
}
