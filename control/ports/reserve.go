// SPDX-License-Identifier: Apache-2.0

package ports

// Reserve works out ip_local_reserved_ports: want are the published tcp and udp
// ports, mine what we added before, current what is there now, eph the range that
// the host's own connections take their ports from.
//
// next keeps whatever others reserved and has mineNext in addition: the ports of
// want within eph that are not reserved by others. With ours, at most half of eph
// is ever reserved (others' ports in eph count), so that the host never runs out;
// the ports beyond that stay as they are and complete is false. Ports that were
// ours stay before new ones come in.
func Reserve(want, mine, current Set, eph Range) (next, mineNext Set, complete bool) {
	var ephemeral Set
	ephemeral.AddRange(eph)
	others := current.Minus(&mine)
	inRange := others.Intersect(&ephemeral)
	wanted := want.Intersect(&ephemeral)
	wanted = wanted.Minus(&others)
	room := max(0, eph.Len()/2-inRange.Len())
	if wanted.Len() <= room {
		return others.Union(&wanted), wanted, true
	}
	kept := wanted.Intersect(&mine)
	fresh := wanted.Minus(&mine)
	for _, set := range []*Set{&kept, &fresh} {
		for port := range set.All() {
			if room == 0 {
				break
			}
			mineNext.Add(port)
			room--
		}
	}
	return others.Union(&mineNext), mineNext, false
}
