// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func reconcileCommand(a *app) *cobra.Command {
	var opts control.ReconcileOptions
	cmd := &cobra.Command{
		Use:   "reconcile [--drop-flows]",
		Short: "Make the kernel match what was asked for",
		Long: `Compare what was asked for with what the kernel has, mend what differs and say it, a
line each. A newer bpfnet puts its programs in place of older ones so: no packet is lost,
and connections go on. Should it not be able to carry them over, it says so, and changes
nothing without --drop-flows.`,
		Example: "  bpfnet reconcile\n  bpfnet reconcile --drop-flows",
		Args:    wantsNothing,
		RunE: func(_ *cobra.Command, _ []string) error {
			return a.with(func(m *control.Manager) error {
				steps, err := m.ReconcileWith(opts) // what could be done has been, beside an error
				if err != nil && len(steps) == 0 {
					return err
				}
				if a.json() {
					return cmp.Or(err, a.printJSON(list(steps)))
				}
				for _, s := range steps {
					fmt.Fprintln(a.out, s)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&opts.DropFlows, "drop-flows", false, "upgrade though all connections end by it")
	return cmd
}
