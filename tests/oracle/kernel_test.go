// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
)

// kernel is the real programs with tables of their own, in a namespace of the test's own.
type kernel struct {
	t        testing.TB
	objs     loader.BPFObjects
	witness  *ebpf.Memory
	programs map[Hook]*ebpf.Program
	macs     map[uint32]MAC // of the devices
	devices  map[string]uint32
	out      []byte
	ctxOut   [192]byte
	filled   map[*ebpf.Map]map[string]bool // keys of the control plane's tables
	ns       int                           // the namespace
}

func must(_ int, err error) {
	if err != nil {
		panic(err)
	}
}

// newKernel loads the programs. The test's goroutine stays on its thread.
func newKernel(t testing.TB) *kernel {
	t.Helper()
	require.Zero(t, unix.Geteuid(), "needs root")
	require.NoError(t, rlimit.RemoveMemlock())
	runtime.LockOSThread() // and never unlocked: the thread dies with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(ns) })
	oneCPU(t)
	spec, err := loader.LoadBPF()
	require.NoError(t, err)
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	interpose(spec)
	// Looked through often, and never full here.
	for _, name := range []string{"flows4", "flows6", "half4", "half6"} {
		spec.Maps[name].MaxEntries = 8192
	}
	// Looked at after each packet.
	spec.Maps["drops"].Type, spec.Maps["drops"].MaxEntries = ebpf.Hash, 64
	k := &kernel{t: t, ns: ns, macs: map[uint32]MAC{}, devices: map[string]uint32{}, out: make([]byte, 1<<14), filled: map[*ebpf.Map]map[string]bool{}}
	c, err := ebpf.NewCollection(spec)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	k.witness, err = c.Maps["witness"].Memory()
	require.NoError(t, err)
	require.NoError(t, c.Assign(&k.objs))
	k.programs = map[Hook]*ebpf.Program{FromUplink: k.objs.FromUplink, FromTunnel: k.objs.FromTunnel, ToUplink: k.objs.ToUplink, ToTunnel: k.objs.ToTunnel,
		FromEndpoint: k.objs.FromEndpoint, ToEndpoint: k.objs.ToEndpoint, ToBridge: k.objs.ToBridge, FromLo: k.objs.FromLo, ToParent: k.objs.ToParent}
	k.macs[1] = MAC{}
	k.devices["lo"] = 1
	return k
}

// oneCPU keeps the thread on one: what is counted per CPU is counted there.
func oneCPU(t testing.TB) {
	t.Helper()
	var cpus unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &cpus))
	for n := range 1024 {
		if cpus.IsSet(n) {
			cpus.Zero()
			cpus.Set(n)
			break
		}
	}
	require.NoError(t, unix.SchedSetaffinity(0, &cpus))
}

// device makes a veth, if there is none, and returns the ifindex of the end that stays.
func (k *kernel) device(name string, mac MAC) uint32 {
	k.t.Helper()
	if index, ok := k.devices[name]; ok {
		return index
	}
	la := netlink.NewLinkAttrs()
	la.Name, la.HardwareAddr = name, mac[:]
	require.NoError(k.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: name + "x"}))
	l, err := netlink.LinkByName(name)
	require.NoError(k.t, err)
	index := uint32(l.Attrs().Index)
	k.macs[index], k.devices[name] = mac, index
	return index
}

func native(a netip.Addr) (out loader.BPFAddr) {
	if !a.IsValid() {
		return out
	}
	b := a.As16()
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[i*4:])
	}
	return out
}

func addrOf(a loader.BPFAddr) netip.Addr {
	var b [16]byte
	for i, v := range a.W {
		binary.NativeEndian.PutUint32(b[i*4:], v)
	}
	return netip.AddrFrom16(b).Unmap()
}

func net16(v uint16) uint16 { return v<<8 | v>>8 }

func prefixOf(p netip.Prefix) loader.BPFPrefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return loader.BPFPrefix{Prefixlen: uint32(bits), Addr: native(p.Addr())}
}

func raw[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }

// at sets the clock, and what is compared with it.
func (k *kernel) at(tick, epoch uint32) {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], uint64(tick)<<30)
	must(k.witness.WriteAt(b[:], witnessTime))
	require.NoError(k.t, k.objs.Clocks.Put(uint32(0), loader.BPFClock{Epoch: epoch, Tick: tick}))
}

// dice makes the programs' random numbers begin anew.
func (k *kernel) dice(seed uint32) {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], seed)
	must(k.witness.WriteAt(b[:], witnessDice))
}

// errRefused: a test run does not take such a frame.
var errRefused = errors.New("not taken by a test run")

// run gives a packet to its program.
func (k *kernel) run(a Arrival, complete bool) (out Answer, err error) {
	var ctx [192]byte
	forwarded := uint32(0)
	if a.Forwarded {
		forwarded = 1
	}
	segments := uint32(0)
	if a.Segment > 0 {
		segments = 2
	}
	for offset, v := range map[int]uint32{8: a.Mark, 36: forwarded, 40: a.Ifindex, 164: segments, 176: uint32(a.Segment)} {
		binary.NativeEndian.PutUint32(ctx[offset:], v)
	}
	must(k.witness.WriteAt(make([]byte, 4), witnessCount))
	opts := ebpf.RunOptions{Data: a.Frame, DataOut: k.out, Context: ctx[:], ContextOut: k.ctxOut[:]}
	if complete {
		opts.Flags = 1 << 2 // BPF_F_TEST_SKB_CHECKSUM_COMPLETE
	}
	ret, err := k.programs[a.Hook].Run(&opts)
	if errors.Is(err, unix.EINVAL) && len(a.Frame) < 54 {
		return out, errRefused
	}
	if err != nil {
		return out, err
	}
	out = Answer{Verdict: Verdict(int32(ret)), Out: opts.DataOut, Mark: binary.NativeEndian.Uint32(k.ctxOut[8:]), Sent: k.calls()}
	return out, nil
}

