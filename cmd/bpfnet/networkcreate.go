// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

// Docker's options of the bridge driver, taken by --opt and shown by inspect.
const (
	optBridge       = "com.docker.network.bridge.name"
	optICC          = "com.docker.network.bridge.enable_icc"
	optMasquerade   = "com.docker.network.bridge.enable_ip_masquerade"
	optBindAddress  = "com.docker.network.bridge.host_binding_ipv4"
	optGatewayMode4 = "com.docker.network.bridge.gateway_mode_ipv4"
	optGatewayMode6 = "com.docker.network.bridge.gateway_mode_ipv6"
	optMTU          = "com.docker.network.driver.mtu"
)

func networkCreate(a *app) *cobra.Command {
	var (
		o                         control.NetworkOptions
		subnets, gateways, ranges []string
		icc, masquerade, isolate  bool
		gatewayMode, driverName   string
		labels, opts              []string
	)
	cmd := &cobra.Command{
		Use:   "create [flags] NAME",
		Short: "Make a network",
		Long: `Make a bridge network and print its ID. Without --subnet it gets one of Docker's
address pools that this host does not use.`,
		Example: `  bpfnet network create mynet
  bpfnet network create --subnet 10.5.0.0/16 --ip-range 10.5.1.0/24 --gateway 10.5.0.1 lan
  bpfnet network create --ipv6 --subnet 2001:db8:5::/64 dual
  bpfnet network create --internal --icc=false quiet
  bpfnet network create --bridge br0 --subnet 192.0.2.0/24 mine`,
		Args: wants(1, 1, "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Name = args[0]
			if driverName != driver {
				return fmt.Errorf("driver %q: bridge is the only one", driverName)
			}
			var err error
			if o.Subnets, err = prefixes("--subnet", subnets); err != nil {
				return err
			}
			if o.Ranges, err = prefixes("--ip-range", ranges); err != nil {
				return err
			}
			for _, g := range gateways {
				addr, err := netip.ParseAddr(g)
				if err != nil || addr.Zone() != "" {
					return fmt.Errorf("--gateway %q: not an address", g)
				}
				o.Gateways = append(o.Gateways, addr)
			}
			for flag, v := range map[string]struct {
				value *bool
				to    **bool
			}{"icc": {&icc, &o.ICC}, "ip-masq": {&masquerade, &o.Masquerade}, "isolate": {&isolate, &o.Isolate}} {
				if cmd.Flags().Changed(flag) {
					*v.to = v.value
				}
			}
			if o.Routed, err = routed("--gateway-mode", gatewayMode); err != nil {
				return err
			}
			if o.Labels, err = keyValues("--label", labels); err != nil {
				return err
			}
			if err := driverOptions(&o, opts, cmd.Flags().Changed); err != nil {
				return err
			}
			return a.with(func(m *control.Manager) error {
				n, err := m.CreateNetwork(o)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON([]map[string]string{{"Id": n.ID}})
				}
				fmt.Fprintln(a.out, n.ID)
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&driverName, "driver", "d", driver, "`name` of the driver; bridge is the only one")
	f.StringArrayVar(&subnets, "subnet", nil, "addresses: `CIDR`, one a family")
	f.StringArrayVar(&gateways, "gateway", nil, "the bridge's `address` in the subnet (default its first)")
	f.StringArrayVar(&ranges, "ip-range", nil, "part (`CIDR`) of the subnet that containers get addresses from")
	f.BoolVar(&o.IPv6, "ipv6", false, "IPv6 too")
	f.BoolVar(&o.Internal, "internal", false, "no way out and no published ports")
	f.BoolVar(&icc, "icc", true, "containers of the network may reach one another")
	f.BoolVar(&masquerade, "ip-masq", true, "hide the containers behind the host's addresses")
	f.StringVar(&gatewayMode, "gateway-mode", "nat", "`mode` of published ports: nat, or routed: at the containers' own addresses")
	f.IntVar(&o.MTU, "mtu", 0, "MTU in `bytes` of its devices (default that of init)")
	f.StringVar(&o.Bridge, "bridge", "", "`name` of the bridge; one that exists is used as it is, and kept")
	f.BoolVar(&isolate, "isolate", true, "keep containers of other networks out")
	f.BoolVar(&o.FullCone, "full-cone", false, "anybody may answer to a masqueraded UDP port")
	f.BoolVar(&o.AllowDHCPServer, "allow-dhcp-server", false, "containers may be DHCP servers")
	f.StringArrayVar(&labels, "label", nil, "what the user notes of it: `KEY=VALUE`")
	f.StringArrayVar(&opts, "opt", nil, "an `option` of Docker's bridge driver: "+optBridge+"=... and so on")
	complete(cmd, "driver", values(driver))
	complete(cmd, "gateway-mode", values("nat", "routed"))
	return cmd
}

func routed(what, mode string) (bool, error) {
	switch mode {
	case "nat":
		return false, nil
	case "routed":
		return true, nil
	}
	return false, fmt.Errorf("%s %q: nat or routed", what, mode)
}

// sameFlag are the flags that say what an option says.
var sameFlag = map[string]string{
	optBridge: "bridge", optICC: "icc", optMasquerade: "ip-masq", optMTU: "mtu", optGatewayMode4: "gateway-mode", optGatewayMode6: "gateway-mode",
}

// driverOptions takes what scripts for Docker give by --opt. flag says whether a flag was
// given: it and an option must not differ.
func driverOptions(o *control.NetworkOptions, opts []string, flag func(string) bool) error {
	given, err := keyValues("--opt", opts)
	if err != nil {
		return err
	}
	mode4, both := given[optGatewayMode4]
	if mode6, ok := given[optGatewayMode6]; both && ok && mode4 != mode6 {
		return fmt.Errorf("--opt %s=%s: another than IPv4's; a network has one mode for both", optGatewayMode6, mode6)
	}
	before := *o
	for _, key := range slices.Sorted(maps.Keys(given)) {
		value := given[key]
		var err error
		switch key {
		case optBridge:
			o.Bridge = value
		case optICC:
			o.ICC, err = boolean(value)
		case optMasquerade:
			o.Masquerade, err = boolean(value)
		case optBindAddress:
			o.BindAddress = value
		case optGatewayMode4, optGatewayMode6:
			o.Routed, err = routed(key, value)
		case optMTU:
			if o.MTU, err = strconv.Atoi(value); err != nil {
				err = errors.New("not a number")
			}
		default:
			return fmt.Errorf("--opt %s: not known", key)
		}
		if err != nil {
			return fmt.Errorf("--opt %s=%s: %w", key, value, err)
		}
		if flag(sameFlag[key]) && !reflect.DeepEqual(*o, before) {
			return fmt.Errorf("--opt %s=%s: --%s says otherwise", key, value, sameFlag[key])
		}
		before = *o
	}
	return nil
}

func boolean(text string) (*bool, error) {
	b, err := strconv.ParseBool(text)
	if err != nil {
		return nil, errors.New("true or false")
	}
	return &b, nil
}

func labelsText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}
