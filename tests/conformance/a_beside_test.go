// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// A3: [::1] leads to an IPv4-only container where no service of the host's is; where one is, it
// answers.
func TestA3HostService(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, false)
	s := c.container("srv", "n1")
	c.serve(s, 80)
	stream, datagrams := lab.ServeTCP(t, c.Host, "host", "[::1]:8080"), lab.ServeUDP(t, c.Host, "host", "[::1]:8080")
	c.publish(s, "0.0.0.0:8080:80", "0.0.0.0:8080:80/udp")
	c.answers(c.Host, "[::1]:8080", "host", "::1")
	c.answers(c.Host, "127.0.0.1:8080", "srv", "")
	c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
	stream.Close()
	datagrams.Close()
	c.answers(c.Host, "[::1]:8080", "srv", "")
}

// A1: who asks by link-local addresses is on a link that the container is not on: the host refuses
// it, as where nothing is published, and at once.
func TestA1LinkLocal(t *testing.T) {
	parallel(t)
	c, _, _, _ := mainCast(t)
	to := at(c.scoped(c.uplink(), c.Client, "eth0"), 8080)
	for _, proto := range []string{"tcp", "udp"} {
		_, err := ask(c.Client, proto, "", to, wait)
		require.True(t, lab.Refused(err), "%s: %v", proto, err)
	}
	c.answers(c.Client, at(lab.HostIPv6, 8080), "srv", lab.ClientIPv6)
}

// A1: a frame that has a priority (IEEE 802.1p) and no VLAN is the uplink's own.
func TestA1Priority(t *testing.T) {
	parallel(t)
	c, s, _, _ := mainCast(t)
	h := lab.Link(t, c.Host, c.X.Device).Attrs().HardwareAddr
	x := lab.Link(t, c.Client, "eth0").Attrs().HardwareAddr
	for i, to := range []string{lab.HostIPv4, lab.HostIPv6} {
		frame := func(text string) []byte {
			from := netip.MustParseAddr([]string{lab.ClientIPv4, lab.ClientIPv6}[i])
			return lab.Packet{SrcMAC: x, DstMAC: h, Src: from, Dst: netip.MustParseAddr(to)}.UDP(5000, 8080, []byte(text))
		}
		tag := func(frame []byte, id byte) []byte {
			return slices.Concat(frame[:12], []byte{byte(layers.EthernetTypeDot1Q >> 8), byte(layers.EthernetTypeDot1Q & 0xff), 5 << 5, id}, frame[12:])
		}
		priority, vlan := lab.CaptureIn(t, s.ns, "eth0", marked("priority 5")), lab.CaptureIn(t, s.ns, "eth0", marked("network 7"))
		require.NoError(t, lab.Inject(c.Client, "eth0", tag(frame("of network 7"), 7), 1))
		for n := range 3 { // the first packets and those of a flow that is established
			require.NoError(t, lab.Inject(c.Client, "eth0", tag(frame("with priority 5"), 0), 1))
			require.True(t, soon(func() bool { return len(priority.Frames()) >= n+1 }), "IPv%d", []int{4, 6}[i])
		}
		require.Empty(t, vlan.Frames())
	}
}
