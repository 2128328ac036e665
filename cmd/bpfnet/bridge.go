// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func bridgeGroup(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:     "bridge",
		Short:   "Show the bridges",
		Example: "  bpfnet bridge ls",
	})
	c.AddCommand(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List bridges as brctl show does, and who is behind each interface",
		Example: "  bpfnet bridge ls\n  bpfnet bridge ls -o json",
		Args:    wantsNothing,
		RunE: func(_ *cobra.Command, _ []string) error {
			return a.with(func(m *control.Manager) error {
				bridges, err := m.Bridges()
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(list(bridges))
				}
				a.table([]string{"bridge name", "bridge id", "STP enabled", "interfaces", "container"}, bridgeRows(bridges))
				return nil
			})
		},
	})
	return c
}

// bridgeRows has a row an interface; what a bridge is stands in its first.
func bridgeRows(bridges []control.BridgeInfo) [][]string {
	var rows [][]string
	for _, b := range bridges {
		stp := "no"
		if b.STP {
			stp = "yes"
		}
		row := []string{b.Name, b.ID, stp, "", ""}
		for i, p := range b.Ports {
			if i > 0 {
				row = []string{"", "", "", "", ""}
			}
			row[3], row[4] = p.Device, p.Container
			if p.Container != "" && p.Interface != "" {
				row[4] = fmt.Sprintf("%s (%s)", p.Container, p.Interface)
			}
			rows = append(rows, row)
		}
		if len(b.Ports) == 0 {
			rows = append(rows, row)
		}
	}
	return rows
}
