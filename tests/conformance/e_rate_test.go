// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// E4, the rate: a transfer by TCP to a published port, and back, and from a container to the world, reaches at
// least 0.95 of what the kernel's plain routing between the same devices does: turn about, in one run.
//
//	X eth0 ── eth0 H bridge, veth ── eth0 srv (5201:5201)
//	X eth0 ── eth0 R eth1 ────────── eth0 far               R forwards, and translates nothing
func TestE4Rate(t *testing.T) {
	c := newCast(t)
	c.network("n1", 1, true)
	s := c.container("srv", "n1", publish(strconv.Itoa(iperfPort)+":"+strconv.Itoa(iperfPort)))
	plain := lab.New(t, lab.RouteToHost())
	far := plain.AddClient(t, "far", "198.51.100.1/24")
	lab.AddRoute(t, far.NS, "203.0.113.0/24", "198.51.100.1")
	lab.Sysctl(t, plain.Host, "ipv4/ip_forward", "1")

	for _, way := range []struct {
		name       string
		from, to   *netns.NS
		addr       string
		from2, to2 *netns.NS
		addr2      string
		reverse    bool
	}{
		{"to a published port", c.Client, s.ns, lab.HostIPv4, plain.Client, far.NS, far.Addrs[0].String(), false},
		{"from a published port", c.Client, s.ns, lab.HostIPv4, plain.Client, far.NS, far.Addrs[0].String(), true},
		{"from a container to the world", s.ns, c.Client, lab.ClientIPv4, far.NS, plain.Client, lab.ClientIPv4, false},
	} {
		t.Run(way.name, func(t *testing.T) {
			c, plain := c.in(t), &cast{Lab: plain, t: t}
			var ratios, ours, routed []float64
			for range times(5, 3) {
				a := c.oneWay(way.from, way.to, way.addr, way.reverse)
				b := plain.oneWay(way.from2, way.to2, way.addr2, way.reverse)
				ours, routed, ratios = append(ours, a), append(routed, b), append(ratios, a/b)
			}
			slices.Sort(ratios)
			ratio := middle(ours) / middle(routed)
			t.Logf("%s: %.2f of plain routing (%.2f to %.2f), %.2f Gbit/s", way.name, ratio, ratios[0], ratios[len(ratios)-1], middle(ours)/1e9)
			bar := 0.95
			if !soak() {
				bar /= 1.5 // other work may share the machine
			}
			require.GreaterOrEqual(t, ratio, bar)
		})
	}
}

// oneWay transfers by one connection and gives the rate in bits a second; reverse: from the server.
func (c *cast) oneWay(from, to *netns.NS, addr string, reverse bool) float64 {
	c.t.Helper()
	server := c.Start(c.t, to, "iperf3", "-s", "-1", "--forceflush", "-p", strconv.Itoa(iperfPort))
	require.True(c.t, server.WaitOutput("Server listening", wait), "%s", server.Stderr())
	args := []string{"-J", "-n", times64("2G", "256M"), "-p", strconv.Itoa(iperfPort), "-c", addr}
	if reverse {
		args = append(args, "-R")
	}
	out, err := c.Run(from, "iperf3", args...)
	require.NoError(c.t, err, out)
	require.NoError(c.t, server.Wait(wait))
	var result struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	require.NoError(c.t, json.Unmarshal([]byte(out), &result))
	require.Positive(c.t, result.End.Received.Rate)
	return result.End.Received.Rate
}

func middle(list []float64) float64 {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}
