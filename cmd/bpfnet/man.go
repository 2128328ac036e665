// SPDX-License-Identifier: Apache-2.0

//go:build man

package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// The pages are made once for a package: what writes them is not in the binary.
func init() {
	extra = append(extra, func(a *app) *cobra.Command {
		return &cobra.Command{
			Use:     "man DIR",
			Short:   "Write the man pages into a directory",
			Example: "  go run -tags man ./cmd/bpfnet man /tmp/man",
			Args:    cobra.ExactArgs(1),
			Hidden:  true,
			RunE: func(cmd *cobra.Command, args []string) error {
				h := &doc.GenManHeader{Section: "1", Source: "bpfnet", Manual: "bpfnet"} // dated by SOURCE_DATE_EPOCH
				cmd.Root().DisableAutoGenTag = true
				return doc.GenManTree(cmd.Root(), h, args[0])
			},
		}
	})
}
