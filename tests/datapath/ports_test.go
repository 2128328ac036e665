// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// The last free port of 60,000 is found, wherever it is; the next flow to that server is
// refused, one to another is not.
func TestLastPort(t *testing.T) {
	const first, ports, free = 1024, 60_000, 31_000
	w := newWorld(t)
	w.configure(func(c *loader.BPFConfig) {
		c.Pool[0].First, c.Pool[0].Last, c.PoolSize, c.PoolCount = first, first+ports-1, ports, 1
	})
	f := w.family(false)
	server := f.client.at(443).via(f.gw)
	keys, flows := make([]uint64, 0, ports), make([]loader.BPFFlow, 0, ports)
	for i := range uint16(ports) {
		if first+i != free {
			f := loader.BPFFlow{Flags: uint8(loader.BPFFlowFlagsFLOW_LISTED), Timeout: 65000, Tuple: loader.BPFTuple{
				Saddr: addr(server.addr), Daddr: addr(f.host.addr), Sport: be16(443), Dport: be16(first + i), Proto: tcp, Family: 4}}
			keys, flows = append(keys, loader.ObjectSeed.Digest(f.Tuple)), append(flows, f)
		}
	}
	_, err := w.objs.Flows4.BatchUpdate(keys, flows, nil)
	require.NoError(t, err)
	r := w.say(epS, opening(w.end(epS, false, 50000), server, tcp), handed().any())
	require.EqualValues(t, free, sourcePort(r.raw))
	w.say(epS, opening(w.end(epS, false, 50001), server, tcp), refused(loader.BPFReasonREASON_NO_PORT))
	w.say(epS, opening(w.end(epS, false, 50002), server, tcp), refused(loader.BPFReasonREASON_NO_PORT))
	w.say(epS, opening(w.end(epS, false, 50003), server.at(444), tcp), handed().any())
	w.say(epS, opening(w.end(epS, false, 50004), server, udp), handed().any())
}
