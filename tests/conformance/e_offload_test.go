// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// port is a device of a namespace.
type port struct {
	ns  *netns.NS
	dev string
}

const (
	iperfPort  = 5201
	sinkPort   = 5202
	wholeFrame = 1514   // Ethernet header and MTU
	superFrame = 60_000 // what one of 64 KiB has at least
	leastRate  = 5e6    // it goes on; how fast is TestE4Rate's
)

// E4: bulk transfers both ways, X to a published port and a container to X, while the devices segment,
// merge and compute checksums themselves, while none of them does, and while only some do: they
// finish, fast, whole, and no receiver counts a wrong checksum. With offloads super-packets of 64 KiB arrive
// as such, whichever end they are from and whoever asked; without, frames arrive no larger than the MTU and
// with the right checksum on the wire: where the outer devices do nothing all of them, as whatever comes or
// goes passes one that has to cut and to sum. So do datagrams that are sent many at once (UDP_SEGMENT), from
// X, from the container and from H by its loopback addresses.
//
//	X eth0 ── eth0 H bridge, veth ── eth0 srv (8080:80, 5201:5201, 5202:5202/udp)
func TestE4(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	c.publish(s, fmt.Sprintf("%d:%d", iperfPort, iperfPort), fmt.Sprintf("%d:%d/udp", sinkPort, sinkPort))
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	outer := []port{{c.Client, "eth0"}, {c.Host, c.X.Device}}
	inner := []port{{c.Host, c.gateway("n1").dev}, {c.Host, c.hostDevice(s)}, {s.ns, "eth0"}}
	all := append(append([]port{}, outer...), inner...)
	receivers := []*netns.NS{c.Client, c.Host, s.ns}
	inside, outside := c.sink(s.ns), c.sink(c.Client)

	// The control: a wrong checksum is counted.
	before := sumErrors(t, receivers...)
	bad := c.uplink().to(c.world(), 4).UDP(1000, 7000, []byte("wrong"))
	bad[14+20+8] ^= 1 // the first byte of the payload
	require.NoError(t, lab.Inject(c.Host, c.X.Device, bad, 1))
	require.True(t, soon(func() bool { return sumErrors(t, receivers...) > before }), "%d, then %d", before, sumErrors(t, receivers...))

	for _, state := range []struct {
		name     string
		off      []port
		in, out  bool // super-packets come to the container, and to X: else none does
		computed bool // checksums are in the frames
	}{
		{"on", nil, true, true, false},
		{"off", all, false, false, true},
		{"off outside", outer, false, false, true},
		{"off inside", inner, true, false, false},
	} {
		t.Run(state.name, func(t *testing.T) {
			c := c.in(t)
			c.offload("on", all)
			c.offload("off", state.off)
			before := sumErrors(t, receivers...)
			for i, host := range []string{lab.HostIPv4, lab.HostIPv6} {
				world := []string{lab.ClientIPv4, lab.ClientIPv6}[i]
				size := 1 << 22
				if state.computed {
					size = 1 << 19
				}
				expect := func(what string, super bool, least int, frames [][]byte) {
					t.Helper()
					largest := 0
					for _, f := range frames {
						largest = max(largest, len(f))
						if state.computed {
							require.True(t, rightSum(f), lab.Describe([][]byte{f}))
						}
					}
					if super {
						require.Greater(t, largest, least, "%s: the largest frame", what)
					} else {
						require.LessOrEqual(t, largest, wholeFrame, "%s: the largest frame", what)
					}
				}
				in, out := c.bulk(c.Client, s.ns, at(host, 8080), 80, size)
				expect("X asks, to the container", state.in, superFrame, in)
				expect("X asks, to X", state.out, superFrame, out)
				out, in = c.bulk(s.ns, c.Client, at(world, 7000), 7000, size)
				expect("the container asks, to the container", state.in, superFrame, in)
				expect("the container asks, to X", state.out, superFrame, out)
				expect("datagrams to the container", state.in, segments*segment, c.segmented(c.Client, inside, at(host, sinkPort), state.off != nil))
				expect("datagrams to X", state.out, segments*segment, c.segmented(s.ns, outside, at(world, sinkPort), state.off != nil))
				if loop := at([]string{"127.0.0.1", "::1"}[i], sinkPort); !loopback6(loop) {
					c.segmented(c.Host, inside, loop, false)
				}
				c.answersBy("udp", c.Client, "", at(host, 8080), "srv", world)
				c.answersBy("udp", s.ns, "", at(world, 7000), "world", host)

				t.Logf("X to %s: %s", host, c.iperf(c.Client, s.ns, host))
				t.Logf("container to %s: %s", world, c.iperf(s.ns, c.Client, world))
			}
			require.Equal(t, before, sumErrors(t, receivers...), "wrong checksums")
		})
	}
}

