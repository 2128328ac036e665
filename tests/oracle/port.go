// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

// inner is a UDP socket of a container, behind an address of the host.
type inner struct {
	socket netip.AddrPort
	outer  netip.Addr
	zone   uint32
}

// mapping is the host's port that it has (RFC 4787 REQ-1).
type mapping struct {
	port uint16
	seen uint32
}

// owner is who has a port of the host's for himself.
type owner struct {
	inner    inner
	endpoint Ref
	seen     uint32
}

const randomTries, fewPorts = 16, 1024

func (m *Model) fresh(seen uint32) bool {
	return int32(m.Now-seen) <= int32(m.timeout(loader.BPFTimeoutKindTIMEOUT_UDP))
}

// pool lists the ports of masquerade.
func (m *Model) pool() (ports []uint16) {
	for _, r := range m.Settings.Pool {
		for p := int(r.First); p <= int(r.Last); p++ {
			ports = append(ports, uint16(p))
		}
	}
	return ports
}

// choice is how far a search has come: random ports and those in turn, then those of who is
// leaving (both sides have closed), or the spare ones of half-open flows that are silent.
type choice uint8

const (
	unused choice = iota
	leaving
	spare
)

const spareTicks = 8

// free says whether the flow could have a port: nobody lives on it.
func (w *work) free(port uint16, how choice) (Tuple, *Flow, bool) {
	f := w.flow
	f.SPort = port
	other := twin(w.tuple, &f)
	g := w.find(other)
	if g == nil {
		return other, nil, true
	}
	return other, g, g.Flags&listed == 0 &&
		(w.over(other, g) || how == leaving && g.State == stateClosing || how == spare && w.silent(other, g, spareTicks))
}

// enterAt enters the flow with a port.
func (w *work) enterAt(port uint16, how choice, owner uint32, world bool) loader.BPFReason {
	other, g, ok := w.free(port, how)
	if !ok {
		return noPort
	}
	if g != nil {
		w.end(other, g)
	}
	if world && w.hostHas(other) {
		return noPort
	}
	w.flow.SPort = port
	return w.enter(owner)
}

// hostHas says whether a packet of this tuple would reach a socket of the host.
func (w *work) hostHas(t Tuple) bool {
	any, _ := w.Sockets.Has(t.Proto, netip.AddrPortFrom(t.Dst, t.DPort), netip.AddrPortFrom(t.Src, t.SPort))
	return any
}

// gatewayPort gives the flow a port of the gateway's, in turn. With sctp they stay as they are, and
// an echo reply's identifier is not its sender's to choose.
func (w *work) gatewayPort(owner uint32) loader.BPFReason {
	if (w.p.proto == icmp4 || w.p.proto == icmp6) && w.p.dport != 0 {
		return noPort
	}
	if w.p.proto == sctp {
		return w.enterAt(w.p.sport, unused, owner, false)
	}
	ports := w.pool()
	start := w.cursor
	w.cursor++
	if len(ports) == 0 {
		return noPort
	}
	for n := range uint32(min(randomTries+len(ports), fewPorts)) {
		at := start + n
		if n == 0 && w.p.proto == tcp {
			at = uint32(w.p.sport) + w.portOffset()
		}
		how := unused
		if n >= randomTries {
			how = leaving
		}
		reason := w.enterAt(ports[at%uint32(len(ports))], how, owner, false)
		if reason != noPort {
			return reason
		}
	}
	return noPort
}

// secret is what the test put in the place of the programs' own.
const secret = 0x5eed

// portOffset is what is between a TCP client's port and the one that it is given first
// (RFC 6056 section 3.3.3).
func (w *work) portOffset() uint32 {
	hash := uint32(secret)
	mix := func(word uint32) {
		hash = (hash ^ word) * 0x9e3779b1
		hash ^= hash >> 15
	}
	from, to := w.p.src.As16(), w.flow.Dst.As16()
	for i := 0; i < 16; i += 4 {
		mix(binary.NativeEndian.Uint32(from[i:]))
		mix(binary.NativeEndian.Uint32(to[i:]))
	}
	mix(uint32(w.flow.DPort>>8 | w.flow.DPort<<8)) // as on the wire
	return hash
}

// worldPort gives the flow a port of the host's. Which one is masquerade's choice: it is read from
// its answer, and has to be one that it was free to take.
func (w *work) worldPort(owner uint32) loader.BPFReason {
	if w.p.proto == sctp {
		id, ok := w.Ports[Port{w.p.six, sctp, w.p.sport, w.flow.Src}]
		if !ok {
			id = w.Ports[Port{Six: w.p.six, Proto: sctp, Port: w.p.sport}]
		}
		if r := w.Rules[id]; id != 0 && (r == nil || r.server(w.p.six) != w.flow.From.ID) {
			return noPort
		}
		return w.enterAt(w.p.sport, unused, owner, true)
	}
	key := inner{netip.AddrPortFrom(w.p.src, w.p.sport), w.flow.Src, w.zone}
	if kept, ok := w.mappings[key]; ok && w.p.proto == udp && w.fresh(kept.seen) && !w.published(w.p.six, udp, kept.port) {
		reason := w.enterAt(kept.port, unused, owner, true)
		if reason == none {
			w.keep(key, kept.port, !w.taken(key, kept.port))
		}
		if reason != noPort {
			return reason
		}
	}
	// By now no port may be free, or the quota exhausted.
	open, how := map[uint16]bool{}, unused
	for _, how = range []choice{unused, spare} {
		for _, port := range w.pool() {
			w.flow.SPort = port
			if other, _, ok := w.free(port, how); ok && !w.published(w.p.six, w.p.proto, port) && !w.hostHas(other) {
				open[port] = true
			}
		}
		if len(open) > 0 {
			break
		}
	}
	if len(open) == 0 {
		return noPort
	}
	port, own, ok := w.Chose(w.tuple)
	switch {
	case !ok:
		// Refused for another reason, at whichever port: what had timed out there is gone.
		for _, p := range w.pool() {
			if other, g, _ := w.free(p, how); open[p] && g != nil && !w.Remembers(other) {
				w.end(other, g)
				port = p
			} else if open[p] && g == nil {
				port = p
			}
		}
	case !open[port]:
		w.wrong = fmt.Sprintf("port %d is not free for %v", port, w.tuple)
	}
	reason := w.enterAt(port, how, owner, true)
	if w.p.proto == udp && reason == none {
		// Beyond what the pool has ports are shared: they are nobody's for himself, then.
		if own && w.taken(key, port) {
			w.wrong = fmt.Sprintf("port %d is another socket's, not %v's", port, key.socket)
		}
		w.keep(key, port, own)
	}
	return reason
}

// taken says whether another socket has a port for itself.
func (w *work) taken(key inner, port uint16) bool {
	o, ok := w.owners[netip.AddrPortFrom(key.outer, port)]
	return ok && w.fresh(o.seen) && (o.inner.zone != key.zone || o.inner.socket != key.socket)
}

func (w *work) keep(key inner, port uint16, own bool) {
	w.mappings[key] = mapping{port, w.Now}
	if own {
		w.owners[netip.AddrPortFrom(key.outer, port)] = owner{key, w.flow.From, w.Now}
	}
}
