// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"github.com/bpfnet/bpfnet/loader"
)

// Links say who may talk although icc is off. Every entry names a rule that
// Rules.SetLink made.
type Links struct {
	table table[loader.BPFLinkKey, uint32]
}

// Link is one entry: client may reach port of server. Port 0 and proto 0 let
// the two resolve each other (ARP, ND).
type Link struct {
	Client, Server uint32 // slots
	Proto          Proto
	Port           uint16
}

func (l *Links) Set(k Link, rule uint32) error { return l.table.put(k.wire(), rule) }

// Delete is fine with an entry that is not there.
func (l *Links) Delete(k Link) error { return l.table.del(k.wire()) }

// List is all entries, with their rules.
func (l *Links) List() (map[Link]uint32, error) {
	list := make(map[Link]uint32)
	err := l.table.each(func(w loader.BPFLinkKey, rule uint32) error {
		list[Link{w.Client, w.Server, Proto(w.Proto), fromBE16(w.Port)}] = rule
		return nil
	})
	return list, err
}

func (k Link) wire() loader.BPFLinkKey {
	return loader.BPFLinkKey{Client: k.Client, Server: k.Server, Port: toBE16(k.Port), Proto: uint8(k.Proto)}
}
