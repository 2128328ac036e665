// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/bpfnet/bpfnet/control"
)

// config is a network's configuration, with what the runtime has added.
type config struct {
	Name string `json:"name"`

	// The network.
	Bridge   string         `json:"bridge"`  // "": one of our own making
	Subnet   netip.Prefix   `json:"subnet"`  // short for a list of one
	Subnets  []netip.Prefix `json:"subnets"` // one per family; none: out of the Manager's pools
	Gateway  netip.Addr     `json:"gateway"`
	Gateways []netip.Addr   `json:"gateways"`
	Range    netip.Prefix   `json:"range"` // where addresses come from
	Ranges   []netip.Prefix `json:"ranges"`
	IPv6     bool           `json:"ipv6"`
	MTU      int            `json:"mtu"`
	ICC      *bool          `json:"icc"`     // true
	IPMasq   *bool          `json:"ipMasq"`  // true
	Isolate  *bool          `json:"isolate"` // true
	Internal bool           `json:"internal"`

	PortsHeld bool `json:"portsHeld"` // the runtime has sockets on published ports itself, as podman's conmon has

	// What the bridge plugin can leave out and this one always does.
	IsGateway        *bool `json:"isGateway"`
	IsDefaultGateway *bool `json:"isDefaultGateway"`
	HairpinMode      *bool `json:"hairpinMode"`

	// Where the host's store is: control.Options.
	Root     string `json:"root"`
	BPFFS    string `json:"bpffs"`
	Netns    string `json:"netns"`
	Cgroup   string `json:"cgroup"`
	Datapath string `json:"datapath"`
	Config   string `json:"config"`

	// The specification's own.
	CNIVersion    string          `json:"cniVersion"`
	Type          string          `json:"type"`
	IPAM          json.RawMessage `json:"ipam"`
	DNS           types.DNS       `json:"dns"`
	Capabilities  map[string]bool `json:"capabilities"`
	RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	PrevResult    json.RawMessage `json:"prevResult"`
	Args          struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`

	valid []types.GCAttachment // of GC
	ipam  string               // plugin that gives addresses; "": the Manager
	asked runtimeConfig
}

// keys of config. Go would take them in any case of letters, and take no notice of others.
var keys = []string{
	"name", "bridge", "subnet", "subnets", "gateway", "gateways", "range", "ranges", "ipv6", "mtu", "icc", "ipMasq",
	"isolate", "internal", "portsHeld", "isGateway", "isDefaultGateway", "hairpinMode", "root", "bpffs", "netns", "cgroup", "datapath",
	"config", "cniVersion", "type", "ipam", "dns", "capabilities", "runtimeConfig", "prevResult", "args",
}

const (
	keysReserved = "cni.dev/" // by the specification, for runtimes
	keyValid     = keysReserved + "valid-attachments"
	keyValidOnce = keysReserved + "attachments" // an earlier draft's
)

func readConfig(data []byte) (*config, error) {
	var all map[string]json.RawMessage
	c := &config{}
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, failure(types.ErrDecodingFailure, "network configuration: %v", err)
	}
	for key, value := range all {
		if !slices.Contains(keys, key) && !strings.HasPrefix(key, keysReserved) {
			return nil, unsupported(key, value)
		}
	}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, failure(types.ErrDecodingFailure, "network configuration: %v", err)
	}
	for _, key := range []string{keyValid, keyValidOnce} {
		var list []types.GCAttachment
		if err := json.Unmarshal([]byte(cmp.Or(string(all[key]), "null")), &list); err != nil {
			return nil, failure(types.ErrDecodingFailure, "%s: %v", key, err)
		}
		c.valid = append(c.valid, list...)
	}
	for key, on := range c.Capabilities {
		if on && !slices.Contains(capabilities, key) {
			return nil, unsupported("capabilities: "+key, []byte("true"))
		}
	}
	for key, on := range map[string]*bool{"isGateway": c.IsGateway, "isDefaultGateway": c.IsDefaultGateway, "hairpinMode": c.HairpinMode} {
		if on != nil && !*on {
			return nil, unsupported(key, []byte("false"))
		}
	}
	for _, s := range []struct {
		one  netip.Prefix
		many *[]netip.Prefix
	}{{c.Subnet, &c.Subnets}, {c.Range, &c.Ranges}} {
		if s.one.IsValid() {
			*s.many = append(*s.many, s.one)
		}
	}
	if c.Gateway.IsValid() {
		c.Gateways = append(c.Gateways, c.Gateway)
	}
	var err error
	if c.ipam, err = readIPAM(c.IPAM); err != nil {
		return nil, err
	}
	c.asked, err = readRuntime(c.RuntimeConfig)
	return c, err
}

// unsupported has key and value in its text, as the specification asks.
func unsupported(key string, value []byte) *types.Error {
	var short bytes.Buffer
	if json.Compact(&short, value) != nil || short.Len() > 100 {
		short.Truncate(min(short.Len(), 100))
		short.WriteString("…")
	}
	return failure(types.ErrUnsupportedField, "%s: %s: bpfnet has no such setting", key, short.String())
}

// readIPAM finds the plugin that gives addresses.
func readIPAM(data json.RawMessage) (plugin string, err error) {
	var ipam map[string]json.RawMessage
	if len(data) == 0 {
		return "", nil
	}
	if err := json.Unmarshal(data, &ipam); err != nil {
		return "", failure(types.ErrDecodingFailure, "ipam: %v", err)
	}
	if kind, ok := ipam["type"]; ok {
		if err := json.Unmarshal(kind, &plugin); err != nil {
			return "", failure(types.ErrDecodingFailure, "ipam: type: %v", err)
		}
	}
	if plugin == "" && len(ipam) > 0 {
		return "", failure(types.ErrInvalidNetworkConfig, "ipam: has no type; leave it out for bpfnet's own addresses, and set subnets beside it")
	}
	if plugin == "dhcp" {
		return "", failure(types.ErrInvalidNetworkConfig, "ipam: dhcp needs the interface before the address: not supported")
	}
	return plugin, nil
}

// network is what the Manager makes of it.
func (c *config) network() control.NetworkOptions {
	return control.NetworkOptions{
		Name: c.Name, Bridge: c.Bridge, Subnets: c.Subnets, Gateways: c.Gateways, Ranges: c.Ranges, IPv6: c.IPv6,
		MTU: c.MTU, ICC: c.ICC, Masquerade: c.IPMasq, Isolate: c.Isolate, Internal: c.Internal,
	}
}

// host lets the configuration say where the store is.
func (c *config) host(o *control.Options) {
	for _, x := range []struct {
		to   *string
		from string
	}{
		{&o.Root, c.Root}, {&o.BPFFS, c.BPFFS}, {&o.Netns, c.Netns}, {&o.Cgroup, c.Cgroup}, {&o.Datapath, c.Datapath}, {&o.Config, c.Config},
	} {
		if x.from != "" {
			*x.to = x.from
		}
	}
}
