// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/bpfnet/bpfnet/control"
)

// capabilities are those of the conventions that mean something here.
var capabilities = []string{"portMappings", "ips", "mac", "aliases", "dns"}

// runtimeConfig is what a runtime fills in for the capabilities.
type runtimeConfig struct {
	PortMappings []portMapping   `json:"portMappings"`
	IPs          []string        `json:"ips"`
	MAC          string          `json:"mac"`
	Aliases      json.RawMessage `json:"aliases"` // a list; podman: a list by network
	DNS          struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	} `json:"dns"`
}

func readRuntime(data json.RawMessage) (r runtimeConfig, err error) {
	var all map[string]json.RawMessage
	if len(data) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return r, failure(types.ErrDecodingFailure, "runtimeConfig: %v", err)
	}
	for key, value := range all {
		if !slices.Contains(capabilities, key) {
			return r, unsupported("runtimeConfig: "+key, value)
		}
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, failure(types.ErrDecodingFailure, "runtimeConfig: %v", err)
	}
	return r, nil
}

// envArgs are the keys of CNI_ARGS that runtimes send.
type envArgs struct {
	types.CommonArgs
	IP                         types.UnmarshallableString
	MAC                        types.UnmarshallableString
	K8S_POD_NAME               types.UnmarshallableString
	K8S_POD_NAMESPACE          types.UnmarshallableString
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
	K8S_POD_UID                types.UnmarshallableString
}

// wishes are what a call asks for beyond the network.
type wishes struct {
	ipv4, ipv6 netip.Addr
	mac        string
	name       string // "": none
	aliases    []string
	publish    []string
	dns        types.DNS
}

// wishes come by three ways: runtimeConfig goes before args, and that before CNI_ARGS.
func (c *config) wishes(cniArgs string) (*wishes, error) {
	var env envArgs
	if err := types.LoadArgs(cniArgs, &env); err != nil {
		return nil, failure(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %v", err)
	}
	w := &wishes{name: string(env.K8S_POD_NAME), dns: c.DNS}
	var err error
	switch {
	case len(c.asked.IPs) > 0:
		err = w.addresses(c.asked.IPs, "runtimeConfig: ips", types.ErrInvalidNetworkConfig)
	case len(c.Args.CNI.IPs) > 0:
		err = w.addresses(c.Args.CNI.IPs, "args: ips", types.ErrInvalidNetworkConfig)
	case env.IP != "":
		err = w.addresses(strings.Split(string(env.IP), ","), "CNI_ARGS: IP", types.ErrInvalidEnvironmentVariables)
	}
	if err != nil {
		return nil, err
	}
	if w.mac = c.asked.MAC; w.mac == "" && env.MAC != "" {
		if _, err := net.ParseMAC(string(env.MAC)); err != nil {
			return nil, failure(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: MAC %.40q: no MAC address", string(env.MAC))
		}
		w.mac = string(env.MAC)
	}
	if w.aliases, err = readAliases(c.asked.Aliases, c.Name); err != nil {
		return nil, err
	}
	if w.publish, err = specs(c.asked.PortMappings); err != nil {
		return nil, err
	}
	if d := c.asked.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		w.dns.Nameservers, w.dns.Search, w.dns.Options = d.Servers, d.Searches, d.Options
	}
	return w, nil
}

// addresses takes one of each family; a prefix length is the network's to say.
func (w *wishes) addresses(list []string, where string, code uint) error {
	for _, s := range list {
		text, _, _ := strings.Cut(s, "/")
		a, err := netip.ParseAddr(text)
		if err != nil {
			return failure(code, "%s: %.60q: no address", where, s)
		}
		to := &w.ipv4
		if a = a.Unmap(); a.Is6() {
			to = &w.ipv6
		}
		if to.IsValid() {
			return failure(code, "%s: %s and %s: one of a family at most", where, *to, a)
		}
		*to = a
	}
	return nil
}

func readAliases(data json.RawMessage, network string) (list []string, err error) {
	if len(data) == 0 || json.Unmarshal(data, &list) == nil {
		return list, nil
	}
	var by map[string][]string
	if err := json.Unmarshal(data, &by); err != nil {
		return nil, failure(types.ErrDecodingFailure, "runtimeConfig: aliases: neither a list nor a list by network")
	}
	return by[network], nil
}

func (w *wishes) endpoint(ifName string) control.EndpointOptions {
	return control.EndpointOptions{IPv4: w.ipv4, IPv6: w.ipv6, MAC: w.mac, IfName: ifName, Aliases: w.aliases}
}
