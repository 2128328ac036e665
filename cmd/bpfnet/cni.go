// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control/cni"
)

// calledByCNI says whether a runtime has started this program as its plugin: by the
// name bpfnet-cni, or by another one with a CNI_COMMAND and no arguments.
func calledByCNI(args []string) bool {
	return filepath.Base(args[0]) == "bpfnet-cni" || len(args) == 1 && os.Getenv("CNI_COMMAND") != ""
}

func cniCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cni",
		Short: "Serve a container runtime as its CNI plugin",
		Long: `Serve one call by a container runtime (podman and cnitool are tried), as the
specification of CNI has it, 0.3.1 to 1.1: bridge, port maps, firewall and masquerade in
one plugin. The call is in the environment (CNI_COMMAND and its like), the network's
configuration on standard input.

Runtimes find plugins by name: link this program into their directory of plugins, as
bpfnet, and give the network the type bpfnet. Settings of a network beside the
specification's: bridge, subnets, gateways, ranges, ipv6, mtu, icc, ipMasq, isolate,
internal; and where this host's store is: root, bpffs, netns, cgroup, datapath, config.`,
		Example: `  ln -s /usr/bin/bpfnet /opt/cni/bin/bpfnet
  echo '{"cniVersion": "1.1.0", "name": "pods", "type": "bpfnet"}' >/etc/cni/net.d/pods.conf`,
		Args: wantsNothing,
		RunE: func(*cobra.Command, []string) error {
			if code := cni.Main(a.options, "CNI plugin bpfnet "+buildVersion().Version, a.out); code != 0 {
				return &exitStatus{code: code}
			}
			return nil
		},
	}
}

// cniMain is cniCommand for who has started this program as a plugin.
func cniMain(a *app) int {
	if err := a.prepare(a.root()); err != nil {
		cni.Fail(a.out, err)
		return 1
	}
	if code := cni.Main(a.options, "CNI plugin bpfnet "+buildVersion().Version, a.out); code != 0 {
		return code
	}
	return a.report(nil, nil)
}
