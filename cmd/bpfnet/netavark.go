// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control/netavark"
)

// nameNetavark is what this program is called as a driver of podman's networks.
const nameNetavark = "bpfnet-netavark"

func netavarkCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "netavark create|setup NETNS|teardown NETNS|info",
		Short: "Serve podman as a plugin of netavark",
		Long: `Serve one call by podman or netavark, which call a plugin for networks of its driver: the
configuration is read from standard input, the answer is on standard output. Link this
program into one of netavark_plugin_dirs (containers.conf) under the name of the driver,
bpfnet-netavark.`,
		Example: `  ln -s /usr/bin/bpfnet /usr/local/lib/netavark/bpfnet-netavark
  podman network create --driver bpfnet-netavark --subnet 10.89.0.0/24 web`,
		RunE: func(_ *cobra.Command, args []string) error {
			if code := netavark.Main(a.options, buildVersion().Version, args, a.in, a.out); code != 0 {
				return &exitStatus{code: code}
			}
			return nil
		},
	}
}

// netavarkMain is netavarkCommand for who has started this program as a plugin.
func netavarkMain(a *app, args []string) int {
	if err := a.prepare(a.root()); err != nil {
		netavark.Fail(a.out, err)
		return 1
	}
	if code := netavark.Main(a.options, buildVersion().Version, args, a.in, a.out); code != 0 {
		return code
	}
	return a.report(nil, nil)
}
