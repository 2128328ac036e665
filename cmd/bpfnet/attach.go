// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func attachCommand(a *app) *cobra.Command {
	var net networkFlags
	cmd := &cobra.Command{
		Use:   "attach [flags] NAME pid:N|netns:PATH|docker:NAME",
		Short: "Give a network namespace that exists a network and ports",
		Long: `Attach a network namespace that somebody else made, under a name. Its processes
stay theirs: rm detaches it and kills nothing.`,
		Example: `  bpfnet attach web pid:4711 -p 8080:80
  bpfnet attach lab netns:/run/netns/lab --net mynet --ip 172.18.0.9`,
		Args: wants(2, 2, "NAME and pid:N, netns:PATH or docker:NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			o, err := net.options()
			if err != nil {
				return err
			}
			kind, value, _ := strings.Cut(args[1], ":")
			if value == "" || kind != "pid" && kind != "netns" && kind != "docker" {
				return fmt.Errorf("attach %q: pid:N, netns:PATH or docker:NAME", args[1])
			}
			o.Name, o.Attach = args[0], args[1]
			return a.with(func(m *control.Manager) error {
				c, err := m.CreateContainer(o)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON([]map[string]string{{"Id": c.ID}})
				}
				fmt.Fprintln(a.out, c.ID)
				return nil
			})
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) != 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"pid:", "netns:", "docker:"}, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		},
	}
	net.add(cmd)
	return cmd
}
