// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bpfnet/bpfnet/control"
)

// networkFlags are those that run and attach share.
type networkFlags struct {
	o       control.ContainerOptions
	ip, ip6 string
}

func (n *networkFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.SetNormalizeFunc(dockerSpelling)
	o := &n.o
	f.StringVar(&o.Network, "network", "", "`network` to join: a name, none, host or container:NAME (also --net; default the network bridge)")
	f.StringArrayVarP(&o.Publish, "publish", "p", nil, "publish a port: `SPEC` is [IP:][HOSTPORT[-END]:]PORT[-END][/tcp|udp|sctp][,from=CIDR...]")
	f.BoolVarP(&o.PublishAll, "publish-all", "P", false, "publish all exposed ports on free ports of the host")
	f.StringArrayVar(&o.Expose, "expose", nil, "a port that the container serves: `PORT`[-END][/PROTO]")
	f.StringArrayVar(&o.Links, "link", nil, "reach another container's exposed ports by a name: `NAME`[:ALIAS]")
	f.StringArrayVar(&o.Endpoint.Aliases, "network-alias", nil, "another `name` on the network (also --net-alias)")
	f.StringVar(&n.ip, "ip", "", "IPv4 `address`")
	f.StringVar(&n.ip6, "ip6", "", "IPv6 `address`")
	f.StringVar(&o.Endpoint.MAC, "mac-address", "", "MAC `address`")
	f.StringVarP(&o.Hostname, "hostname", "h", "", "the container's host `name` (default its short ID)")
	f.StringArrayVar(&o.DNS, "dns", nil, "DNS server `address`")
	f.StringArrayVar(&o.DNSSearch, "dns-search", nil, "DNS search `domain`")
	f.StringArrayVar(&o.DNSOptions, "dns-option", nil, "DNS resolver `option` (also --dns-opt)")
	f.StringArrayVar(&o.AddHosts, "add-host", nil, "line for /etc/hosts: `HOST:IP`")
	f.Bool("help", false, "help for "+cmd.Name()) // its usual letter is the hostname's
	complete(cmd, "network", networkModes)
	complete(cmd, "link", containerNames)
}

// dockerSpelling gives flags their other names.
func dockerSpelling(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	switch name {
	case "net":
		name = "network"
	case "net-alias":
		name = "network-alias"
	case "dns-opt":
		name = "dns-option"
	}
	return pflag.NormalizedName(name)
}

func (n *networkFlags) options() (control.ContainerOptions, error) {
	o := n.o
	if o.Network == "default" { // Docker's other name for it
		o.Network = ""
	}
	var err error
	if o.Endpoint.IPv4, err = address("--ip", n.ip, false); err != nil {
		return o, err
	}
	o.Endpoint.IPv6, err = address("--ip6", n.ip6, true)
	return o, err
}

// address parses an optional address of one family.
func address(flag, text string, v6 bool) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || a.Is6() != v6 {
		family := "IPv4"
		if v6 {
			family = "IPv6"
		}
		return a, fmt.Errorf("%s %q: not an %s address", flag, text, family)
	}
	return a, nil
}

// environment makes what run records of the command's environment: --env over
// the little that a program expects, and where it starts.
func environment(given []string, rootfs, workdir string) ([]string, error) {
	path := os.Getenv("PATH")
	if rootfs != "" || path == "" {
		path = defaultPath
	}
	env := []string{"PATH=" + path, "HOME=/root"}
	if workdir == "" && rootfs == "" {
		dir, err := os.Getwd()
		if err != nil {
			return nil, fmt.Errorf("working directory: %w", err)
		}
		workdir = dir
	}
	if workdir != "" {
		env = append(env, "PWD="+workdir)
	}
	return mergeEnv(env, given)
}

// mergeEnv puts --env over an environment: KEY=VALUE, or KEY as it is here.
func mergeEnv(env, given []string) ([]string, error) {
	for _, e := range given {
		key, _, hasValue := strings.Cut(e, "=")
		if key == "" {
			return nil, fmt.Errorf("--env %q: no name before =", e)
		}
		if !hasValue { // Docker: nothing when it is not here either
			value, ok := os.LookupEnv(key)
			if !ok {
				continue
			}
			e = key + "=" + value
		}
		env = setenv(env, e)
	}
	return env, nil
}

// setenv puts KEY=value in the place of an earlier one.
func setenv(env []string, entry string) []string {
	key, _, _ := strings.Cut(entry, "=")
	for i, old := range env {
		if strings.HasPrefix(old, key+"=") {
			env[i] = entry
			return env
		}
	}
	return append(env, entry)
}

func getenv(env []string, key string) (string, bool) {
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, key+"="); ok {
			return value, true
		}
	}
	return "", false
}

// keyValues parses repeated K=V flags.
func keyValues(flag string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(list))
	for _, kv := range list {
		key, value, _ := strings.Cut(kv, "=")
		if key == "" {
			return nil, fmt.Errorf("%s %q: no name before =", flag, kv)
		}
		m[key] = value
	}
	return m, nil
}