// offload turns everything on or off that a device may do to large frames and checksums.
func (c *cast) offload(value string, devices []port) {
	c.t.Helper()
	for _, d := range devices {
		_, err := c.Run(d.ns, "ethtool", "-K", d.dev, "tx", value, "rx", value, "sg", value, "tso", value, "gso", value, "gro", value, "tx-udp-segmentation", value)
		require.NoError(c.t, err)
		features, err := c.Run(d.ns, "ethtool", "-k", d.dev)
		require.NoError(c.t, err)
		for _, f := range []string{"tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload", "generic-receive-offload"} {
			require.Contains(c.t, features, f+": "+value, d.dev)
		}
	}
}

// bulk carries so many bytes there and back by one connection, and gives the frames of it that came to
// either end.
func (c *cast) bulk(from, to *netns.NS, addr string, port uint16, size int) (there, back [][]byte) {
	c.t.Helper()
	asked := netip.MustParseAddrPort(addr)
	captures := []*lab.Capture{
		lab.CaptureIn(c.t, to, "eth0", func(f []byte) bool { _, _, dst := transportOf(f); return dst == port && tcpOf(f) != nil }),
		lab.CaptureIn(c.t, from, "eth0", func(f []byte) bool { _, src, _ := transportOf(f); return src == asked && tcpOf(f) != nil }),
	}
	conn, err := lab.Dial(from, "tcp", "", addr, wait)
	require.NoError(c.t, err)
	defer conn.Close()
	c.carries(conn, size)
	for _, capture := range captures {
		capture.Stop()
		total := 0
		for _, f := range capture.Frames() {
			total += len(f)
		}
		require.Greater(c.t, total, size, "captured")
	}
	return captures[0].Frames(), captures[1].Frames()
}

// Datagrams that are sent at once.
const (
	segments = 40
	segment  = 1400
)

// sink is a socket of a namespace to which datagrams of both families come.
type sink struct {
	ns   *netns.NS
	conn net.PacketConn
}

func (c *cast) sink(ns *netns.NS) (k sink) {
	c.t.Helper()
	k.ns = ns
	require.NoError(c.t, ns.Do(func() (err error) {
		lc := net.ListenConfig{Control: lab.Roomy}
		k.conn, err = lc.ListenPacket(context.Background(), "udp", fmt.Sprintf(":%d", sinkPort))
		return err
	}))
	c.t.Cleanup(func() { k.conn.Close() })
	return k
}

// segmented sends datagrams in one piece, which come one by one and in order, and gives the frames of them
// that came. Kernels before 6.11 refuse to where the device computes no checksums: if that may be, they are
// sent one by one.
func (c *cast) segmented(from *netns.NS, to sink, addr string, refusable bool) [][]byte {
	c.t.Helper()
	came := lab.CaptureIn(c.t, to.ns, "eth0", func(f []byte) bool { _, _, dst := transportOf(f); return dst == sinkPort })
	conn, err := lab.Dial(from, "udp", "", addr, wait)
	require.NoError(c.t, err)
	defer conn.Close()
	raw, err := conn.Conn.(syscall.Conn).SyscallConn()
	require.NoError(c.t, err)
	require.NoError(c.t, setOption(raw, unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment))
	payload := make([]byte, segments*segment)
	rand.Read(payload)
	_, err = conn.Write(payload)
	if refusable && errors.Is(err, unix.EIO) {
		require.NoError(c.t, setOption(raw, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0))
		for piece := range slices.Chunk(payload, segment) {
			_, err = conn.Write(piece)
			require.NoError(c.t, err)
		}
	}
	require.NoError(c.t, err, addr)
	require.NoError(c.t, to.conn.SetReadDeadline(time.Now().Add(wait)))
	var got []byte
	for i := range segments {
		buf := make([]byte, 1<<16)
		n, _, err := to.conn.ReadFrom(buf)
		require.NoError(c.t, err, "%s: datagram %d", addr, i)
		require.Equal(c.t, segment, n, "%s: datagram %d", addr, i)
		got = append(got, buf[:n]...)
	}
	require.True(c.t, bytes.Equal(payload, got), "%s: what was sent is what came", addr)
	came.Stop()
	return came.Frames()
}

