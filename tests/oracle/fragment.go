// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"
	"slices"
)

// datagramKey: RFC 791 section 3.2, RFC 8200 section 4.5.
type datagramKey struct {
	src, dst netip.Addr
	id, zone uint32
	proto    uint8 // IPv4
}

type parkedKey struct {
	datagramKey
	start int
}

// fate is what becomes of a datagram's later fragments.
type fate int

const (
	early     fate = iota // the first one has not come
	unfit                 // and those that came do not make one datagram that can be followed
	flowing               // they follow the first one's flow
	hostsOwn              // the host's, or of no flow: they go the way of the first
	condemned             // dropped
)

type piece struct{ start, end int }

type datagram struct {
	fate   fate
	tuple  Tuple
	tick   uint32
	pieces []piece
	total  int // 0: the last one has not come
}

const (
	maxPieces, maxParked = 64, 2048
	fragmentTicks        = 30
)

// followed: others stay on their network. IPv6's later fragments need not show their protocol.
func (w *work) followed() bool {
	return w.p.six || slices.Contains([]uint8{tcp, udp, icmp4, sctp}, w.p.proto)
}

func (w *work) datagramKey() datagramKey {
	p := &w.p
	k := datagramKey{src: p.src, dst: p.dst, id: p.id, zone: w.zone}
	if !p.six {
		k.proto = p.proto
	}
	return k
}

func (w *work) datagram() *datagram {
	d := w.datagrams[w.datagramKey()]
	if d == nil || w.Now-d.tick > fragmentTicks {
		return nil
	}
	return d
}

// record notes that a fragment has come. ok: it can be of the datagram; again: it was there;
// complete: it was the last that was missing (RFC 5722, RFC 3128).
func (d *datagram) record(p *packet) (ok, complete bool) {
	is := piece{p.at, p.at + p.length}
	for _, other := range d.pieces {
		if !p.more && other.end > is.end {
			return false, false
		}
	}
	for _, other := range d.pieces {
		if is == other {
			return true, false
		}
		if is.start < other.end && is.end > other.start {
			return false, false
		}
	}
	if len(d.pieces) == maxPieces || d.total > 0 && (is.end > d.total || !p.more) {
		return false, false
	}
	d.pieces = append(d.pieces, is)
	if !p.more {
		d.total = is.end
	}
	got := 0
	for _, piece := range d.pieces {
		got += piece.end - piece.start
	}
	return true, d.total > 0 && got == d.total
}

// firstFragment: it was treated as a packet of its own, and the others share its fate. What the
// host gets, it judges itself, and it has those that came early.
func (w *work) firstFragment(v Verdict) Verdict {
	d := w.datagram()
	if d != nil && d.fate == early && v == Pass {
		d.fate = hostsOwn
		if _, complete := d.record(&w.p); complete {
			delete(w.datagrams, w.datagramKey())
		}
		return v
	}
	n := &datagram{tuple: w.tupleOf(), tick: w.Now, fate: flowing}
	switch {
	case v == Pass || w.p.kind != query:
		n.fate = hostsOwn
	case v == Drop || w.refused:
		n.fate = condemned
	}
	if d != nil && d.fate != early && v != Pass {
		if d.fate == flowing && d.tuple == n.tuple {
			if ok, _ := d.record(&w.p); ok {
				return v // once more
			}
		}
		// Another first one, with other ports or of another length.
		d.fate = condemned
		return w.drop(fragmentReason)
	}
	if d != nil && d.fate == early && v == Redirect && !w.refused {
		w.replay(d)
	}
	n.record(&w.p)
	w.datagrams[w.datagramKey()] = n
	return v
}

// replay puts the fragments that came too early back into the device they came by.
func (w *work) replay(d *datagram) {
	if len(w.out) <= etherLen || len(w.out)-etherLen > maxParked {
		return // there is no room to keep the packet itself meanwhile
	}
	for _, piece := range d.pieces {
		key := parkedKey{w.datagramKey(), piece.start}
		if b, ok := w.parked[key]; ok {
			frame := string(w.p.dstMAC[:]) + string(w.p.srcMAC[:]) + string(w.out[12:14]) + b
			w.answer.Sent = append(w.answer.Sent, call{way: wayCopyIn, ifindex: w.a.Ifindex, copied: frame})
		}
		delete(w.parked, key)
	}
}

// laterFragment follows the first one, or waits for it: the verdict is early then.
func (w *work) laterFragment(v Verdict) Verdict {
	p := &w.p
	d := w.datagram()
	if d == nil || d.fate == early || d.fate == unfit {
		// What the host gets all the same is no drop.
		if !w.park(d) && v == Drop {
			w.drop(fragmentReason)
		}
		return v
	}
	switch d.fate {
	case hostsOwn:
		if _, complete := d.record(p); complete {
			delete(w.datagrams, w.datagramKey())
		}
		return miss
	case condemned:
		return w.drop(fragmentReason)
	}
	ok, complete := d.record(p)
	if !ok {
		d.fate = condemned
		return w.drop(fragmentReason)
	}
	if complete {
		delete(w.datagrams, w.datagramKey())
	}
	entry := w.find(d.tuple)
	if entry == nil || entry.Verdict == toStack || w.stale(entry) != none {
		return w.drop(noFlow)
	}
	f := w.seen(entry)
	switch {
	case f.Flags&hop != 0 && p.ttl <= 1:
		return w.drop(ttlExceeded)
	case w.tooLong(f, p.l2):
		return w.drop(tooBig)
	case f.Flags&(toIPv4|toIPv6) != 0:
		return w.drop(unsupported)
	}
	w.readdress(f, f.Src, f.Dst)
	return w.dispatch(f, p.six)
}

// park keeps the packet until the first fragment of its datagram comes, if it can.
func (w *work) park(d *datagram) bool {
	p := &w.p
	b := w.a.Frame[p.l2:]
	if len(b) > maxParked {
		return false
	}
	if d == nil {
		d = &datagram{tick: w.Now}
		w.datagrams[w.datagramKey()] = d
	}
	if d.fate == unfit {
		return false
	}
	if ok, _ := d.record(p); !ok {
		d.fate = unfit
		return false
	}
	w.parked[parkedKey{w.datagramKey(), p.at}] = string(b)
	return true
}
