// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"fmt"
	"net/netip"
)

// Why a host port cannot be had, in Docker's and the kernel's words.
var (
	ErrAllocated    = errors.New("port is already allocated")       // another container's
	ErrInUse        = errors.New("address already in use")          // a process of the host's
	ErrNotAvailable = errors.New("cannot assign requested address") // the host has no such address
	ErrExhausted    = errors.New("all ports are allocated")         // none left to choose
)

// Pick chooses the host ports of s: the first of s.Count() consecutive ones, or
// the only one. Each must be free on all of addrs (0.0.0.0 and ::, or one address)
// under the same number. free returns nil for a port that is; ErrAllocated and
// ErrInUse let the search go on where there is a choice, any other error ends it.
//
// Ports given: exactly those, else free's error in Docker's words, "Bind for
// 0.0.0.0:8080 failed: port is already allocated". A host range for one container
// port: its first free one. None given: the first free run in ephemeral without
// ports that are reserved, looked for from start on and then from the range's
// beginning. No choice left: ErrExhausted.
func Pick(s Spec, addrs []netip.Addr, ephemeral Range, reserved func(uint16) bool, free func(proto string, addr netip.Addr, port uint16) error, start uint16) (first uint16, err error) {
	if len(addrs) == 0 || s.First == 0 || s.Last < s.First {
		return 0, errors.New("nothing to bind")
	}
	p := picker{s.Proto, addrs, free}
	switch {
	case s.HostFirst == 0:
		return p.any(ephemeral, reserved, s.Count(), start)
	case s.Count() == 1 && s.HostLast != s.HostFirst:
		return p.oneOf(Range{s.HostFirst, s.HostLast})
	}
	for i := range s.Count() {
		if err := p.try(uint16(int(s.HostFirst) + i)); err != nil {
			return 0, err
		}
	}
	return s.HostFirst, nil
}

type picker struct {
	proto string
	addrs []netip.Addr
	free  func(proto string, addr netip.Addr, port uint16) error
}

func (p *picker) try(port uint16) error {
	for _, a := range p.addrs {
		if err := p.free(p.proto, a, port); err != nil {
			//lint:ignore ST1005 Docker's words
			return fmt.Errorf("Bind for %s failed: %w", netip.AddrPortFrom(a, port), err)
		}
	}
	return nil
}

func taken(err error) bool {
	return errors.Is(err, ErrAllocated) || errors.Is(err, ErrInUse)
}

func (p *picker) oneOf(r Range) (uint16, error) {
	for port := int(r.First); port <= int(r.Last); port++ {
		if err := p.try(uint16(port)); err == nil {
			return uint16(port), nil
		} else if !taken(err) {
			return 0, err
		}
	}
	return 0, ErrExhausted
}

func (p *picker) any(r Range, reserved func(uint16) bool, n int, start uint16) (uint16, error) {
	if r.First == 0 || n > r.Len() {
		return 0, ErrExhausted
	}
	begin := int(r.First)
	if r.Contains(start) {
		begin = int(start)
	}
	first, err := p.run(begin, int(r.Last), n, reserved)
	if errors.Is(err, ErrExhausted) {
		// Runs that begin below begin may reach beyond it.
		return p.run(int(r.First), min(begin+n-2, int(r.Last)), n, reserved)
	}
	return first, err
}

// run finds n consecutive ports within from..to.
func (p *picker) run(from, to, n int, reserved func(uint16) bool) (uint16, error) {
	length := 0
	for port := from; port <= to; port++ {
		if reserved != nil && reserved(uint16(port)) {
			length = 0
			continue
		}
		if err := p.try(uint16(port)); err == nil {
			length++
		} else if taken(err) {
			length = 0
		} else {
			return 0, err
		}
		if length == n {
			return uint16(port - n + 1), nil
		}
	}
	return 0, ErrExhausted
}
