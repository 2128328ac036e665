// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func initCommand(a *app) *cobra.Command {
	var (
		c                       control.Config
		icc, forward, masq, ip6 bool
		pools                   []string
	)
	cmd := &cobra.Command{
		Use:   "init [flags]",
		Short: "Set this host up, or change its configuration",
		Long: `Set this host up: every command does it when needed. With flags the configuration
is changed: what can change while containers run does, anything else is refused.
The flags are the keys of the configuration file, and go before it.`,
		Example: `  bpfnet init
  bpfnet init --bip 10.9.0.1/24 --icc=false
  bpfnet init --uplink eth0 --uplink wg0 --mtu 1420
  bpfnet init --default-address-pool base=10.200.0.0/16,size=24
  bpfnet init --datapath iptables         # and back: --datapath bpf; containers run on`,
		Args: wantsNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, b := range []struct {
				flag  string
				value *bool
				to    **bool
			}{
				{"icc", &icc, &c.ICC}, {"ip-forward", &forward, &c.IPForward},
				{"ip-masq", &masq, &c.IPMasq}, {"ipv6", &ip6, &c.IPv6},
			} {
				if cmd.Flags().Changed(b.flag) {
					*b.to = b.value
				}
			}
			for _, p := range pools {
				pool, err := addressPool(p)
				if err != nil {
					return err
				}
				c.DefaultAddressPools = append(c.DefaultAddressPools, pool)
			}
			return a.with(func(m *control.Manager) error { return m.Init(&c) })
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&c.Bridge, "bridge", "b", "", "`name` of the bridge of the default network; one that exists is used as it is; none: no default network (default bpfnet0)")
	f.StringVar(&c.BIP, "bip", "", "gateway and length of the default network: `CIDR`")
	f.StringVar(&c.BIP6, "bip6", "", "the same for IPv6: `CIDR`")
	f.StringVar(&c.FixedCIDR, "fixed-cidr", "", "part (`CIDR`) of it that containers get addresses from")
	f.StringVar(&c.FixedCIDRv6, "fixed-cidr-v6", "", "the same for IPv6: `CIDR`")
	f.StringVar(&c.DefaultGateway, "default-gateway", "", "default gateway `address` of its containers (default the bridge)")
	f.StringVar(&c.DefaultGatewayV6, "default-gateway-v6", "", "the same for IPv6: `address`")
	f.BoolVar(&icc, "icc", true, "containers of the default network may reach one another")
	f.StringVar(&c.IP, "ip", "", "`address` that -p without one binds to (default 0.0.0.0 and [::])")
	f.BoolVar(&forward, "ip-forward", true, "turn the kernel's forwarding on (iptables datapath only)")
	f.StringVar(&c.IPTables, "iptables-flavour", "", "`flavour` of iptables: nft or legacy (iptables datapath only; default the one in use)")
	complete(cmd, "iptables-flavour", values("nft", "legacy"))
	f.BoolVar(&masq, "ip-masq", true, "hide containers behind the host's addresses")
	f.BoolVar(&ip6, "ipv6", false, "the default network has IPv6 too")
	f.IntVar(&c.MTU, "mtu", 0, "MTU in `bytes` of networks (default 1500)")
	f.StringArrayVar(&c.DNS, "dns", nil, "DNS server `address` of containers")
	f.StringArrayVar(&c.DNSSearch, "dns-search", nil, "DNS search `domain` of containers")
	f.StringArrayVar(&c.DNSOptions, "dns-opt", nil, "DNS resolver `option` of containers")
	f.StringArrayVar(&pools, "default-address-pool", nil, "addresses for networks: `base=CIDR,size=LENGTH`")
	f.StringArrayVar(&c.Uplinks, "uplink", nil, "`device` that leads to the world, or all: each but bpfnet's own and lo (default all)")
	f.StringVar(&c.MasqueradePorts, "masquerade-ports", "", "source `ports` of masqueraded flows: 1024-32767,61000-65535")
	f.IntVar(&c.FlowTableSize, "flow-table-size", 0, "established flows a family, `number`, 1024-1048576 (default 131072)")
	f.IntVar(&c.HalfOpenTableSize, "half-open-table-size", 0, "half-open flows a family, `number`, 512-1048576 (default 32768)")
	f.IntVar(&c.Quota, "flow-quota", 0, "established flows a container, `number` (default a quarter of the table)")
	f.StringVar(&c.TimeoutTCP, "timeout-tcp", "", "`time` that an established TCP flow may be silent (default 124m)")
	f.StringVar(&c.TimeoutTCPTransitory, "timeout-tcp-transitory", "", "the same while it opens and after it closed, `time` (default 4m)")
	f.StringVar(&c.TimeoutUDP, "timeout-udp", "", "the same of UDP that was answered, `time` (default 5m)")
	f.StringVar(&c.TimeoutUDPNewIn, "timeout-udp-new-in", "", "before it was, from outside, `time` (default 30s)")
	f.StringVar(&c.TimeoutUDPNewOut, "timeout-udp-new-out", "", "before it was, from a container, `time` (default 2m)")
	f.StringVar(&c.TimeoutICMP, "timeout-icmp", "", "the same of a ping, `time` (default 1m)")
	return cmd
}

// addressPool reads base=CIDR,size=LENGTH, as dockerd does.
func addressPool(text string) (control.AddressPool, error) {
	var p control.AddressPool
	for _, kv := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(kv, "=")
		switch key {
		case "base":
			p.Base = value
		case "size":
			n, err := strconv.Atoi(value)
			if err != nil {
				return p, fmt.Errorf("--default-address-pool %s: size %q: not a number", text, value)
			}
			p.Size = n
		default:
			return p, fmt.Errorf("--default-address-pool %s: %q: base=CIDR,size=LENGTH", text, kv)
		}
	}
	if p.Base == "" || p.Size == 0 {
		return p, fmt.Errorf("--default-address-pool %s: base=CIDR,size=LENGTH", text)
	}
	return p, nil
}
