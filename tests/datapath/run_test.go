// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// skb is the part of struct __sk_buff that PROG_TEST_RUN takes and these tests
// set (net/bpf/test_run.c, convert___skb_to_skb).
type skb struct {
	mark, ingressIfindex, ifindex uint32
	gsoSegs, gsoSize              uint32
}

// bytes lays the fields out as struct __sk_buff has them (linux/bpf.h).
func (s *skb) bytes() (b [192]byte) {
	for offset, v := range map[int]uint32{8: s.mark, 36: s.ingressIfindex, 40: s.ifindex, 164: s.gsoSegs, 176: s.gsoSize} {
		binary.NativeEndian.PutUint32(b[offset:], v)
	}
	return b
}

// result is what a program made of a packet.
type result struct {
	verdict int
	out     gopacket.Packet
	raw     []byte
}

// run gives the frame to a program as if it were on device ifindex.
func (w *world) run(p *ebpf.Program, ifindex int, frame []byte, edit ...func(*skb)) result {
	w.t.Helper()
	ctx := &skb{ifindex: uint32(ifindex)}
	for _, e := range edit {
		e(ctx)
	}
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: ctx.bytes()}
	ret, err := p.Run(&opts)
	require.NoError(w.t, err)
	return result{verdict: int(int32(ret)), raw: opts.DataOut, out: gopacket.NewPacket(opts.DataOut, layers.LayerTypeEthernet, gopacket.Default)}
}

// dropped returns how many packets were dropped for a reason since the world began.
func (w *world) dropped(reason loader.BPFReason) (n uint64) {
	w.t.Helper()
	var key loader.BPFDropKey
	var values []uint64
	it := w.objs.Drops.Iterate()
	for it.Next(&key, &values) {
		if key.Reason == uint32(reason) {
			for _, v := range values {
				n += v
			}
		}
	}
	require.NoError(w.t, it.Err())
	return n
}

// reasons lists the drops so far, for messages.
func (w *world) reasons() (out []string) {
	var key loader.BPFDropKey
	var values []uint64
	for it := w.objs.Drops.Iterate(); it.Next(&key, &values); {
		out = append(out, fmt.Sprintf("reason %d on %d: %v", key.Reason, key.Ifindex, values))
	}
	return out
}
