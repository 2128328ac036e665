// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// E4, the rate: a transfer by TCP to a published port, and back, and from a container to the world, and back,
// reaches at least 0.95 of what the kernel's plain routing between the same devices does: turn about, in one
// run. With the long counts so it is by IPv6, too, and while the devices neither segment nor compute checksums.
//
//	X eth0 ── eth0 H bridge, veth ── eth0 srv (5201:5201)
//	X eth0 ── eth0 R eth1 ────────── eth0 far               R forwards, and translates nothing
func TestE4Rate(t *testing.T) {
	c := newCast(t)
	c.network("n1", 1, true)
	s := c.container("srv", "n1", publish(strconv.Itoa(iperfPort)+":"+strconv.Itoa(iperfPort)))
	plain := &cast{Lab: lab.New(t, lab.RouteToHost()), t: t}
	far := plain.AddClient(t, "far", "198.51.100.1/24", "2001:db8:198::1/64")
	lab.AddRoute(t, far.NS, "203.0.113.0/24", "198.51.100.1")
	lab.AddRoute(t, far.NS, "2001:db8:113::/64", "2001:db8:198::1")
	lab.Sysctl(t, plain.Host, "ipv4/ip_forward", "1")
	lab.Sysctl(t, plain.Host, "ipv6/conf/all/forwarding", "1")

	ways := []struct {
		name      string
		out, back bool // from a container; from the server
		long      bool // with the long counts only
	}{
		{"to a published port", false, false, false},
		{"from a published port", false, true, false},
		{"from a container to the world", true, false, false},
		{"from the world to a container that asked", true, true, true},
	}
	run := func(t *testing.T, host, world, beyond, size string) {
		for _, way := range ways {
			if way.long && !soak() {
				continue
			}
			t.Run(way.name, func(t *testing.T) {
				c, plain := c.in(t), plain.in(t)
				var ratios, ours, routed []float64
				for range times(9, 3) {
					var a, b float64
					if way.out {
						a, b = c.oneWay(s.ns, c.Client, world, size, way.back), plain.oneWay(far.NS, plain.Client, world, size, way.back)
					} else {
						a, b = c.oneWay(c.Client, s.ns, host, size, way.back), plain.oneWay(plain.Client, far.NS, beyond, size, way.back)
					}
					ours, routed, ratios = append(ours, a), append(routed, b), append(ratios, a/b)
				}
				slices.Sort(ratios)
				ratio := middle(ours) / middle(routed)
				t.Logf("%s: %.2f of plain routing (%.2f to %.2f), %.2f Gbit/s", strings.ReplaceAll(strings.TrimPrefix(t.Name(), "TestE4Rate/"), "_", " "), ratio, ratios[0], ratios[len(ratios)-1], middle(ours)/1e9)
				bar := 0.95
				if !soak() {
					bar /= 1.5 // other work may share the machine
				}
				require.GreaterOrEqual(t, ratio, bar)
			})
		}
	}
	v4 := func(t *testing.T, size string) { run(t, lab.HostIPv4, lab.ClientIPv4, "198.51.100.2", size) }
	v6 := func(t *testing.T, size string) { run(t, lab.HostIPv6, lab.ClientIPv6, "2001:db8:198::2", size) }
	if !soak() {
		v4(t, "256M")
		return
	}
	v4(t, "2G")
	t.Run("IPv6", func(t *testing.T) { v6(t, "2G") })
	t.Run("offloads off", func(t *testing.T) {
		c.in(t).offload("off", []port{{c.Client, "eth0"}, {c.Host, c.X.Device}, {c.Host, c.gateway("n1").dev}, {c.Host, c.hostDevice(s)}, {s.ns, "eth0"},
			{plain.Client, "eth0"}, {plain.Host, plain.X.Device}, {plain.Host, far.Device}, {far.NS, "eth0"}})
		v4(t, "512M")
		t.Run("IPv6", func(t *testing.T) { v6(t, "512M") })
	})
}

// oneWay transfers so much by one connection and gives the rate in bits a second; reverse: from the server.
func (c *cast) oneWay(from, to *netns.NS, addr, size string, reverse bool) float64 {
	c.t.Helper()
	server := c.Start(c.t, to, "iperf3", "-s", "-1", "--forceflush", "-p", strconv.Itoa(iperfPort))
	require.True(c.t, server.WaitOutput("Server listening", wait), "%s", server.Stderr())
	args := []string{"-J", "-n", size, "-p", strconv.Itoa(iperfPort), "-c", addr}
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
