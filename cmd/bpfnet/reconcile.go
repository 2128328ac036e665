// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func reconcileCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reconcile",
		Short: "Make the kernel match what was asked for",
		Long: `Compare what was asked for with what the kernel has, mend what differs and say it, a
line each. A newer bpfnet puts its programs in place of older ones so.`,
		Example: "  bpfnet reconcile",
		Args:    wantsNothing,
		RunE: func(_ *cobra.Command, _ []string) error {
			return a.with(func(m *control.Manager) error {
				steps, err := m.Reconcile()
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(list(steps))
				}
				for _, s := range steps {
					fmt.Fprintln(a.out, s)
				}
				return nil
			})
		},
	}
}
