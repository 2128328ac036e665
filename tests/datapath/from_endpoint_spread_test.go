package datapath

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
)

// tap listens at the container's end of a veth that is up.
func (w *world) tap(device string) int {
	w.t.Helper()
	for _, name := range []string{device, device + "x"} {
		l, err := netlink.LinkByName(name)
		require.NoError(w.t, err)
		require.NoError(w.t, netlink.LinkSetUp(l))
	}
	// Before that the kernel sends nothing out of them. Eventually asks on a thread of its own.
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	require.NoError(w.t, err)
	defer here.Close()
	for _, name := range []string{device, device + "x"} {
		require.Eventually(w.t, func() bool {
			l, err := here.LinkByName(name)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		}, 5*time.Second, time.Millisecond, name)
	}
	l, err := netlink.LinkByName(device + "x")
	require.NoError(w.t, err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { unix.Close(fd) })
	require.NoError(w.t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: be16(unix.ETH_P_ALL), Ifindex: l.Attrs().Index}))
	return fd
}

// heard says whether a tap got the frame.
func heard(fd int, frame []byte) bool {
	b := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, b)
		if err != nil {
			return false
		}
		if string(b[:n]) == string(frame) {
			return true
		}
	}
}

// Broadcast and multicast: the host, and with icc on every other member.
func TestFromEndpointSpread(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		taps := map[uint32]int{}
		for slot := range uint32(4) {
			taps[slot+1] = w.tap(fmt.Sprint("veth", slot+1))
		}
		w.endpoint(5, net1, 4)
		taps[5] = w.tap("veth5")
		groups := []string{"224.0.0.251", "239.1.2.3", "255.255.255.255", "10.1.255.255"}
		if six {
			groups = []string{"ff02::fb", "ff02::1", "ff05::1:3"}
		}
		listens := func(w *world, slot uint32, frame []byte) func() bool {
			return func() bool { return heard(taps[slot], frame) }
		}
		for i, a := range groups {
			for name, frame := range map[string][]byte{
				"datagram":       packet{from: f.p, to: group(a, 5353+uint16(i)), proto: udp}.frame(),
				"later fragment": fragment(packet{from: f.p, to: group(a, 7000+uint16(i)), proto: udp}.frame(), 64, false),
			} {
				w.sub(a+" "+name, func(w *world) {
					flooded := w.counter(loader.BPFCounterCOUNTER_FLOODED)
					w.utter(epP, frame, handed())
					require.Equal(w.t, flooded+1, w.counter(loader.BPFCounterCOUNTER_FLOODED))
					require.Eventually(w.t, listens(w, epS, frame), 2*time.Second, time.Millisecond)
					require.Eventually(w.t, listens(w, 5, frame), 2*time.Second, time.Millisecond)
					for _, slot := range []uint32{epP, epO, epQ} {
						require.False(w.t, heard(taps[slot], frame), "endpoint %d", slot)
					}
				})
			}
		}
		w.sub("group membership is the host's", func(w *world) {
			var frame []byte
			if six {
				frame = nd(w.ll(epP, 0), group("ff02::16", 0), 143, make([]byte, 24))
			} else {
				frame = withProto(packet{from: f.p, to: group("224.0.0.22", 9), proto: udp}.frame(), 2)
			}
			flooded := w.counter(loader.BPFCounterCOUNTER_FLOODED)
			w.utter(epP, frame, handed())
			require.Equal(w.t, flooded, w.counter(loader.BPFCounterCOUNTER_FLOODED))
			require.False(w.t, heard(taps[epS], frame))
		})
		w.sub("from the host", func(w *world) {
			frame := packet{from: f.gw.at(9), to: group(groups[0], 9999), proto: udp}.frame()
			w.check(w.objs.ToBridge, w.bridges[net1], frame, swallowed())
			for _, slot := range []uint32{epS, epP, 5} {
				require.Eventually(w.t, listens(w, slot, frame), 2*time.Second, time.Millisecond)
			}
			require.False(w.t, heard(taps[epO], frame))
		})
	})
}
