// SPDX-License-Identifier: Apache-2.0

// Command cost compares what a packet of an established flow costs with the
// programs of this tree and with those of an older commit: both objects are loaded,
// their tables filled with one flow each, and run turn about by BPF_PROG_TEST_RUN.
//
//	go run ./tests/cost [-rounds N] [-repeat N] REVISION
//
// It prints the median ns a packet of each, and the median of the rounds' ratios with
// the least and the greatest. The flow translates into its own tuple, so that
// the packet finds it again in each of a run's turns. Nothing is attached.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

const object = "loader/bpf_bpfel.o"

func main() {
	rounds := flag.Int("rounds", 21, "how often each is measured")
	repeat := flag.Uint("repeat", 200_000, "packets a round")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "cost: name the commit to compare with")
		os.Exit(2)
	}
	if err := compare(flag.Arg(0), *rounds, uint32(*repeat)); err != nil {
		fmt.Fprintln(os.Stderr, "cost:", err)
		os.Exit(1)
	}
}

func compare(revision string, rounds int, repeat uint32) error {
	old, err := exec.Command("git", "show", revision+":"+object).Output()
	if err != nil {
		return fmt.Errorf("%s of %s: %w", object, revision, err)
	}
	now, err := os.ReadFile(object)
	if err != nil {
		return err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	// A namespace of its own, and one CPU: the thread ends with the process.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	var one unix.CPUSet
	one.Set(0)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	var builds [2]*build
	for i, raw := range [][]byte{old, now} {
		if builds[i], err = load(raw); err != nil {
			return fmt.Errorf("%s: %w", []string{revision, "this tree"}[i], err)
		}
		defer builds[i].Close()
	}
	fmt.Printf("%-34s %8s %8s   ratio (least, greatest)\n", "", revision, "here")
	for _, f := range flows {
		var took [2][]float64
		var ratios []float64
		for r := range rounds {
			var ns [2]float64
			for _, i := range [][]int{{0, 1}, {1, 0}}[r%2] {
				if ns[i], err = builds[i].run(f, repeat); err != nil {
					return fmt.Errorf("%s: %w", f.name, err)
				}
				took[i] = append(took[i], ns[i])
			}
			ratios = append(ratios, ns[1]/ns[0])
		}
		slices.Sort(ratios)
		fmt.Printf("%-34s %5.1f ns %5.1f ns   %.3f (%.3f, %.3f)\n", f.name, median(took[0]), median(took[1]),
			median(ratios), ratios[0], ratios[len(ratios)-1])
	}
	return nil
}

func median(list []float64) float64 {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

// flow is what is measured: one packet of one program.
type flow struct {
	name    string
	program string
	table   string // of established flows
	proto   uint8
	zone    uint32 // struct key4.zone
	packet  lab.Packet
	payload int
}

const device = 1 // lo: what a test run takes if it is told nothing else

var (
	here  = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	there = net.HardwareAddr{0, 0, 0, 0, 0, 0} // of lo

	four = lab.Packet{SrcMAC: here, DstMAC: there, Src: netip.MustParseAddr("203.0.113.2"), Dst: netip.MustParseAddr("203.0.113.1")}
	six  = lab.Packet{SrcMAC: here, DstMAC: there, Src: netip.MustParseAddr("2001:db8::2"), Dst: netip.MustParseAddr("2001:db8::1")}

	flows = []flow{
		{"from_uplink, TCP, IPv4", "from_uplink", "flows4", unix.IPPROTO_TCP, 0, four, 64},
		{"from_uplink, UDP, IPv4", "from_uplink", "flows4", unix.IPPROTO_UDP, 0, four, 64},
		{"from_uplink, UDP of 4 bytes, IPv4", "from_uplink", "flows4", unix.IPPROTO_UDP, 0, four, 4},
		{"from_uplink, TCP, IPv6", "from_uplink", "flows6", unix.IPPROTO_TCP, 0, six, 64},
		{"from_endpoint, TCP, IPv4", "from_endpoint", "flows4", unix.IPPROTO_TCP, device, four, 64},
		{"from_endpoint, UDP, IPv4", "from_endpoint", "flows4", unix.IPPROTO_UDP, device, four, 64},
		{"from_endpoint, TCP, IPv6", "from_endpoint", "flows6", unix.IPPROTO_TCP, device, six, 64},
	}
)

const sport, dport = 40000, 8080

func (f flow) frame() []byte {
	if f.proto == unix.IPPROTO_TCP {
		return f.packet.TCP(sport, dport, "A", 1, 1, make([]byte, f.payload))
	}
	return f.packet.UDP(sport, dport, make([]byte, f.payload))
}

// The flow's entry, as the build lays it out. Where the key is a number it is the digest of
// the tuple that begins the value.
func (f flow) entry(table *ebpf.MapSpec) (key, value []byte, err error) {
	v := f.value()
	if _, ok := btf.As[*btf.Struct](table.Key); ok {
		if key, err = f.key().bytes(table.Key); err != nil {
			return nil, nil, err
		}
	} else {
		t := f.tuple()
		key = binary.NativeEndian.AppendUint64(nil, loader.ObjectSeed.Digest(t))
		v["tuple"] = (*[unsafe.Sizeof(t)]byte)(unsafe.Pointer(&t))[:]
	}
	value, err = v.bytes(table.Value)
	return key, value, err
}

func (f flow) tuple() loader.BPFTuple {
	addr := func(a netip.Addr) (w loader.BPFAddr) {
		for i, b := range a.As16() {
			(*[16]byte)(unsafe.Pointer(&w.W))[i] = b
		}
		return w
	}
	t := loader.BPFTuple{Saddr: addr(f.packet.Src), Daddr: addr(f.packet.Dst), Sport: binary.NativeEndian.Uint16(be16(sport)),
		Dport: binary.NativeEndian.Uint16(be16(dport)), Zone: f.zone, Proto: f.proto, Family: 6}
	if f.packet.Src.Is4() {
		t.Family = 4
	}
	return t
}

// fields of the flow's entry, by their names in bpf/lib/types.h.
func (f flow) key() fields {
	k := fields{"sport": be16(sport), "dport": be16(dport), "zone": native32(f.zone), "proto": {f.proto}}
	k["saddr"], k["daddr"] = f.packet.Src.AsSlice(), f.packet.Dst.AsSlice()
	return k
}

func (f flow) value() fields {
	saddr, daddr := f.packet.Src.As16(), f.packet.Dst.As16()
	return fields{
		"timeout": {0xff, 0x7f}, "mtu": {0xdc, 5}, "verdict": {1}, "state": {2}, "ifindex": native32(device),
		"sport": be16(sport), "dport": be16(dport), "macs": append(append([]byte{}, there...), here...), "sender": here,
		"saddr": saddr[:], "daddr": daddr[:],
	}
}

func be16(v uint16) []byte     { return binary.BigEndian.AppendUint16(nil, v) }
func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// fields are bytes by the name of the struct's member that they are for.
type fields map[string][]byte

// bytes lays them out as the build's own debug information says.
func (f fields) bytes(t btf.Type) ([]byte, error) {
	s, ok := btf.As[*btf.Struct](t)
	if !ok {
		return nil, fmt.Errorf("type %s: no struct", t)
	}
	raw, done := make([]byte, s.Size), 0
	for _, m := range s.Members {
		if v, ok := f[m.Name]; ok {
			copy(raw[m.Offset.Bytes():], v)
			done++
		}
	}
	if done != len(f) {
		return nil, fmt.Errorf("struct %s: lacks some of %d members", s.Name, len(f))
	}
	return raw, nil
}

// build is one object, loaded.
type build struct {
	spec *ebpf.CollectionSpec
	*ebpf.Collection
}

func load(raw []byte) (*build, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	b := &build{spec, c}
	for _, f := range flows {
		key, value, err := f.entry(spec.Maps[f.table])
		if err != nil {
			return nil, err
		}
		if err := c.Maps[f.table].Put(key, value); err != nil {
			return nil, err
		}
	}
	return b, nil
}

var errSlow = errors.New("the packet did not take the fast path")

// run gives the ns that one packet takes.
func (b *build) run(f flow, repeat uint32) (float64, error) {
	var took time.Duration
	var packets [2]uint64
	for i := range packets {
		if i == 1 {
			ret, each, err := b.Programs[f.program].Benchmark(f.frame(), int(repeat), nil)
			if err != nil {
				return 0, err
			}
			if ret != 7 {
				return 0, fmt.Errorf("%w: verdict %d", errSlow, int32(ret))
			}
			took = each
		}
		n, err := b.counted(f)
		if err != nil {
			return 0, err
		}
		packets[i] = n
	}
	// A run that a signal cuts short is made again.
	if packets[1]-packets[0] < uint64(repeat) {
		return 0, fmt.Errorf("%w: %d of %d", errSlow, packets[1]-packets[0], repeat)
	}
	return float64(took.Nanoseconds()), nil
}

// counted is how many packets the flow has seen.
func (b *build) counted(f flow) (uint64, error) {
	key, _, err := f.entry(b.spec.Maps[f.table])
	if err != nil {
		return 0, err
	}
	value, err := b.Maps[f.table].LookupBytes(key)
	if err != nil {
		return 0, err
	}
	s, _ := btf.As[*btf.Struct](b.spec.Maps[f.table].Value)
	for _, m := range s.Members {
		if m.Name == "packets" {
			return binary.NativeEndian.Uint64(value[m.Offset.Bytes():]), nil
		}
	}
	return 0, errors.New("struct flow: no packets")
}
