// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/bpfnet/bpfnet/loader"
	"golang.org/x/sys/unix"
)

// Flows are what the programs decided: two entries a flow, one a direction.
// Half-open and established ones live in maps of their own, a pair a family.
type Flows struct {
	src      Source
	flows4   flowTable
	half4    flowTable
	flows6   flowTable
	half6    flowTable
	sweepers table[uint32, loader.BPFSweeper]
	seed     func() (loader.Seed, error) // read once
}

// The keys are digests of tuples.
type flowTable = table[uint64, loader.BPFFlow]

func newFlows(src Source) *Flows {
	return &Flows{
		src:      src,
		flows4:   flowTable{src, loader.BPFMapFlows4},
		half4:    flowTable{src, loader.BPFMapHalf4},
		flows6:   flowTable{src, loader.BPFMapFlows6},
		half6:    flowTable{src, loader.BPFMapHalf6},
		sweepers: table[uint32, loader.BPFSweeper]{src, loader.BPFMapSweepers},
		seed: sync.OnceValues(func() (s loader.Seed, err error) {
			m, err := src.Map(loader.BPFMapSeeds)
			if err != nil {
				return s, err
			}
			return loader.SeedOf(m)
		}),
	}
}

// of gives the tables of k's family.
func (t *Flows) of(k FlowKey) (established, halfOpen flowTable) {
	if k.is4() {
		return t.flows4, t.half4
	}
	return t.flows6, t.half6
}

func (t *Flows) digest(k FlowKey) (uint64, error) {
	seed, err := t.seed()
	return seed.Digest(k.wire()), err
}

// Zones other than these are the ifindex of an endpoint's device, or of a bridge.
const (
	ZoneWorld = uint32(loader.BPFZoneZONE_WORLD)
	ZoneLo    = uint32(loader.BPFZoneZONE_LO)
)

// FlowKey is one direction of a flow, as its packets arrive. Of an ICMP query
// the identifier is Src's port, of its reply Dst's.
type FlowKey struct {
	Src, Dst netip.AddrPort // of one family
	Zone     uint32         // where they arrive
	Proto    Proto
}

// Ref is an object and its generation when the flow was decided; id 0: none.
type Ref struct{ ID, Gen uint32 }

// Flow is an entry.
type Flow struct {
	Key         FlowKey
	Established bool // in the table of established flows
	Kind        FlowKind
	State       FlowState
	Verdict     Verdict
	Flags       uint8 // loader.BPFFlowFlags
	Packets     uint64
	Bytes       uint64
	Idle        time.Duration // since the last packet, to about a second
	Timeout     time.Duration
	Ifindex     int // of the way out
	MTU         int
	NewSrc      netip.AddrPort // after translation
	NewDst      netip.AddrPort
	NextHop     netip.Addr       // zero: none
	DstMAC      net.HardwareAddr // of the way out, where the verdict needs them
	SrcMAC      net.HardwareAddr
	Src, Dst    Ref    // endpoints
	Rule        Ref    // what allowed it
	ZoneTwin    uint32 // zone in which the other direction arrives
	Owner       uint32 // endpoint whose quota it counts in
	Slot        uint32 // of the sweep's list
}

// Reply says that the entry is of the responder's direction.
func (f Flow) Reply() bool { return f.Flags&uint8(loader.BPFFlowFlagsFLOW_REPLY) != 0 }

// Twin is the key of the other direction.
func (f Flow) Twin() FlowKey {
	return FlowKey{Src: f.NewDst, Dst: f.NewSrc, Zone: f.ZoneTwin, Proto: f.Key.Proto}
}

// Expires is when the flow ends if nobody speaks any more; not below 0.
func (f Flow) Expires() time.Duration { return max(0, f.Timeout-f.Idle) }

// Each calls f with every entry of all four tables, in no order. Entries that
// come and go meanwhile may be missed.
func (t *Flows) Each(f func(Flow) error) error {
	now, err := nowTicks()
	if err != nil {
		return err
	}
	for table, established := range map[flowTable]bool{t.flows4: true, t.half4: false, t.flows6: true, t.half6: false} {
		err := table.each(func(_ uint64, w loader.BPFFlow) error { return f(fromFlow(w, established, now)) })
		if err != nil {
			return err
		}
	}
	return nil
}

