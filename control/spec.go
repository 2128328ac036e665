// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bpfnet/bpfnet/control/ports"
	"github.com/bpfnet/bpfnet/maps"
)

// hostSpec is one -p with the number of the line that it came from.
type hostSpec struct {
	ports.Spec
	index int
	proto maps.Proto
	held  bool // see Container.Held
}

func parseSpecs(list []string) ([]hostSpec, error) {
	specs := make([]hostSpec, 0, len(list))
	for i, line := range list {
		parsed, err := ports.Parse(line)
		if err != nil {
			return nil, &kindError{ErrInvalid, err.Error()}
		}
		for _, s := range parsed {
			proto, err := maps.ParseProto(s.Proto)
			if err != nil {
				return nil, err
			}
			// Its ports are in a checksum of the whole packet (RFC 9260 section 6.8): they are not translated.
			if proto == maps.SCTP && s.HostFirst == 0 {
				s.HostFirst, s.HostLast = s.First, s.Last
			}
			if proto == maps.SCTP && (s.HostFirst != s.First || s.HostLast != s.Last) {
				return nil, invalid("port %q: sctp needs the same port on both sides", line)
			}
			specs = append(specs, hostSpec{Spec: s, index: i, proto: proto})
		}
	}
	return specs, nil
}

// leadsTo says whether an open door is what the spec of an unpublish means.
func (s *hostSpec) leadsTo(d door, addrs []netip.Addr) bool {
	return s.proto == d.Proto && s.First == d.Port && s.Count() == d.Count &&
		(s.HostFirst == 0 || s.HostFirst == d.Host) &&
		(!s.HostIP.IsValid() || slices.Contains(addrs, s.HostIP))
}

// within says that the spec of an unpublish names a part of a range; "" if it does not.
func (s *hostSpec) within(batches []*portBatch) (string, error) {
	for _, b := range batches {
		given, err := b.parsed()
		if err != nil {
			return "", err
		}
		for i := range given {
			g := &given[i]
			if g.Count() > s.Count() && g.proto == s.proto && g.First <= s.First && s.Last <= g.Last {
				return " by itself, but within " + g.Raw, nil
			}
		}
	}
	return "", nil
}

// chooses says whether the spec leaves a choice of host ports.
func (s *hostSpec) chooses() bool {
	return s.HostFirst == 0 || s.HostLast-s.HostFirst != s.Last-s.First
}

// protoPort is a port of a container.
type protoPort struct {
	Proto maps.Proto `json:"proto"`
	Port  uint16     `json:"port"`
}

func (p protoPort) String() string { return strconv.Itoa(int(p.Port)) + "/" + p.Proto.String() }

// parseExposed reads --expose: "80/tcp" each.
func parseExposed(list []string) ([]string, error) {
	var out []string
	for _, e := range list {
		first, last, proto, err := ports.ParsePort(e)
		if err != nil {
			return nil, &kindError{ErrInvalid, err.Error()}
		}
		for p := int(first); p <= int(last); p++ {
			out = append(out, fmt.Sprintf("%d/%s", p, proto))
		}
	}
	return out, nil
}

// exposedPorts are those of --expose and the published ones.
func (o *op) exposedPorts(c *Container) ([]protoPort, error) {
	seen := make(map[protoPort]bool)
	for _, e := range c.Exposed {
		number, name, _ := strings.Cut(e, "/")
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, err
		}
		proto, err := maps.ParseProto(name)
		if err != nil {
			return nil, err
		}
		seen[protoPort{proto, uint16(port)}] = true
	}
	lines, err := o.specs(c.ID)
	if err != nil {
		return nil, err
	}
	specs, err := parseSpecs(lines)
	if err != nil {
		return nil, err
	}
	for _, s := range specs {
		for p := int(s.First); p <= int(s.Last) && len(seen) <= maxLinkPorts; p++ {
			seen[protoPort{s.proto, uint16(p)}] = true
		}
	}
	list := make([]protoPort, 0, len(seen))
	for p := range seen {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b protoPort) int { return int(a.Proto)<<16 + int(a.Port) - int(b.Proto)<<16 - int(b.Port) })
	return list, nil
}