// reasons reads the drops, and forgets them.
func (k *kernel) reasons(ifindex uint32) (out []loader.BPFReason) {
	keys, values := make([]loader.BPFDropKey, 64), make([]uint64, 64)
	var cursor ebpf.MapBatchCursor
	n, err := k.objs.Drops.BatchLookupAndDelete(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		require.NoError(k.t, err)
	}
	for i, key := range keys[:n] {
		for range values[i] {
			reason := loader.BPFReason(key.Reason)
			if key.Ifindex != ifindex { // counted by the hook's device, or by the packet before
				reason += 1000
			}
			out = append(out, reason)
		}
	}
	slices.Sort(out)
	return out
}

func (t Tuple) native() loader.BPFTuple {
	n := loader.BPFTuple{Saddr: native(t.Src), Daddr: native(t.Dst), Sport: net16(t.SPort), Dport: net16(t.DPort), Zone: t.Zone, Proto: t.Proto, Family: 4}
	if t.six() {
		n.Family = 6
	}
	return n
}

func tupleOf(n loader.BPFTuple) Tuple {
	return Tuple{addrOf(n.Saddr), addrOf(n.Daddr), net16(n.Sport), net16(n.Dport), n.Zone, n.Proto}
}

// flow looks one direction up in a table of the programs.
func (k *kernel) flow(t Tuple, established bool) *Flow {
	var f loader.BPFFlow
	m := map[bool]map[bool]*ebpf.Map{false: {true: k.objs.Flows4, false: k.objs.Half4}, true: {true: k.objs.Flows6, false: k.objs.Half6}}[t.six()][established]
	err := m.Lookup(loader.ObjectSeed.Digest(t.native()), &f)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	require.NoError(k.t, err)
	require.Equal(k.t, t.native(), f.Tuple)
	return flowOf(&f)
}

// flowOf says in the model's words what a flow of the programs is.
func flowOf(f *loader.BPFFlow) *Flow {
	ref := func(r loader.BPFRef) Ref { return Ref{r.Id, r.Gen} }
	g := &Flow{Seen: f.Seen, Timeout: f.Timeout, MTU: f.Mtu, Verdict: loader.BPFVerdict(f.Verdict), State: loader.BPFFlowState(f.State),
		Kind: loader.BPFFlowKind(f.Kind), Flags: loader.BPFFlowFlags(f.Flags), Ifindex: f.Ifindex, Src: addrOf(f.Saddr), Dst: addrOf(f.Daddr),
		SPort: net16(f.Sport), DPort: net16(f.Dport), Sender: f.Sender, TwinZone: f.ZoneTwin, Packets: f.Packets, Bytes: f.Bytes,
		From: ref(f.Src), To: ref(f.Dst), Rule: ref(f.Rule), Owner: f.Owner, Epoch: f.Epoch}
	if f.Flags&uint8(loader.BPFFlowFlagsFLOW_LISTED) == 0 {
		g.Expect = f.Slot // one word
	}
	if f.Nexthop != (loader.BPFAddr{}) {
		g.Next = addrOf(f.Nexthop)
	}
	copy(g.DstMAC[:], f.Macs[:6])
	copy(g.SrcMAC[:], f.Macs[6:])
	return g
}

// flows reads all of them.
func (k *kernel) flows() (established, half table) {
	established, half = table{}, table{}
	for m, to := range map[*ebpf.Map]table{k.objs.Flows4: established, k.objs.Half4: half, k.objs.Flows6: established, k.objs.Half6: half} {
		var key uint64
		var f loader.BPFFlow
		it := m.Iterate()
		for it.Next(&key, &f) {
			to[tupleOf(f.Tuple)] = flowOf(&f)
		}
		require.NoError(k.t, it.Err())
	}
	return established, half
}

// forget empties what the programs remember. The next packets find a host that has just begun.
func (k *kernel) forget() {
	o := &k.objs
	for _, m := range []*ebpf.Map{o.Flows4, o.Flows6, o.Half4, o.Half6, o.Mappings, o.MappingOwners, o.Searches, o.Datagrams, o.ParkedFragments} {
		key := make([]byte, m.KeySize())
		for m.NextKey(nil, key) == nil {
			if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				require.NoError(k.t, err)
			}
		}
	}
	require.NoError(k.t, o.Slots.Put(uint32(0), loader.BPFSlot{}))
	for o.FreeSlots.LookupAndDelete(nil, new(uint32)) == nil {
	}
	require.NoError(k.t, o.Sweepers.Put(uint32(0), loader.BPFSweeper{}))
	require.NoError(k.t, o.PortCursor.Put(uint32(0), [2]uint32{0, secret}))
}