// Get finds an entry in the table of established flows, else among the half-open.
func (t *Flows) Get(k FlowKey) (f Flow, ok bool, err error) {
	now, err := nowTicks()
	if err != nil {
		return f, false, err
	}
	digest, err := t.digest(k)
	if err != nil {
		return f, false, err
	}
	tuple := k.wire()
	established, halfOpen := t.of(k)
	for _, table := range []flowTable{established, halfOpen} {
		w, ok, err := table.get(digest)
		if err != nil {
			return f, false, err
		}
		if ok && w.Tuple == tuple {
			return fromFlow(w, table == established, now), true, nil
		}
	}
	return f, false, nil
}

// Delete removes one direction, wherever it is. Missing is fine. To end a flow,
// delete its key and its Twin.
func (t *Flows) Delete(k FlowKey) error {
	digest, err := t.digest(k)
	if err != nil {
		return err
	}
	established, halfOpen := t.of(k)
	return errors.Join(established.del(digest), halfOpen.del(digest))
}

// Sweep is the state of the sweep of expired flows.
type Sweep struct {
	Used4 int // established flows on its list, by family
	Used6 int
	Armed bool          // its timer runs
	Since time.Duration // since its last tick, to about a second
}

func (t *Flows) Sweep() (Sweep, error) {
	now, err := nowTicks()
	if err != nil {
		return Sweep{}, err
	}
	w, _, err := t.sweepers.get(0)
	if err != nil {
		return Sweep{}, err
	}
	// An upgrade may count a flow out twice.
	used := func(n uint32) int { return int(max(0, int32(n))) }
	return Sweep{Used4: used(w.Used4), Used6: used(w.Used6), Armed: w.Armed != 0, Since: since(now, uint32(w.Last))}, nil
}

func fromFlow(w loader.BPFFlow, established bool, now uint32) Flow {
	return Flow{
		Key: fromTuple(w.Tuple), Established: established,
		Kind: FlowKind(w.Kind), State: FlowState(w.State), Verdict: Verdict(w.Verdict), Flags: w.Flags,
		Packets: w.Packets, Bytes: w.Bytes,
		Idle: since(now, w.Seen), Timeout: time.Duration(w.Timeout) * tick,
		Ifindex: int(w.Ifindex), MTU: int(w.Mtu),
		NewSrc:  netip.AddrPortFrom(fromAddr(w.Saddr), fromBE16(w.Sport)),
		NewDst:  netip.AddrPortFrom(fromAddr(w.Daddr), fromBE16(w.Dport)),
		NextHop: fromAddr(w.Nexthop),
		DstMAC:  fromMAC([6]uint8(w.Macs[:6])), SrcMAC: fromMAC([6]uint8(w.Macs[6:])),
		Src: Ref{w.Src.Id, w.Src.Gen}, Dst: Ref{w.Dst.Id, w.Dst.Gen}, Rule: Ref{w.Rule.Id, w.Rule.Gen},
		ZoneTwin: w.ZoneTwin, Owner: w.Owner, Slot: w.Slot,
	}
}

func (k FlowKey) is4() bool { return k.Src.Addr().Is4() && k.Dst.Addr().Is4() }

func (k FlowKey) wire() loader.BPFTuple {
	t := loader.BPFTuple{
		Saddr: toAddr(k.Src.Addr()), Daddr: toAddr(k.Dst.Addr()),
		Sport: toBE16(k.Src.Port()), Dport: toBE16(k.Dst.Port()), Zone: k.Zone, Proto: uint8(k.Proto), Family: 6,
	}
	if k.is4() {
		t.Family = 4
	}
	return t
}

func fromTuple(w loader.BPFTuple) FlowKey {
	src, dst := rawAddr(w.Saddr), rawAddr(w.Daddr)
	if w.Family == 4 {
		src, dst = src.Unmap(), dst.Unmap()
	}
	return FlowKey{
		Src: netip.AddrPortFrom(src, fromBE16(w.Sport)), Dst: netip.AddrPortFrom(dst, fromBE16(w.Dport)),
		Zone: w.Zone, Proto: Proto(w.Proto),
	}
}

// nowTicks is the programs' clock.
func nowTicks() (uint32, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0, err
	}
	return uint32(ts.Nano() >> 30), nil
}

// since is not below 0: the programs' tick may be ahead of ours.
func since(now, then uint32) time.Duration {
	return time.Duration(max(0, int32(now-then))) * tick
}
