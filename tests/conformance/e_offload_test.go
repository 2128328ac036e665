// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"

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
	wholeFrame = 1514 // Ethernet header and MTU
	leastRate  = 5e6  // it goes on; how fast is TestE4Rate's
)

// E4: bulk transfers both ways, X to a published port and a container to X, while the devices segment,
// merge and compute checksums themselves, while none of them does, and while only some do: they
// finish, fast, whole, and no receiver counts a wrong checksum. With offloads super-packets arrive as
// such; without, frames arrive no larger than the MTU and with the right checksum on the wire: where the
// outer devices do nothing all of them, as whatever comes or goes passes one that has to cut and to sum.
//
//	X eth0 ── eth0 H bridge, veth ── eth0 srv (8080:80, 5201:5201)
func TestE4(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	c.publish(s, fmt.Sprintf("%d:%d", iperfPort, iperfPort))
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	outer := []port{{c.Client, "eth0"}, {c.Host, c.X.Device}}
	inner := []port{{c.Host, c.gateway("n1").dev}, {c.Host, c.hostDevice(s)}, {s.ns, "eth0"}}
	all := append(append([]port{}, outer...), inner...)
	receivers := []*netns.NS{c.Client, c.Host, s.ns}

	// The control: a wrong checksum is counted.
	before := sumErrors(t, receivers...)
	bad := c.uplink().to(c.world(), 4).UDP(1000, 7000, []byte("wrong"))
	bad[14+20+8] ^= 1 // the first byte of the payload
	require.NoError(t, lab.Inject(c.Host, c.X.Device, bad, 1))
	require.True(t, soon(func() bool { return sumErrors(t, receivers...) > before }), "%d, then %d", before, sumErrors(t, receivers...))

	for _, state := range []struct {
		name     string
		off      []port
		super    bool // some frames are larger than the wire's
		computed bool // checksums are in the frames
	}{
		{"on", nil, true, false},
		{"off", all, false, true},
		{"off outside", outer, false, true},
		{"off inside", inner, true, false},
	} {
		t.Run(state.name, func(t *testing.T) {
			c := c.in(t)
			c.offload("on", all)
			c.offload("off", state.off)
			before := sumErrors(t, receivers...)
			for i, host := range []string{lab.HostIPv4, lab.HostIPv6} {
				world := []string{lab.ClientIPv4, lab.ClientIPv6}[i]
				seen := c.bulk(c.Client, s.ns, at(host, 8080), 80)
				seen = append(seen, c.bulk(s.ns, c.Client, at(world, 7000), 7000)...)
				largest := 0
				for _, f := range seen {
					largest = max(largest, len(f))
					if state.computed {
						require.True(t, rightSum(f), lab.Describe([][]byte{f}))
					}
				}
				require.Equal(t, state.super, largest > wholeFrame, "the largest frame has %d bytes", largest)
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
		_, err := c.Run(d.ns, "ethtool", "-K", d.dev, "tx", value, "rx", value, "sg", value, "tso", value, "gso", value, "gro", value)
		require.NoError(c.t, err)
		features, err := c.Run(d.ns, "ethtool", "-k", d.dev)
		require.NoError(c.t, err)
		for _, f := range []string{"tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload", "generic-receive-offload"} {
			require.Contains(c.t, features, f+": "+value, d.dev)
		}
	}
}

// bulk carries half a megabyte there and back by one connection, and gives the frames of it that came
// to either end.
func (c *cast) bulk(from, to *netns.NS, addr string, port uint16) (frames [][]byte) {
	c.t.Helper()
	asked := netip.MustParseAddrPort(addr)
	there := lab.CaptureIn(c.t, to, "eth0", func(f []byte) bool { _, _, dst := transportOf(f); return dst == port && tcpOf(f) != nil })
	back := lab.CaptureIn(c.t, from, "eth0", func(f []byte) bool { _, src, _ := transportOf(f); return src == asked && tcpOf(f) != nil })
	conn, err := lab.Dial(from, "tcp", "", addr, wait)
	require.NoError(c.t, err)
	defer conn.Close()
	c.carries(conn, 1<<19)
	there.Stop()
	back.Stop()
	for _, list := range [][][]byte{there.Frames(), back.Frames()} {
		total := 0
		for _, f := range list {
			total += len(f)
		}
		require.Greater(c.t, total, 1<<19, "captured")
		frames = append(frames, list...)
	}
	return frames
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

// sumErrors is how many packets with a wrong checksum the namespaces have received, of any protocol (what
// nstat shows as InCsumErrors).
func sumErrors(t testing.TB, list ...*netns.NS) (total int) {
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
				if name == "InCsumErrors" {
					n, err := strconv.Atoi(values[j])
					require.NoError(t, err)
					total += n
				}
			}
		}
		for line := range strings.Lines(string(six)) {
			if f := strings.Fields(line); strings.HasSuffix(f[0], "InCsumErrors") {
				n, err := strconv.Atoi(f[1])
				require.NoError(t, err)
				total += n
			}
		}
	}
	return total
}

// rightSum says whether a TCP frame carries the checksum that its bytes have.
func rightSum(frame []byte) bool {
	p := lab.Decode(frame)
	tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if !ok {
		return false
	}
	again := *tcp
	if err := again.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
		return false
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true}, &again, gopacket.Payload(tcp.Payload))
	return err == nil && again.Checksum == tcp.Checksum
}
