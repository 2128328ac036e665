// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bpfnet/bpfnet/control"
)

// What the shell's completion asks for is answered from the store, as far as it
// can be read: never an error, never a change.

type completer = func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective)

func complete(cmd *cobra.Command, flag string, fn completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, fn); err != nil {
		panic(err) // no such flag
	}
}

func names(cmd *cobra.Command, skip []string, list func(*control.Manager) []string) ([]string, cobra.ShellCompDirective) {
	a := &app{output: "text"}
	// The hidden command that completes does not run what usually fills these.
	_ = fromEnvironment(cmd, func(*pflag.Flag, string) {})
	for name, to := range map[string]*string{
		"root": &a.options.Root, "bpffs": &a.options.BPFFS, "netns": &a.options.Netns, "cgroup": &a.options.Cgroup,
	} {
		*to, _ = cmd.Root().PersistentFlags().GetString(name)
	}
	var found []string
	a.with(func(m *control.Manager) error {
		found = list(m)
		return nil
	})
	found = slices.DeleteFunc(found, func(s string) bool { return slices.Contains(skip, s) })
	return found, cobra.ShellCompDirectiveNoFileComp
}

func listContainers(m *control.Manager) (found []string) {
	containers, _ := m.Containers()
	for _, c := range containers {
		found = append(found, c.Name)
	}
	return found
}

func listNetworks(m *control.Manager) (found []string) {
	networks, _ := m.Networks()
	for _, n := range networks {
		found = append(found, n.Name)
	}
	return found
}

func containerNames(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return names(cmd, args, listContainers)
}

func networkNames(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return names(cmd, args, listNetworks)
}

func firstContainerName(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return containerNames(cmd, args, to)
}

func networkThenContainer(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return networkNames(cmd, args, to)
	case 1:
		return containerNames(cmd, args, to)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// networkModes are the networks that there are, and Docker's other words for --net.
func networkModes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return names(cmd, nil, func(m *control.Manager) []string {
		found := append([]string{control.ModeNone, control.ModeHost}, listNetworks(m)...)
		for _, name := range listContainers(m) {
			found = append(found, control.ModeContainer+":"+name)
		}
		return found
	})
}

// values completes one of a few words.
func values(words ...string) completer {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// anyFile completes names of files, a command of the host's too: the root command's default
// is nothing.
func anyFile(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

func directories(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// completionGroup makes cobra's command like the others.
func completionGroup(c *cobra.Command) {
	group(c).Example = "  bpfnet completion bash >/etc/bash_completion.d/bpfnet\n  . <(bpfnet completion bash)"
	for _, shell := range c.Commands() {
		shell.Use += " [--no-descriptions]"
		shell.Example = "  " + shell.CommandPath() + " >FILE"
		shell.Args = wantsNothing
	}
}
