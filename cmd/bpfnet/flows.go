// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func flowsCommand(a *app) *cobra.Command {
	var filter control.FlowFilter
	var follow bool
	cmd := &cobra.Command{
		Use:   "flows [flags]",
		Short: "List the connections that are remembered",
		Long: `List flows: who began, to where, what both became, and how long each is kept.
TRANSLATED is how the one who answers sees it.`,
		Example: `  bpfnet flows
  bpfnet flows --container web --proto tcp
  bpfnet flows -f --port 80
  bpfnet flows flush --container web`,
		Args: wantsNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFilter(cmd, filter); err != nil {
				return err
			}
			return a.with(func(m *control.Manager) error {
				flows, err := m.Flows(filter)
				if err != nil {
					return err
				}
				if follow {
					return a.followFlows(cmd, m, filter, flows)
				}
				if a.json() {
					return a.printJSON(list(flows))
				}
				a.table(flowHeader, flowRows(flows))
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on, with those that are new")
	filterFlags(cmd, &filter)
	cmd.AddCommand(flowsFlush(a))
	return cmd
}

func filterFlags(cmd *cobra.Command, filter *control.FlowFilter) {
	f := cmd.Flags()
	f.StringVar(&filter.Container, "container", "", "of this `container` only")
	f.Uint16Var(&filter.Port, "port", 0, "with this `port` on any side")
	f.StringVar(&filter.Proto, "proto", "", "of this `protocol`: tcp, udp, sctp, icmp or icmpv6")
	complete(cmd, "container", containerNames)
	complete(cmd, "proto", values(protocols...))
}

var protocols = []string{"tcp", "udp", "sctp", "icmp", "icmpv6"}

// checkFilter refuses what would be no filter: an empty variable must not flush everything.
func checkFilter(cmd *cobra.Command, filter control.FlowFilter) error {
	given := cmd.Flags().Changed
	switch {
	case given("container") && filter.Container == "":
		return errors.New(`--container "": no name`)
	case given("port") && filter.Port == 0:
		return errors.New("--port 0: not a port, 1-65535")
	case given("proto") && !slices.Contains(protocols, filter.Proto):
		return fmt.Errorf("--proto %q: tcp, udp, sctp, icmp or icmpv6", filter.Proto)
	}
	return nil
}

func flowsFlush(a *app) *cobra.Command {
	var filter control.FlowFilter
	cmd := &cobra.Command{
		Use:     "flush [flags]",
		Short:   "Forget flows: their next packets are judged anew",
		Example: "  bpfnet flows flush\n  bpfnet flows flush --container web",
		Args:    wantsNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFilter(cmd, filter); err != nil {
				return err
			}
			return a.with(func(m *control.Manager) error {
				n, err := m.FlushFlows(filter)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(map[string]int{"flushed": n})
				}
				fmt.Fprintf(a.out, "%d flows forgotten\n", n)
				return nil
			})
		},
	}
	filterFlags(cmd, &filter)
	return cmd
}

var flowHeader = []string{"PROTO", "STATE", "KIND", "SOURCE", "DESTINATION", "TRANSLATED", "CONTAINER", "IDLE", "EXPIRES", "PACKETS", "BYTES"}

func flowRows(flows []control.FlowInfo) [][]string {
	var rows [][]string
	for _, f := range flows {
		who := f.Container
		if f.Peer != "" {
			who += " - " + f.Peer
		}
		rows = append(rows, []string{
			f.Proto, f.State, f.Kind, endText(f.Source), endText(f.Destination), translated(f), who,
			f.Idle.Round(time.Second).String(), f.Expires.Round(time.Second).String(), fmt.Sprint(f.Packets), fmt.Sprint(f.Bytes),
		})
	}
	return rows
}

// translated is the ends as the responder sees them, where they differ.
func translated(f control.FlowInfo) string {
	if f.NewSource == f.Source && f.NewDest == f.Destination {
		return "-"
	}
	return endText(f.NewSource) + " > " + endText(f.NewDest)
}

func endText(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

// followFlows prints flows that were not there a second ago, until it is interrupted.
func (a *app) followFlows(cmd *cobra.Command, m *control.Manager, filter control.FlowFilter, flows []control.FlowInfo) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	type key struct {
		proto    string
		src, dst netip.AddrPort
	}
	seen := map[key]bool{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for first := true; ; first = false {
		fresh, now := []control.FlowInfo{}, map[key]bool{}
		for _, f := range flows {
			k := key{f.Proto, f.Source, f.Destination}
			now[k] = true
			if !seen[k] {
				fresh = append(fresh, f)
			}
		}
		seen = now
		a.printFresh(fresh, first)
		if a.out.lost != nil {
			return a.out.lost
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var err error
		if flows, err = m.Flows(filter); err != nil {
			return err
		}
	}
}

// printFresh prints one step of a list that goes on: lines, or JSON objects.
func (a *app) printFresh(flows []control.FlowInfo, header bool) {
	if a.json() {
		for _, f := range flows {
			a.printJSON(f)
		}
		return
	}
	const layout = "%-6s %-11s %-10s %-24s %-24s %-50s %s\n"
	if header {
		fmt.Fprintf(a.out, layout, "PROTO", "STATE", "KIND", "SOURCE", "DESTINATION", "TRANSLATED", "CONTAINER")
	}
	for _, f := range flows {
		r := flowRows([]control.FlowInfo{f})[0]
		fmt.Fprintf(a.out, layout, r[0], r[1], r[2], r[3], r[4], r[5], r[6])
	}
}
