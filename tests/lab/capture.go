// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"
)

// Capture collects the frames of a device that its filter wants.
type Capture struct {
	Device string

	filter  func(frame []byte) bool
	in, out bool
	f       *os.File
	raw     interface {
		Read(func(fd uintptr) bool) error
	}
	running sync.WaitGroup

	mu     sync.Mutex
	frames [][]byte
	lost   int
	done   bool
}

// StartCapture collects, until the test ends or Stop, the frames that come in by or
// leave by a device and that filter wants (nil: all). It sees what comes in before any
// TC program does, and what leaves after them.
func StartCapture(t testing.TB, ns *netns.NS, device string, filter func(frame []byte) bool) *Capture {
	t.Helper()
	c, err := newCapture(ns, device, filter, true, true)
	return capturing(t, c, err)
}

// CaptureIn is StartCapture for what comes in only.
func CaptureIn(t testing.TB, ns *netns.NS, device string, filter func(frame []byte) bool) *Capture {
	t.Helper()
	c, err := newCapture(ns, device, filter, true, false)
	return capturing(t, c, err)
}

// CaptureOut is StartCapture for what leaves only.
func CaptureOut(t testing.TB, ns *netns.NS, device string, filter func(frame []byte) bool) *Capture {
	t.Helper()
	c, err := newCapture(ns, device, filter, false, true)
	return capturing(t, c, err)
}

func capturing(t testing.TB, c *Capture, err error) *Capture {
	t.Helper()
	if err != nil {
		t.Fatalf("lab: capture: %v", err)
	}
	t.Cleanup(func() {
		c.Stop()
		if n := c.Lost(); n > 0 {
			t.Errorf("lab: the capture on %s lost %d frames", c.Device, n)
		}
	})
	return c
}

func newCapture(ns *netns.NS, device string, filter func([]byte) bool, in, out bool) (*Capture, error) {
	fd, err := packetSocket(ns, device, unix.ETH_P_ALL)
	if err != nil {
		return nil, err
	}
	// Room for a burst of ten thousand small frames.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	c := &Capture{Device: device, filter: filter, in: in, out: out, f: os.NewFile(uintptr(fd), "packet socket")}
	if c.raw, err = c.f.SyscallConn(); err != nil {
		c.f.Close()
		return nil, err
	}
	c.running.Go(func() {
		c.raw.Read(func(fd uintptr) bool {
			c.drain(int(fd))
			return false // wait for more, until the deadline of Stop
		})
	})
	return c, nil
}

// drain takes what has come so far.
func (c *Capture) drain(fd int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf := make([]byte, 1<<17)
	for {
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			break
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		outgoing := ok && ll.Pkttype == unix.PACKET_OUTGOING
		if outgoing && !c.out || !outgoing && !c.in || c.filter != nil && !c.filter(buf[:n]) {
			continue
		}
		c.frames = append(c.frames, append([]byte{}, buf[:n]...))
	}
	if st, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		c.lost += int(st.Drops)
	}
}

// Frames are those collected so far. What the kernel had delivered before the call
// is among them.
func (c *Capture) Frames() [][]byte {
	c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([][]byte{}, c.frames...)
}

// Count is the number of Frames.
func (c *Capture) Count() int { return len(c.Frames()) }

// Lost is how many frames, wanted or not, the kernel had no room for.
func (c *Capture) Lost() int {
	c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

func (c *Capture) now() {
	c.mu.Lock()
	done := c.done
	c.mu.Unlock()
	if done {
		return
	}
	if conn, err := c.f.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { c.drain(int(fd)) })
	}
}

// Wait waits until n frames have come, and says whether they did in time.
func (c *Capture) Wait(n int, limit time.Duration) bool {
	return eventually(limit, func() bool { return c.Count() >= n })
}

// Stop ends it; the frames stay.
func (c *Capture) Stop() {
	c.now()
	c.mu.Lock()
	done := c.done
	c.done = true
	c.mu.Unlock()
	if done {
		return
	}
	c.f.SetReadDeadline(time.Unix(1, 0))
	c.running.Wait()
	c.f.Close()
}

// Matching makes a filter of a look at the decoded frame.
func Matching(want func(gopacket.Packet) bool) func(frame []byte) bool {
	return func(frame []byte) bool { return want(Decode(frame)) }
}

// FromMAC makes a filter by the frame's source.
func FromMAC(mac net.HardwareAddr) func(frame []byte) bool {
	return func(frame []byte) bool { return len(frame) >= 14 && string(frame[6:12]) == string(mac) }
}

// Describe is for messages: a line a frame, of the first few.
func Describe(frames [][]byte) string {
	text := fmt.Sprintf("%d frames", len(frames))
	for _, f := range frames[:min(len(frames), 5)] {
		text += "\n  "
		for i, l := range Decode(f).Layers() {
			if i > 0 {
				text += " / "
			}
			text += gopacket.LayerString(l)
		}
	}
	return text
}
