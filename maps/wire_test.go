// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// bytesOf is the memory of a value, as the programs see it.
func bytesOf[T any](v T) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v))...)
}

func TestAddr(t *testing.T) {
	require.Equal(t, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 9, 0, 1}, bytesOf(toAddr(ip("10.9.0.1"))))
	require.Equal(t, []byte{0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34}, bytesOf(toAddr(ip("fd00::1234"))))
	require.Equal(t, []byte{0x1f, 0x90}, bytesOf(toBE16(8080)))
	for _, a := range []netip.Addr{{}, ip("10.9.0.1"), ip("255.255.255.255"), ip("fd00::1"), ip("fe80::1"), ip("0.0.0.0")} {
		require.Equal(t, a, fromAddr(toAddr(a)))
	}
	for v := range 65536 {
		require.Equal(t, uint16(v), fromBE16(toBE16(uint16(v))))
	}
}

func TestPrefix(t *testing.T) {
	for s, bits := range map[string]uint32{
		"0.0.0.0/0": 96, "10.0.0.0/8": 104, "10.9.8.7/32": 128, "::/0": 0, "fd00::/64": 64, "fd00::1/128": 128, "::/96": 96,
	} {
		k, err := toPrefix(prefix(s))
		require.NoError(t, err)
		require.Equal(t, bits, k.Prefixlen, s)
		require.Equal(t, prefix(s), fromPrefix(k))
	}
	k, err := toPrefix(prefix("10.9.8.7/8"))
	require.NoError(t, err)
	require.Equal(t, prefix("10.0.0.0/8"), fromPrefix(k), "host bits")
	_, err = toPrefix(netip.Prefix{})
	require.Error(t, err)
}

func TestMAC(t *testing.T) {
	mac := net.HardwareAddr{0x02, 0x42, 0xac, 0x11, 0, 2}
	b, err := toMAC(mac)
	require.NoError(t, err)
	require.Equal(t, mac, fromMAC(b))
	_, err = toMAC(mac[:5])
	require.Error(t, err)
	require.Equal(t, ip("fe80::42:acff:fe11:2"), LinkLocal(mac))
	require.False(t, LinkLocal(nil).IsValid())
}

func TestTicks(t *testing.T) {
	for d, want := range map[time.Duration]uint16{
		1: 1, time.Second: 1, tick: 1, tick + 1: 2, 7440 * time.Second: 6930, 65535 * tick: 65535,
	} {
		n, err := toTicks(d)
		require.NoError(t, err)
		require.Equal(t, want, n, d.String())
		require.GreaterOrEqual(t, time.Duration(n)*tick, d, "expires early")
	}
	for _, d := range []time.Duration{0, -1, 65535*tick + 1} {
		_, err := toTicks(d)
		require.Error(t, err)
	}
}

func TestProto(t *testing.T) {
	for _, p := range []Proto{TCP, UDP, SCTP} {
		got, err := ParseProto(p.String())
		require.NoError(t, err)
		require.Equal(t, p, got)
	}
	for _, s := range []string{"", "TCP", "icmp", "6"} {
		_, err := ParseProto(s)
		require.Error(t, err, s)
	}
}
