// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func linkCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "link NAME TARGET[:ALIAS]",
		Short: "Let a container reach another's exposed ports, by a name",
		Long: `Let container NAME reach the exposed ports of TARGET even where --icc=false keeps
containers apart, and know it as ALIAS.`,
		Example:           "  bpfnet link web db:database",
		Args:              wants(2, 2, "NAME TARGET[:ALIAS]"),
		RunE:              func(_ *cobra.Command, args []string) error { return a.link(args) },
		ValidArgsFunction: containerNames,
	}
}

func (a *app) link(args []string) error {
	return a.with(func(m *control.Manager) error { return m.Link(args[0], args[1]) })
}

func unlinkCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "unlink NAME TARGET",
		Short:   "End a link",
		Example: "  bpfnet unlink web db",
		Args:    wants(2, 2, "NAME TARGET"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.with(func(m *control.Manager) error { return m.Unlink(args[0], args[1]) })
		},
		ValidArgsFunction: containerNames,
	}
}
