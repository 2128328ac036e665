// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// Somebody has taken the slow path away: what may be a container's is dropped, and counted; what may
// be the host's passes. What is established goes on.
func TestNoSlowPath(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		in, ask := opening(f.client, f.host, udp), opening(f.p, f.s.at(99), udp)
		reply := ask.answer()
		for range 3 {
			w.say(epP, ask, w.delivered(net1, ask))
			w.say(epS, reply, w.delivered(net1, reply))
		}
		other := ask.like(func(p *packet) { p.from.port++ })
		w.check(w.objs.FromUplink, w.uplink, in.frame(), sent(w.inside(in, f.s).frame()))

		require.NoError(t, w.objs.SlowPaths.Delete(uint32(0)))
		defer func() { require.NoError(t, w.objs.SlowPaths.Put(uint32(0), w.objs.SlowPath)) }()
		gone := refused(loader.BPFReasonREASON_ERROR)
		w.say(epP, ask, w.delivered(net1, ask))
		w.utter(epP, other, gone)
		w.check(w.objs.ToBridge, w.bridges[net1], opening(f.gw, f.s, udp).frame(), gone)
		w.check(w.objs.ToUplink, w.uplink, opening(f.p, f.client, udp).frame(), gone, forwardedBy(w.containers[epP].ifindex))
		w.check(w.objs.ToUplink, w.uplink, opening(f.host, f.client, udp).frame(), passed())
		fresh := in
		fresh.from.port++
		w.check(w.objs.FromUplink, w.uplink, fresh.frame(), passed())
		w.check(w.objs.FromLo, 1, opening(f.host, f.host, udp).frame(), passed())
	})
}
