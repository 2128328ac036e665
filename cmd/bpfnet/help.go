// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/spf13/cobra"

// helpCommand is cobra's, with an error where that one shows something else.
func helpCommand(c *cobra.Command) {
	c.Use, c.Short, c.Long = "help [COMMAND...]", "Explain a command", ""
	c.Example = "  bpfnet help run\n  bpfnet help network create"
	c.Run = nil
	c.RunE = func(cmd *cobra.Command, args []string) error {
		found, rest, err := cmd.Root().Find(args)
		if err != nil {
			return err
		}
		if len(rest) > 0 {
			return noCommand(found, rest[0])
		}
		found.InitDefaultHelpFlag()
		return found.Help()
	}
}

// helpOnlyOfWhatIs makes --help after a command that there is not its error.
func (a *app) helpOnlyOfWhatIs(root *cobra.Command) {
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if cmd.HasSubCommands() {
			if a.noHelp = cmd.ValidateArgs(cmd.Flags().Args()); a.noHelp != nil {
				return
			}
		}
		help(cmd, args)
	})
}

// plainUsage keeps cobra from adding "[flags]" to usage lines, which say by themselves which
// flags of their own commands have.
func plainUsage(c *cobra.Command) {
	c.DisableFlagsInUseLine = true
	for _, sub := range c.Commands() {
		plainUsage(sub)
	}
}
