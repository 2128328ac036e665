// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"io/fs"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A cable whose second end waits in the host for somebody to take it.
func TestPair(t *testing.T) {
	host, h := newNS(t)
	_, _, err := EnsureBridge(host, Bridge{Name: "br0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1400})
	require.NoError(t, err)
	find := func(name string) netlink.Link {
		t.Helper()
		l, err := h.LinkByName(name)
		require.NoError(t, err)
		return l
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 2}
	p := Pair{HostName: "v0", ContName: "v0c", Bridge: "br0", MAC: mac, MTU: 1400, GRO: true}

	bad := errors.New("not ready")
	p.Ready = func(int) error {
		require.Zero(t, find("v0").Attrs().RawFlags&unix.IFF_UP)
		require.Zero(t, find("v0").Attrs().MasterIndex)
		return bad
	}
	_, err = CreatePair(host, p)
	require.ErrorIs(t, err, bad)
	_, err = h.LinkByName("v0")
	require.ErrorAs(t, err, &netlink.LinkNotFoundError{}, "nothing is left")

	p.Ready = nil
	index, err := CreatePair(host, p)
	require.NoError(t, err)
	v0, v0c := find("v0"), find("v0c")
	require.Equal(t, index, v0.Attrs().Index)
	require.NotZero(t, v0.Attrs().RawFlags&unix.IFF_UP)
	require.Equal(t, find("br0").Attrs().Index, v0.Attrs().MasterIndex)
	require.Zero(t, v0c.Attrs().RawFlags&unix.IFF_UP)
	require.Zero(t, v0c.Attrs().MasterIndex)
	require.Equal(t, mac, v0c.Attrs().HardwareAddr)
	require.Equal(t, 1400, v0c.Attrs().MTU)
	_, err = CreatePair(host, p)
	require.ErrorIs(t, err, fs.ErrExist)
	find("v0")

	require.NoError(t, Unplug(host, "v0"))
	require.Zero(t, find("v0").Attrs().RawFlags&unix.IFF_UP)
	require.Zero(t, find("v0").Attrs().MasterIndex)
	require.NoError(t, DeleteVeth(host, "v0"))
	require.NoError(t, Unplug(host, "v0"), "gone already")
	_, err = CreatePair(host, Pair{HostName: "v0", ContName: "v0c", Bridge: "none"})
	require.ErrorContains(t, err, "bridge none")
}
