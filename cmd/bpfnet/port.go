// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func portCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "port NAME [PORT[/PROTO]]",
		Short:   "List a container's published ports",
		Example: "  bpfnet port web\n  bpfnet port web 80/tcp",
		Args:    wants(1, 2, "NAME [PORT[/PROTO]]"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.with(func(m *control.Manager) error {
				c, err := m.Container(args[0])
				if err != nil {
					return err
				}
				pubs, err := m.Publications(c.ID)
				if err != nil {
					return err
				}
				if len(args) == 1 {
					return a.printPorts(pubs)
				}
				port, err := portKey(args[1])
				if err != nil {
					return err
				}
				found := []binding{}
				for _, b := range bindings(pubs) {
					if b.Port == port {
						found = append(found, b)
					}
				}
				if len(found) == 0 {
					return fmt.Errorf("no public port '%s' published for %s", port, args[0])
				}
				if a.json() {
					return a.printJSON(found)
				}
				for _, b := range found {
					fmt.Fprintln(a.out, b.host())
				}
				return nil
			})
		},
		ValidArgsFunction: firstContainerName,
	}
}

// portKey reads PORT[/PROTO] and returns it as bindings have it.
func portKey(text string) (string, error) {
	port, proto, ok := strings.Cut(text, "/")
	if !ok {
		proto = "tcp"
	}
	var n uint16
	if _, err := fmt.Sscanf(port, "%d", &n); err != nil || n == 0 || fmt.Sprint(n) != port {
		return "", fmt.Errorf("port %q: not a port, 1-65535", port)
	}
	proto = strings.ToLower(proto)
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return "", fmt.Errorf("protocol %q: tcp, udp or sctp", proto)
	}
	return port + "/" + proto, nil
}

// printPorts prints a line each: the container's port and the host's side.
func (a *app) printPorts(pubs []control.Publication) error {
	if a.json() {
		return a.printJSON(bindings(pubs))
	}
	out := bufio.NewWriterSize(a.out, 1<<16)
	var line []byte
	for p, i := range unrolled(pubs) {
		line = strconv.AppendUint(line[:0], uint64(uint32(p.Port)+i), 10)
		line = append(append(append(line, '/'), p.Proto...), " -> "...)
		line = append(appendHost(line, p, i), '\n')
		out.Write(line)
	}
	return out.Flush()
}

func publishCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "publish NAME SPEC...",
		Short: "Publish ports of a running container",
		Long: `Publish ports of a running container, all of them or none. SPEC is that of run -p:
[IP:][HOSTPORT[-END]:]PORT[-END][/tcp|udp|sctp][,from=CIDR[,CIDR...]].`,
		Example: "  bpfnet publish web 8080:80\n  bpfnet publish web 127.0.0.1::443 5000-5009:5000-5009/udp",
		Args:    wants(2, -1, "NAME SPEC..."),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.with(func(m *control.Manager) error {
				pubs, err := m.Publish(args[0], args[1:]...)
				if err != nil {
					return err
				}
				return a.printPorts(pubs)
			})
		},
		ValidArgsFunction: firstContainerName,
	}
}

func unpublishCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "unpublish NAME SPEC...",
		Short: "Take published ports back",
		Long: `Take published ports back: all that are named, or none. A SPEC is as publish got it. Without
a host port it means each that leads to the container's; without an address or from=, whatever
was said of those. A range goes as a whole.`,
		Example: "  bpfnet unpublish web 8080:80\n  bpfnet unpublish web 80",
		Args:    wants(2, -1, "NAME SPEC..."),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.with(func(m *control.Manager) error { return m.Unpublish(args[0], args[1:]...) })
		},
		ValidArgsFunction: firstContainerName,
	}
}
