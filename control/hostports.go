// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/ports"
	"github.com/bpfnet/bpfnet/maps"
)

// bindAddrs are the host addresses that a spec binds to.
func (o *op) bindAddrs(c *Container, s *hostSpec, server4, server6 *Endpoint) ([]netip.Addr, error) {
	addr := s.HostIP
	if !addr.IsValid() {
		var err error
		if addr, err = o.defaultBind(server4, server6); err != nil {
			return nil, err
		}
	}
	if !addr.IsValid() {
		var list []netip.Addr
		if server4 != nil {
			list = append(list, netip.IPv4Unspecified())
		}
		if server6 != nil {
			list = append(list, netip.IPv6Unspecified())
		}
		return list, nil
	}
	if addr.Is4() && server4 == nil || addr.Is6() && server6 == nil {
		return nil, invalid("port %q: container %s has no address of the family of %s", s.Raw, c.Name, addr)
	}
	if err := o.hostHas(addr); err != nil {
		return nil, bindError(addr, s.HostFirst, err)
	}
	return []netip.Addr{addr}, nil
}

// defaultBind is the address of a -p without one: the network's, the
// configuration's, or none (all addresses).
func (o *op) defaultBind(server4, server6 *Endpoint) (netip.Addr, error) {
	ep := server4
	if ep == nil {
		ep = server6
	}
	key := ep.Network
	if a, ok := o.binds[key]; ok {
		return a, nil
	}
	n, err := networkByID(o.tx, ep.Network)
	if err != nil {
		return netip.Addr{}, err
	}
	text := cmpString(n.BindAddress, o.host.Config.IP)
	var addr netip.Addr
	if text != "" {
		if addr, err = netip.ParseAddr(text); err != nil {
			return addr, err
		}
		if addr == netip.IPv4Unspecified() {
			addr = netip.Addr{} // Docker's default value: all addresses
		}
	}
	if o.binds == nil {
		o.binds = make(map[string]netip.Addr)
	}
	o.binds[key] = addr
	return addr, nil
}

// hostHas says whether the host has an address that can be published on: B7.
// All of 127.0.0.0/8 is the host's; an IPv6 link-local address is not enough
// without its device.
func (o *op) hostHas(addr netip.Addr) error {
	if addr.IsUnspecified() || addr.IsLoopback() {
		return nil
	}
	if addr.Is6() && addr.IsLinkLocalUnicast() {
		return ports.ErrNotAvailable
	}
	if o.addrs == nil {
		ns, err := o.hostNetns()
		if err != nil {
			return err
		}
		list, err := link.HostAddrs(ns)
		if err != nil {
			return err
		}
		o.addrs = make(map[netip.Addr]bool, len(list))
		for _, a := range list {
			o.addrs[a.Addr] = true
		}
	}
	if !o.addrs[addr] {
		return ports.ErrNotAvailable
	}
	return nil
}

// hostView is what the host's own processes and settings leave of its ports,
// read once per command.
type hostView struct {
	ephemeral ports.Range
	reserved  ports.Set     // by others too
	held      ports.Checker // for a thread in the host's namespace
}

func (o *op) hostView() (*hostView, error) {
	if o.view != nil {
		return o.view, nil
	}
	ns, err := o.hostNetns()
	if err != nil {
		return nil, err
	}
	v := &hostView{}
	err = ns.Do(func() (err error) {
		if v.ephemeral, err = ports.ReadRange(); err != nil {
			return err
		}
		v.reserved, err = ports.ReadReserved()
		return err
	})
	if err != nil {
		return nil, err
	}
	o.view = v
	return v, nil
}

// choosePort finds host ports for a spec that are free on all of addrs; those it
// had before, if it may choose. It runs on a thread in the host's namespace.
func (o *op) choosePort(s *hostSpec, addrs []netip.Addr, before uint16) (uint16, error) {
	v, err := o.hostView()
	if err != nil {
		return 0, err
	}
	t, err := o.tables()
	if err != nil {
		return 0, err
	}
	free := func(proto string, addr netip.Addr, port uint16) error {
		_, taken, err := t.Ports.Conflict(maps.Binding{Proto: s.proto, Addr: addr, First: port, Count: 1})
		if err != nil {
			return err
		}
		if taken {
			return ports.ErrAllocated
		}
		if s.held {
			return nil
		}
		return v.held.Free(proto, addr, port)
	}
	if !s.chooses() {
		if err := o.unpublished(s, addrs); err != nil {
			return 0, err
		}
		return o.unheldPort(s, addrs)
	}
	if before != 0 {
		again := s.Spec
		again.HostFirst, again.HostLast = before, before+uint16(s.Count()-1)
		if port, err := ports.Pick(again, addrs, v.ephemeral, nil, free, 0); err == nil {
			return port, nil
		}
	}
	start := v.ephemeral.First + uint16(rand.IntN(v.ephemeral.Len()))
	return ports.Pick(s.Spec, addrs, v.ephemeral, v.isReserved, free, start)
}

// unpublished makes sure that none of a spec's ports leads elsewhere: one look for all of
// an address. A container that holds one although it is gone is finished.
func (o *op) unpublished(s *hostSpec, addrs []netip.Addr) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		b := maps.Binding{Proto: s.proto, Addr: addr, First: s.HostFirst, Count: s.Count()}
		port, taken, err := t.Ports.Conflict(b)
		if err == nil && taken {
			if err = o.reapHolders(b); err == nil {
				port, taken, err = t.Ports.Conflict(b)
			}
		}
		if err != nil {
			return err
		}
		if taken {
			return bindError(addr, port, ports.ErrAllocated)
		}
	}
	return nil
}

// unheldPort is the first host port of a spec that leaves no choice, if no process of the
// host's holds one of them who should not. It runs on a thread in the host's namespace.
func (o *op) unheldPort(s *hostSpec, addrs []netip.Addr) (uint16, error) {
	if s.held {
		return s.HostFirst, nil
	}
	v, err := o.hostView()
	if err != nil {
		return 0, err
	}
	port, err := ports.Pick(s.Spec, addrs, v.ephemeral, nil, v.held.Free, 0)
	if !errors.Is(err, ports.ErrInUse) {
		return port, err
	}
	// The bind guard refuses what is published, too.
	if err := o.unpublished(s, addrs); err != nil {
		return 0, err
	}
	return ports.Pick(s.Spec, addrs, v.ephemeral, nil, v.held.Free, 0)
}

// outrun looks whether a process of the host's took a port between the choice and
// the moment from which the bind guard refuses it; snap is of later.
func (d door) outrun(snap *ports.Snapshot, addrs []netip.Addr) error {
	for _, addr := range addrs {
		for i := range d.Count {
			if port := d.Host + uint16(i); snap.Bound(d.Proto.String(), addr, port) {
				return bindError(addr, port, ports.ErrInUse)
			}
		}
	}
	return nil
}

func bindError(addr netip.Addr, port uint16, cause error) error {
	//lint:ignore ST1005 Docker's words
	return fmt.Errorf("Bind for %s failed: %w", netip.AddrPortFrom(addr, port), cause)
}

func (v *hostView) isReserved(port uint16) bool { return v.reserved.Has(port) }

func (o *op) ephemeralRange() (first, last uint16, err error) {
	v, err := o.hostView()
	if err != nil {
		return 0, 0, err
	}
	return v.ephemeral.First, v.ephemeral.Last, nil
}
