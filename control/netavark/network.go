// SPDX-License-Identifier: Apache-2.0

package netavark

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/ipam"
)

// network is podman's configuration of one: what of it means something here.
type network struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Interface string            `json:"network_interface"` // bridge; "": one of our own making
	Subnets   []subnet          `json:"subnets"`
	IPv6      bool              `json:"ipv6_enabled"`
	Internal  bool              `json:"internal"`
	Options   map[string]string `json:"options"`
	Routes    []route           `json:"routes"`
	IPAM      map[string]string `json:"ipam_options"`
}

type subnet struct {
	Subnet  netip.Prefix    `json:"subnet"`
	Gateway netip.Addr      `json:"gateway"`
	Lease   json.RawMessage `json:"lease_range,omitempty"` // podman's own business: it chooses in it
}

type route struct {
	Destination netip.Prefix `json:"destination"`
	Gateway     netip.Addr   `json:"gateway"`
	Metric      *uint32      `json:"metric"`
}

// options that a network may have, by --opt.
var options = []string{"mtu", "icc", "masquerade", "isolate", "root", "bpffs", "netns", "cgroup", "datapath", "config"}

// create checks a configuration, and answers with it, completed.
func (p *plugin) create() error {
	var raw map[string]any
	if err := p.read(&raw); err != nil {
		return err
	}
	n := &network{}
	data, err := json.Marshal(raw)
	if err == nil {
		err = json.Unmarshal(data, n)
	}
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	opts, err := n.create()
	if err != nil {
		return err
	}
	if err := control.CheckNetwork(opts); err != nil {
		return err
	}
	// podman chooses addresses by itself, and must not choose the bridge's.
	if list, ok := raw["subnets"].([]any); ok {
		for i, s := range n.Subnets {
			if s.Gateway.IsValid() {
				continue
			}
			gateway, err := ipam.Gateway(s.Subnet.Masked(), netip.Prefix{})
			if err != nil {
				return fmt.Errorf("subnet %s: %w", s.Subnet, err)
			}
			if one, ok := list[i].(map[string]any); ok {
				one["gateway"] = gateway.String()
			}
		}
	}
	raw["dns_enabled"] = false // aardvark serves netavark's own bridges
	return p.print(raw)
}

// create is what the Manager makes of it.
func (n *network) create() (control.NetworkOptions, error) {
	o := control.NetworkOptions{Name: n.Name, Bridge: n.Interface, Internal: n.Internal, IPv6: n.IPv6}
	if n.ID != "" {
		o.Labels = map[string]string{label: n.ID}
	}
	for _, key := range slices.Sorted(maps.Keys(n.Options)) {
		if !slices.Contains(options, key) {
			return o, fmt.Errorf("network %s: option %s: not one of %s", n.Name, key, strings.Join(options, ", "))
		}
	}
	if d := n.IPAM["driver"]; d != "" && d != "host-local" && d != "none" {
		return o, fmt.Errorf("network %s: ipam driver %s: host-local or none", n.Name, d)
	}
	for _, s := range n.Subnets {
		if !s.Subnet.IsValid() {
			return o, fmt.Errorf("network %s: subnet: not valid", n.Name)
		}
		o.Subnets = append(o.Subnets, s.Subnet.Masked())
		o.IPv6 = o.IPv6 || s.Subnet.Addr().Is6()
		if s.Gateway.IsValid() {
			o.Gateways = append(o.Gateways, s.Gateway)
		}
	}
	for _, r := range n.Routes {
		if r.Metric != nil && *r.Metric != 0 && *r.Metric != 100 { // podman's default
			return o, fmt.Errorf("network %s: route %s: metric %d: routes have none", n.Name, r.Destination, *r.Metric)
		}
	}
	if text, ok := n.Options["mtu"]; ok {
		mtu, err := strconv.Atoi(text)
		if err != nil || mtu <= 0 {
			return o, fmt.Errorf("network %s: option mtu: %q: not a number of bytes", n.Name, text)
		}
		o.MTU = mtu
	}
	for key, to := range map[string]**bool{"icc": &o.ICC, "masquerade": &o.Masquerade, "isolate": &o.Isolate} {
		if text, ok := n.Options[key]; ok {
			on, err := strconv.ParseBool(text)
			if err != nil {
				return o, fmt.Errorf("network %s: option %s: %q: true or false", n.Name, key, text)
			}
			*to = &on
		}
	}
	return o, nil
}

// drop removes the network of the name that was made here, unless its ID is keep, or somebody is
// on it: who has lost his namespace is not.
func (n *network) drop(m *control.Manager, keep string) error {
	gone := func(err error) bool { return errors.Is(err, control.ErrNotFound) }
	made, err := m.Network(n.Name)
	if gone(err) {
		return nil
	}
	if err != nil || made.Name != n.Name || made.Labels[label] == "" || made.Labels[label] == keep {
		return err
	}
	list, err := m.Attachments(runtime, n.Name)
	if err != nil {
		return err
	}
	for _, a := range list {
		if a.Up {
			return nil
		}
		if err := m.Leave(n.Name, a.Container.ID, a.Endpoint.Interface()); err != nil && !gone(err) {
			return err
		}
	}
	if err := m.RemoveNetwork(made.ID); err != nil && !gone(err) && !errors.Is(err, control.ErrConflict) {
		return err
	}
	return nil
}

// host lets the network say where the store is.
func (n *network) host(o control.Options) control.Options {
	for key, to := range map[string]*string{
		"root": &o.Root, "bpffs": &o.BPFFS, "netns": &o.Netns, "cgroup": &o.Cgroup, "datapath": &o.Datapath, "config": &o.Config,
	} {
		if text := n.Options[key]; text != "" {
			*to = text
		}
	}
	return o
}
