// SPDX-License-Identifier: Apache-2.0

//go:build kernellab

package conformance

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// E12 by a VLAN: its frames leave by the device below, which is an uplink as well, with a tag. Both see every
// packet, the one without the other's header.
//
//	H eth0.7 ─ eth0 ── eth0 ─ eth0.7 X
func TestE12VLANUplink(t *testing.T) {
	parallel(t)
	c, s, p, _ := ownCast(t)
	hosts, far := second()
	for _, end := range []struct {
		ns    *netns.NS
		dev   string
		addrs []netip.Addr
	}{{c.Host, c.X.Device, hosts}, {c.Client, "eth0", far}} {
		h, err := end.ns.Netlink()
		require.NoError(t, err)
		defer h.Close()
		require.NoError(t, h.LinkAdd(&netlink.Vlan{VlanId: 7, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q,
			LinkAttrs: netlink.LinkAttrs{Name: "eth0.7", ParentIndex: lab.Link(t, end.ns, end.dev).Attrs().Index}}))
		c.raise(end.ns, "eth0.7", end.addrs)
	}
	w := waysBy(c, s, p, "eth0.7", hosts, far)
	w.work()
	// The cable itself goes on.
	c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
	c.answers(s.ns, at(lab.ClientIPv6, 9000), "world", lab.HostIPv6)
	w.closed("eth0", hook{program: loader.BPFProgToUplink, device: "eth0.7"}, hook{program: loader.BPFProgToUplink, device: c.X.Device})
}

// A17 by WireGuard: no Ethernet header, and what it sends by the cable is the host's own.
//
//	H wg0 ~ eth0 203.0.113.1:51820 ── 203.0.113.2:51820 eth0 ~ wg0 X
func TestA17WireGuard(t *testing.T) {
	parallel(t)
	c, s, p, _ := ownCast(t)
	hosts, far := second()
	ends := []struct {
		ns    *netns.NS
		cable string
		addrs []netip.Addr
	}{{c.Host, lab.HostIPv4, hosts}, {c.Client, lab.ClientIPv4, far}}
	var keys []wgtypes.Key
	for range ends {
		key, err := wgtypes.GeneratePrivateKey()
		require.NoError(t, err)
		keys = append(keys, key)
	}
	const listens = 51820
	for i, end := range ends {
		h, err := end.ns.Netlink()
		require.NoError(t, err)
		defer h.Close()
		require.NoError(t, h.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wg0"}}))
		peer, port := ends[1-i], listens
		config := wgtypes.Config{PrivateKey: &keys[i], ListenPort: &port, Peers: []wgtypes.PeerConfig{{
			PublicKey: keys[1-i].PublicKey(), Endpoint: &net.UDPAddr{IP: net.ParseIP(peer.cable), Port: listens},
			AllowedIPs: []net.IPNet{{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}},
		}}}
		require.NoError(t, end.ns.Do(func() error {
			k, err := wgctrl.New()
			if err != nil {
				return err
			}
			defer k.Close()
			return k.ConfigureDevice("wg0", config)
		}))
		c.raise(end.ns, "wg0", end.addrs)
	}
	w := waysBy(c, s, p, "wg0", hosts, far)
	status, err := c.m.Status()
	require.NoError(t, err)
	require.True(t, status.FastPath, "%v", status.Problems)
	programs := map[string]bool{}
	for _, h := range status.Hooks {
		if h.Device == "wg0" {
			programs[h.Program] = true
		}
	}
	require.Equal(t, map[string]bool{loader.BPFProgFromTunnel: true, loader.BPFProgToTunnel: true}, programs)
	w.work()
	c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
	w.closed("wg0", hook{program: loader.BPFProgToTunnel, device: "wg0"})
}
