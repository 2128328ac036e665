// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

const driver = "bridge"

func networkGroup(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:     "network",
		Short:   "Make, list, join and remove networks",
		Example: "  bpfnet network create mynet\n  bpfnet network ls",
	})
	c.AddCommand(networkCreate(a), networkLs(a), networkInspectCommand(a), networkRm(a), networkPrune(a),
		networkConnect(a), networkDisconnect(a))
	return c
}

type networkRow struct {
	ID        string `json:"ID"`
	Name      string `json:"Name"`
	Driver    string `json:"Driver"`
	Scope     string `json:"Scope"`
	CreatedAt string `json:"CreatedAt"`
	IPv6      string `json:"IPv6"`
	Internal  string `json:"Internal"`
	Labels    string `json:"Labels"`
	Bridge    string `json:"Bridge"`
	Subnets   string `json:"Subnets"`
}

var networkListing = listing{
	table: `table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}`,
	headers: map[string]string{
		"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "CreatedAt": "CREATED AT",
		"IPv6": "IPV6", "Internal": "INTERNAL", "Labels": "LABELS", "Bridge": "BRIDGE", "Subnets": "SUBNETS",
	},
}

func networkLs(a *app) *cobra.Command {
	var quiet, noTrunc bool
	var format string
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list"},
		Short:   "List networks",
		Example: "  bpfnet network ls\n  bpfnet network ls --format 'table {{.Name}}\\t{{.Subnets}}'",
		Args:    wantsNothing,
		RunE: func(_ *cobra.Command, _ []string) error {
			return a.with(func(m *control.Manager) error {
				networks, err := m.Networks()
				if err != nil {
					return err
				}
				rows := []any{}
				for _, n := range networks {
					if quiet && format == "" && !a.json() {
						fmt.Fprintln(a.out, shortID(n.ID, noTrunc))
						continue
					}
					rows = append(rows, networkRowOf(n, noTrunc || a.json()))
				}
				switch {
				case quiet && format == "" && !a.json():
					return nil
				case a.json() && format == "":
					return a.printJSON(rows)
				}
				return networkListing.print(a.out, format, rows)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "IDs only")
	f.BoolVar(&noTrunc, "no-trunc", false, "whole IDs")
	f.StringVar(&format, "format", "", "`FORMAT`: table, json, or a Go template")
	return cmd
}

func networkRowOf(n *control.Network, whole bool) networkRow {
	row := networkRow{
		ID: shortID(n.ID, whole), Name: n.Name, Driver: driver, Scope: "local",
		CreatedAt: n.Created.Local().Format(time.DateTime + " -0700 MST"),
		Internal:  strconv.FormatBool(n.Internal), Bridge: n.Bridge, IPv6: "false",
	}
	var subnets []string
	for _, s := range n.Subnets {
		subnets = append(subnets, s.Prefix.String())
		if s.Prefix.Addr().Is6() {
			row.IPv6 = "true"
		}
	}
	row.Subnets = strings.Join(subnets, ",")
	row.Labels = labelsText(n.Labels)
	return row
}

func networkInspectCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "inspect [-f TEMPLATE] NAME...",
		Short:   "Print all that is known of networks",
		Example: "  bpfnet network inspect bridge\n  bpfnet network inspect -f '{{range .IPAM.Config}}{{.Subnet}} {{end}}' mynet",
		Args:    wants(1, -1, "NAME..."),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.with(func(m *control.Manager) error {
				return a.inspect(args, format, func(name string) (any, error) {
					n, err := m.Network(name)
					if err != nil {
						return nil, err
					}
					return networkView(m, n)
				})
			})
		},
		ValidArgsFunction: networkNames,
	}
	formatFlag(cmd, &format)
	return cmd
}

func networkRm(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove networks that no container is on",
		Example: "  bpfnet network rm mynet",
		Args:    wants(1, -1, "NAME..."),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.with(func(m *control.Manager) error {
				return each(args, func(name string) error {
					if err := m.RemoveNetwork(name); err != nil {
						return err
					}
					fmt.Fprintln(a.out, name)
					return nil
				})
			})
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
			return networkNames(cmd, append(args, control.DefaultNetwork), to)
		},
	}
	return cmd
}

func networkPrune(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "prune [-f]",
		Short:   "Remove all networks that no container is on",
		Example: "  bpfnet network prune -f",
		Args:    wantsNothing,
		RunE: func(_ *cobra.Command, _ []string) error {
			return a.with(func(m *control.Manager) error {
				if !force && !a.confirm("All networks that no container is on will be removed.") {
					return nil
				}
				names, err := m.PruneNetworks()
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(list(names))
				}
				if len(names) > 0 {
					fmt.Fprintln(a.out, "Deleted Networks:")
				}
				for _, n := range names {
					fmt.Fprintln(a.out, n)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

// confirm asks; anything but y and yes, the end of the input too, is no.
func (a *app) confirm(what string) bool {
	fmt.Fprintf(a.err, "%s\nAre you sure? [y/N] ", what)
	answer, _ := bufio.NewReader(a.in).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true
	}
	return false
}

func networkConnect(a *app) *cobra.Command {
	var o control.EndpointOptions
	var ip, ip6 string
	cmd := &cobra.Command{
		Use:     "connect [flags] NETWORK CONTAINER",
		Short:   "Put a container on one more network",
		Example: "  bpfnet network connect mynet web\n  bpfnet network connect --ip 172.18.0.9 --alias www mynet web",
		Args:    wants(2, 2, "NETWORK CONTAINER"),
		RunE: func(_ *cobra.Command, args []string) error {
			var err error
			if o.IPv4, err = address("--ip", ip, false); err != nil {
				return err
			}
			if o.IPv6, err = address("--ip6", ip6, true); err != nil {
				return err
			}
			return a.with(func(m *control.Manager) error { return m.Connect(args[0], args[1], o) })
		},
		ValidArgsFunction: networkThenContainer,
	}
	f := cmd.Flags()
	f.StringVar(&ip, "ip", "", "IPv4 `address`")
	f.StringVar(&ip6, "ip6", "", "IPv6 `address`")
	f.StringVar(&o.MAC, "mac-address", "", "MAC `address`")
	f.StringArrayVar(&o.Aliases, "alias", nil, "another `name` on the network")
	f.StringArrayVar(&o.Links, "link", nil, "reach another container's exposed ports by a name: `NAME`[:ALIAS]")
	f.StringVar(&o.IfName, "ifname", "", "`name` of the interface in the container")
	complete(cmd, "link", containerNames)
	return cmd
}

func networkDisconnect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "disconnect [-f] NETWORK CONTAINER",
		Short:   "Take a container off a network",
		Example: "  bpfnet network disconnect mynet web",
		Args:    wants(2, 2, "NETWORK CONTAINER"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.with(func(m *control.Manager) error { return m.Disconnect(args[0], args[1]) })
		},
		ValidArgsFunction: networkThenContainer,
	}
	cmd.Flags().BoolP("force", "f", false, "as without (Docker's spelling)")
	return cmd
}

// prefixes parses repeated CIDR flags; the bits after the length must be zero.
func prefixes(flag string, texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			return nil, fmt.Errorf("%s %q: not ADDRESS/LENGTH", flag, t)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s %s: has bits set after its length, perhaps %s", flag, t, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}
