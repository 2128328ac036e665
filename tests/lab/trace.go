// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/bpfnet/bpfnet/control/netns"
	"golang.org/x/sys/unix"
)

const (
	traceSnap   = 256   // bytes kept of a packet
	traceKeep   = 16384 // packets kept of a namespace
	traceBlock  = 128 << 10
	traceBlocks = 16
	traceRetire = 50 // milliseconds until a block is ours though it is not full
)

// trace keeps the last packets of all devices of a namespace. The kernel writes them
// to a ring and wakes us once a block, not once a packet: af_packet's TPACKET_V3.
type trace struct {
	name string
	ns   *netns.NS
	fd   int
	wake int // eventfd
	ring []byte

	running sync.WaitGroup
	once    sync.Once
	flush   atomic.Bool

	mu    sync.Mutex
	kept  []tracedPacket // a ring once it is full: next is the oldest
	next  int
	links map[int32]tracedLink
}

type tracedLink struct {
	name   string
	hatype uint16
}

type tracedPacket struct {
	when    time.Time
	ifindex int32
	out     bool
	length  int
	data    []byte
}

func (l *Lab) startTrace(ns *netns.NS, name string) error {
	tr := &trace{name: name, ns: ns, fd: -1, wake: -1, links: make(map[int32]tracedLink)}
	if err := tr.open(); err != nil {
		tr.close()
		return fmt.Errorf("trace of %s: %w", name, err)
	}
	l.mu.Lock()
	l.traces = append(l.traces, tr)
	l.mu.Unlock()
	tr.running.Go(tr.loop)
	return nil
}

func (tr *trace) open() (err error) {
	if tr.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return err
	}
	err = tr.ns.Do(func() error {
		tr.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	ret := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: traceSnap}}
	if err := unix.SetsockoptSockFprog(tr.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &ret[0]}); err != nil {
		return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
	}
	if err := unix.SetsockoptInt(tr.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return os.NewSyscallError("setsockopt PACKET_VERSION", err)
	}
	req := unix.TpacketReq3{Block_size: traceBlock, Block_nr: traceBlocks, Frame_size: 2048,
		Frame_nr: traceBlock / 2048 * traceBlocks, Retire_blk_tov: traceRetire}
	if err := unix.SetsockoptTpacketReq3(tr.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return os.NewSyscallError("setsockopt PACKET_RX_RING", err)
	}
	if tr.ring, err = unix.Mmap(tr.fd, 0, traceBlock*traceBlocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	all := uint16(unix.ETH_P_ALL)
	return os.NewSyscallError("bind", unix.Bind(tr.fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8}))
}

func (tr *trace) loop() {
	for block := 0; ; {
		if tr.take(block) {
			block = (block + 1) % traceBlocks
			continue
		}
		fds := []unix.PollFd{{Fd: int32(tr.fd), Events: unix.POLLIN}, {Fd: int32(tr.wake), Events: unix.POLLIN}}
		unix.Poll(fds, -1)
		if fds[1].Revents == 0 {
			continue
		}
		if tr.flush.Load() {
			// The block that is being filled comes when its time is over.
			unix.Poll(fds[:1], 3*traceRetire)
		}
		for tr.take(block) {
			block = (block + 1) % traceBlocks
		}
		return
	}
}

// take reads a block if the kernel has given it to us, and gives it back.
func (tr *trace) take(block int) bool {
	mem := tr.ring[block*traceBlock : (block+1)*traceBlock]
	hdr := (*unix.TpacketHdrV1)(unsafe.Pointer(&(*unix.TpacketBlockDesc)(unsafe.Pointer(&mem[0])).Hdr))
	if atomic.LoadUint32(&hdr.Block_status)&unix.TP_STATUS_USER == 0 {
		return false
	}
	tr.mu.Lock()
	at := hdr.Offset_to_first_pkt
	for range hdr.Num_pkts {
		p := (*unix.Tpacket3Hdr)(unsafe.Pointer(&mem[at]))
		// struct sockaddr_ll follows the header, aligned to 16 bytes.
		ll := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&mem[at+(uint32(unsafe.Sizeof(*p))+15)&^15]))
		start := at + uint32(p.Mac)
		tr.keep(tracedPacket{
			when:    time.Unix(int64(p.Sec), int64(p.Nsec)),
			ifindex: ll.Ifindex, out: ll.Pkttype == unix.PACKET_OUTGOING,
			length: int(p.Len), data: slices.Clone(mem[start : start+p.Snaplen]),
		}, ll.Hatype)
		at += p.Next_offset
	}
	tr.mu.Unlock()
	atomic.StoreUint32(&hdr.Block_status, unix.TP_STATUS_KERNEL)
	return true
}

func (tr *trace) keep(p tracedPacket, hatype uint16) {
	if _, known := tr.links[p.ifindex]; !known {
		tr.links[p.ifindex] = tracedLink{fmt.Sprintf("if%d", p.ifindex), hatype}
	}
	if len(tr.kept) < traceKeep {
		tr.kept = append(tr.kept, p)
		return
	}
	tr.kept[tr.next] = p
	tr.next = (tr.next + 1) % traceKeep
}

// stop ends the reading and gives everything back but what was kept. flush: the
// packets of the last moment are wanted too.
func (tr *trace) stop(flush bool) {
	tr.once.Do(func() {
		tr.flush.Store(flush)
		unix.Write(tr.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		tr.running.Wait()
		tr.nameLinks()
		tr.close()
	})
}

func (tr *trace) close() {
	if tr.ring != nil {
		unix.Munmap(tr.ring)
	}
	for _, fd := range []int{tr.fd, tr.wake} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (tr *trace) nameLinks() {
	h, err := tr.ns.Netlink()
	if err != nil {
		return
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return
	}
	for _, l := range links {
		if known, ok := tr.links[int32(l.Attrs().Index)]; ok {
			known.name = l.Attrs().Name
			tr.links[int32(l.Attrs().Index)] = known
		}
	}
}
