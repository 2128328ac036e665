// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func uninstallCommand(a *app) *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:   "uninstall [-t SECONDS]",
		Short: "Take everything of bpfnet's down: leave nothing behind",
		Long: `Stop the commands that bpfnet started, detach what was attached, and remove every
device, program, pin, mount and file of bpfnet's.`,
		Example: "  bpfnet uninstall\n  bpfnet uninstall -t 0",
		Args:    wantsNothing,
		RunE: func(_ *cobra.Command, _ []string) error {
			return a.with(func(m *control.Manager) error {
				containers, err := m.Containers()
				if err != nil {
					return err
				}
				var running []string
				for _, c := range containers {
					if !c.Attached && c.State == control.StateRunning {
						running = append(running, c.ID)
					}
				}
				err = a.stopAll(running, grace(seconds), func(_ string, err error) error {
					if errors.Is(err, control.ErrNotFound) {
						return nil // it has ended since, with --rm
					}
					return err
				})
				if err != nil {
					return err
				}
				return m.Uninstall()
			})
		},
	}
	timeFlag(cmd, &seconds)
	return cmd
}
