// SPDX-License-Identifier: Apache-2.0

package netavark

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/bpfnet/bpfnet/control"
)

// request is what setup and teardown get.
type request struct {
	ID      string        `json:"container_id"`
	Name    string        `json:"container_name"`
	Ports   []portMapping `json:"port_mappings"`
	Network network       `json:"network"`
	Options struct {
		Aliases   []string     `json:"aliases"`
		Interface string       `json:"interface_name"`
		IPs       []netip.Addr `json:"static_ips"`
		MAC       string       `json:"static_mac"`
	} `json:"network_options"`
}

type portMapping struct {
	ContainerPort uint16 `json:"container_port"`
	HostPort      uint16 `json:"host_port"`
	HostIP        string `json:"host_ip"`
	Protocol      string `json:"protocol"` // "tcp,udp" is two
	Range         uint16 `json:"range"`    // ports from the first ones on; 0: 1
}

// statusBlock is setup's answer.
type statusBlock struct {
	Interfaces map[string]netInterface `json:"interfaces"`
	DNSServers []netip.Addr            `json:"dns_server_ips"`
	DNSSearch  []string                `json:"dns_search_domains"`
}

type netInterface struct {
	MAC     string       `json:"mac_address"`
	Subnets []netAddress `json:"subnets"`
}

type netAddress struct {
	IPNet   netip.Prefix `json:"ipnet"`
	Gateway *netip.Addr  `json:"gateway,omitempty"`
}

func (p *plugin) begin() (*request, *control.Manager, error) {
	r := &request{}
	if err := p.read(r); err != nil {
		return nil, nil, err
	}
	if r.ID == "" || r.Options.Interface == "" || r.Network.Name == "" {
		return nil, nil, errors.New("standard input: container_id, interface_name and the network's name are needed")
	}
	m, err := control.Open(r.Network.host(p.options))
	return r, m, err
}

func (p *plugin) setup(netns string) error {
	r, m, err := p.begin()
	if err != nil {
		return err
	}
	defer m.Close()
	opts := control.JoinOptions{
		Runtime: runtime,
		ID:      control.RuntimeID(runtime, r.ID),
		Names:   []string{r.Name, r.Name + "-" + r.ID[:min(len(r.ID), 12)]},
		Netns:   netns,
		Held:    true, // podman's conmon has sockets on the ports
		Endpoint: control.EndpointOptions{
			IfName: r.Options.Interface, MAC: r.Options.MAC, Aliases: r.Options.Aliases,
		},
	}
	if opts.Network, err = r.Network.create(); err != nil {
		return err
	}
	for _, a := range r.Options.IPs {
		to := &opts.Endpoint.IPv4
		if a = a.Unmap(); a.Is6() {
			to = &opts.Endpoint.IPv6
		}
		if to.IsValid() {
			return fmt.Errorf("static_ips: %s and %s: one of a family at most", *to, a)
		}
		*to = a
	}
	for _, x := range r.Network.Routes {
		opts.Endpoint.Routes = append(opts.Endpoint.Routes, control.Route{To: x.Destination, Via: x.Gateway})
	}
	if opts.Publish, err = specs(r.Ports); err != nil {
		return err
	}
	if err := r.Network.drop(m, r.Network.ID); err != nil { // podman has removed it after a reboot, say
		return err
	}
	j, err := m.Join(opts)
	if err != nil {
		return err
	}
	return p.print(status(j))
}

// teardown ends what setup made; what is gone already is fine.
func (p *plugin) teardown() error {
	r, m, err := p.begin()
	if err != nil {
		return err
	}
	defer m.Close()
	err = m.Leave(r.Network.Name, control.RuntimeID(runtime, r.ID), r.Options.Interface)
	if err != nil && !errors.Is(err, control.ErrNotFound) {
		return err
	}
	return r.Network.drop(m, "")
}

// specs are the Manager's words for port mappings; a range stays one.
func specs(list []portMapping) ([]string, error) {
	var out []string
	for _, m := range list {
		n := max(int(m.Range), 1)
		if m.HostPort == 0 || m.ContainerPort == 0 || int(m.HostPort)+n > 1<<16 || int(m.ContainerPort)+n > 1<<16 {
			return nil, fmt.Errorf("port_mappings: %d to %d, range %d: not within 1 to 65535", m.HostPort, m.ContainerPort, n)
		}
		ip := ""
		if m.HostIP != "" {
			a, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return nil, fmt.Errorf("port_mappings: host_ip %.60q: no address", m.HostIP)
			}
			if ip = a.Unmap().String() + ":"; a.Unmap().Is6() {
				ip = "[" + a.String() + "]:"
			}
		}
		for proto := range strings.SplitSeq(m.Protocol, ",") {
			numbers := func(first uint16) string {
				if n == 1 {
					return fmt.Sprint(first)
				}
				return fmt.Sprintf("%d-%d", first, int(first)+n-1)
			}
			out = append(out, ip+numbers(m.HostPort)+":"+numbers(m.ContainerPort)+"/"+proto)
		}
	}
	return out, nil
}

func status(j *control.Joined) statusBlock {
	n, ep := j.Network, j.Endpoint
	i := netInterface{MAC: ep.MAC}
	for _, s := range n.Subnets {
		a := netAddress{IPNet: ep.IPv4}
		if s.Prefix.Addr().Is6() {
			a.IPNet = ep.IPv6
		}
		if !n.Internal {
			a.Gateway = &s.Gateway
		}
		i.Subnets = append(i.Subnets, a)
	}
	return statusBlock{map[string]netInterface{ep.IfName: i}, []netip.Addr{}, []string{}}
}
