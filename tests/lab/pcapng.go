// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// pcapDirVar says where the packets of failed tests go; without it they go to the
// directory pcap beside the test, which git ignores.
const pcapDirVar = "BPFNET_PCAP_DIR"

// writeTraces is for a test that failed.
func (l *Lab) writeTraces(t testing.TB) {
	l.mu.Lock()
	traces := slices.Clone(l.traces)
	l.mu.Unlock()
	if len(traces) == 0 {
		return
	}
	path, err := pcapPath(t.Name())
	if err != nil {
		t.Logf("lab: packets: %v", err)
		return
	}
	packets, err := writePcapng(path, traces)
	if err != nil {
		t.Logf("lab: packets: %v", err)
		return
	}
	t.Logf("lab: the last %d packets are in %s", packets, path)
}

func pcapPath(test string) (string, error) {
	dir, err := os.Getenv(pcapDirVar), error(nil)
	ours := dir == ""
	if ours {
		if dir, err = filepath.Abs("pcap"); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if ours {
		if err := os.WriteFile(filepath.Join(dir, ".gitignore"), []byte("*\n"), 0o644); err != nil {
			return "", err
		}
	}
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune(`/\: `, r) {
			return '_'
		}
		return r
	}, test)
	return filepath.Join(dir, name+".pcapng"), nil
}

// ngWriter writes one file with an interface for each device of each namespace.
type ngWriter struct {
	f   *os.File
	w   *pcapgo.NgWriter // made with the first interface
	ids map[ngKey]int
}

type ngKey struct {
	tr      *trace
	ifindex int32
}

func writePcapng(path string, traces []*trace) (packets int, err error) {
	type owned struct {
		tr *trace
		tracedPacket
	}
	var all []owned
	for _, tr := range traces {
		tr.stop(true)
		for _, p := range tr.kept {
			all = append(all, owned{tr, p})
		}
	}
	slices.SortStableFunc(all, func(a, b owned) int { return a.when.Compare(b.when) })

	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	w := &ngWriter{f: f, ids: make(map[ngKey]int)}
	for _, p := range all {
		if err := w.write(p.tr, p.tracedPacket); err != nil {
			return 0, err
		}
	}
	if w.w == nil {
		return 0, nil
	}
	return len(all), w.w.Flush()
}

func (w *ngWriter) write(tr *trace, p tracedPacket) error {
	key := ngKey{tr, p.ifindex}
	id, known := w.ids[key]
	if !known {
		var err error
		link := tr.links[p.ifindex]
		intf := pcapgo.NgInterface{Name: tr.name + ":" + link.name, LinkType: linkType(link.hatype),
			SnapLength: traceSnap, TimestampResolution: 9}
		if w.w == nil {
			w.w, err = pcapgo.NewNgWriterInterface(w.f, intf, pcapgo.DefaultNgWriterOptions)
		} else {
			id, err = w.w.AddInterface(intf)
		}
		if err != nil {
			return err
		}
		w.ids[key] = id
	}
	direction := pcapgo.NgEpbFlagDirectionInbound
	if p.out {
		direction = pcapgo.NgEpbFlagDirectionOutbound
	}
	info := gopacket.CaptureInfo{Timestamp: p.when, CaptureLength: len(p.data), Length: p.length, InterfaceIndex: id}
	return w.w.WritePacketWithOptions(info, p.data, pcapgo.NgPacketOptions{Flags: &pcapgo.NgEpbFlags{Direction: direction}})
}

// linkType of a device's kind: tun has no Ethernet header.
func linkType(hatype uint16) layers.LinkType {
	if hatype == unix.ARPHRD_ETHER || hatype == unix.ARPHRD_LOOPBACK {
		return layers.LinkTypeEthernet
	}
	return layers.LinkTypeRaw
}