// iperf transfers both ways at once and gives the rates.
func (c *cast) iperf(from, to *netns.NS, addr string) string {
	c.t.Helper()
	server := c.Start(c.t, to, "iperf3", "-s", "-1", "--forceflush", "-p", strconv.Itoa(iperfPort))
	require.True(c.t, server.WaitOutput("Server listening", wait), "%s", server.Stderr())
	out, err := c.Run(from, "iperf3", "-J", "--bidir", "-n", times64("1G", "48M"), "-p", strconv.Itoa(iperfPort), "-c", addr)
	require.NoError(c.t, err, out)
	require.NoError(c.t, server.Wait(wait))
	type sum struct {
		Bytes float64 `json:"bytes"`
		Rate  float64 `json:"bits_per_second"`
	}
	var result struct {
		End struct {
			There sum `json:"sum_received"`
			Back  sum `json:"sum_received_bidir_reverse"`
		} `json:"end"`
	}
	require.NoError(c.t, json.Unmarshal([]byte(out), &result))
	for _, way := range []sum{result.End.There, result.End.Back} {
		require.Positive(c.t, way.Bytes)
		require.Greater(c.t, way.Rate, leastRate)
	}
	return fmt.Sprintf("%.2f Gbit/s there, %.2f back", result.End.There.Rate/1e9, result.End.Back.Rate/1e9)
}

func times64(promised, reduced string) string {
	if soak() {
		return promised
	}
	return reduced
}

// sumErrors is how many packets with a wrong checksum the namespaces have received, of any protocol.
func sumErrors(t testing.TB, list ...*netns.NS) int {
	t.Helper()
	return counted(t, "InCsumErrors", list...)
}

// counted is what the namespaces' stacks count by a name of nstat's, for any protocol.
func counted(t testing.TB, counter string, list ...*netns.NS) (total int) {
	t.Helper()
	for _, ns := range list {
		var four, six []byte
		require.NoError(t, ns.Do(func() (err error) {
			if four, err = os.ReadFile("/proc/thread-self/net/snmp"); err == nil {
				six, err = os.ReadFile("/proc/thread-self/net/snmp6")
			}
			return err
		}))
		lines := strings.Split(strings.TrimSpace(string(four)), "\n")
		for i := 0; i+1 < len(lines); i += 2 { // names, values
			values := strings.Fields(lines[i+1])
			for j, name := range strings.Fields(lines[i]) {
				if name == counter {
					n, err := strconv.Atoi(values[j])
					require.NoError(t, err)
					total += n
				}
			}
		}
		for line := range strings.Lines(string(six)) {
			if f := strings.Fields(line); strings.HasSuffix(f[0], counter) {
				n, err := strconv.Atoi(f[1])
				require.NoError(t, err)
				total += n
			}
		}
	}
	return total
}

// rightSum says whether a TCP or UDP frame carries the checksum that its bytes have.
func rightSum(frame []byte) bool {
	p := lab.Decode(frame)
	switch l4 := p.TransportLayer().(type) {
	case *layers.TCP:
		again := *l4
		return summed(p, &again, l4.Payload) && again.Checksum == l4.Checksum
	case *layers.UDP:
		again := *l4
		return summed(p, &again, l4.Payload) && again.Checksum == l4.Checksum
	}
	return false
}

// summed computes the checksum of a packet's header anew.
func summed(p gopacket.Packet, l4 interface {
	gopacket.SerializableLayer
	SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
}, payload []byte) bool {
	if err := l4.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
		return false
	}
	return gopacket.SerializeLayers(gopacket.NewSerializeBuffer(), gopacket.SerializeOptions{ComputeChecksums: true}, l4, gopacket.Payload(payload)) == nil
}
