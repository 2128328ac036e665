// SPDX-License-Identifier: Apache-2.0

package dockerdriver

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
)

// transportPort is an exposed port.
type transportPort struct {
	Proto uint8 // of IP
	Port  uint16
}

// portBinding is a published one. HostPort 0 is a random one; up to HostPortEnd the first
// that is free is meant.
type portBinding struct {
	Proto       uint8
	Port        uint16
	HostIP      string
	HostPort    uint16
	HostPortEnd uint16
}

var protocols = map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}

func (s *server) publish(r *endpointRequest) (any, error) {
	specs, err := r.Options.specs()
	if err != nil {
		return nil, err
	}
	p := control.DriverPorts{Specs: specs}
	if err := r.Options.read(keyNoIPv6, &p.IPv4); err != nil {
		return nil, err
	}
	return empty{}, s.m.SetDriverPorts(driver, r.NetworkID, r.EndpointID, p)
}

func (s *server) unpublish(r *endpointRequest) (any, error) {
	return empty{}, s.m.ClearDriverPorts(driver, r.NetworkID, r.EndpointID)
}

// exposed is "80/tcp" each.
func (o options) exposed() (list []string, err error) {
	var ports []transportPort
	if err := o.read(keyExposed, &ports); err != nil {
		return nil, err
	}
	for _, p := range ports {
		name, ok := protocols[p.Proto]
		if !ok || p.Port == 0 {
			return nil, fmt.Errorf("exposed port %d of protocol %d: not valid", p.Port, p.Proto)
		}
		list = append(list, fmt.Sprintf("%d/%s", p.Port, name))
	}
	return list, nil
}

// specs are the published ports as -p has them. Neighbours, which the Engine lists one by
// one in no order, are a range again: that is one rule.
func (o options) specs() (list []string, err error) {
	var ports []portBinding
	if err := o.read(keyPorts, &ports); err != nil {
		return nil, err
	}
	slices.SortStableFunc(ports, func(a, b portBinding) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.HostIP, b.HostIP), cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Port, b.Port))
	})
	for i := 0; i < len(ports); {
		first := ports[i]
		n := 1
		for i+n < len(ports) && first.leadsTo(ports[i+n], n) {
			n++
		}
		spec, err := first.spec(n)
		if err != nil {
			return nil, err
		}
		list = append(list, spec)
		i += n
	}
	return list, nil
}

// leadsTo says whether other is the n-th port of a range that begins with b.
func (b portBinding) leadsTo(other portBinding, n int) bool {
	return b.fixed() && other.fixed() && other.Proto == b.Proto && other.HostIP == b.HostIP &&
		int(other.Port) == int(b.Port)+n && int(other.HostPort) == int(b.HostPort)+n
}

func (b portBinding) fixed() bool {
	return b.HostPort != 0 && (b.HostPortEnd == 0 || b.HostPortEnd == b.HostPort)
}

// spec is a range of n ports.
func (b portBinding) spec(n int) (string, error) {
	name, ok := protocols[b.Proto]
	switch {
	case !ok:
		return "", fmt.Errorf("port %d: protocol %d is not known", b.Port, b.Proto)
	case b.Port == 0:
		return "", fmt.Errorf("port 0: not valid")
	case b.HostPortEnd != 0 && b.HostPortEnd < b.HostPort:
		return "", fmt.Errorf("port %d: host ports %d to %d: not valid", b.Port, b.HostPort, b.HostPortEnd)
	}
	host, port := "", fmt.Sprintf("%d/%s", b.Port, name)
	if b.HostIP != "" {
		a, err := netip.ParseAddr(b.HostIP)
		if err != nil || a.Zone() != "" {
			return "", fmt.Errorf("port %d: host address %.60q: not valid", b.Port, b.HostIP)
		}
		if host = a.Unmap().String() + ":"; a.Is6() && !a.Is4In6() {
			host = "[" + a.String() + "]:"
		}
	}
	switch {
	case n > 1:
		last := n - 1
		return fmt.Sprintf("%s%d-%d:%d-%d/%s", host, b.HostPort, int(b.HostPort)+last, b.Port, int(b.Port)+last, name), nil
	case b.HostPort == 0 && host == "":
		return port, nil
	case b.HostPort == 0:
		return host + ":" + port, nil
	case !b.fixed():
		return fmt.Sprintf("%s%d-%d:%s", host, b.HostPort, b.HostPortEnd, port), nil
	}
	return fmt.Sprintf("%s%d:%s", host, b.HostPort, port), nil
}
