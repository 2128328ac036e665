// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func rmCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm [-f] NAME...",
		Short: "Remove containers",
		Long: `Remove stopped containers, and running ones with -f (SIGKILL). One that was
attached is detached: its processes go on.`,
		Example: "  bpfnet rm web\n  bpfnet rm -f web db",
		Args:    wants(1, -1, "NAME..."),
		RunE: func(_ *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				err := a.with(func(m *control.Manager) error { return remove(m, name, force) })
				if err != nil {
					return err
				}
				fmt.Fprintln(a.out, name)
				return nil
			})
		},
		ValidArgsFunction: containerNames,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "stop it first, with SIGKILL")
	return cmd
}

func remove(m *control.Manager, name string, force bool) error {
	if !force {
		return m.RemoveContainer(name)
	}
	c, err := m.Container(name)
	if err != nil {
		return err
	}
	if !c.Attached {
		if err := stop(m, c, 0); err != nil {
			return err
		}
	}
	// Gone already: it was started with --rm.
	if err := m.RemoveContainer(c.ID); err != nil && !errors.Is(err, control.ErrNotFound) {
		return err
	}
	return nil
}
