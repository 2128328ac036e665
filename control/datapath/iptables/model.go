// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/bpfnet/bpfnet/maps"
)

// What the datapath was told is kept as records: rules say less than that, and reading
// them back is slow. Keys of the records:
const (
	keyHost      = "host" // meta
	keyNetworks  = "n/"   // number: network
	keyEndpoints = "e/"   // slot: endpoint
	keyRules     = "r/"   // number: rule
	keyPages     = "p/"   // protocol/page/rule: true; which rules publish one of 256 ports
)

type network struct {
	maps.Network
	Device string `json:"device"`
}

type endpoint struct {
	maps.Endpoint
	Device string `json:"device"`
	Bridge string `json:"bridgeName"`
}

// rule is a publication or a link, and what names it.
type rule struct {
	Publication *maps.Publication `json:"publication,omitempty"`
	Link        bool              `json:"link,omitempty"`
	Bindings    []maps.Binding    `json:"bindings,omitempty"`
	Links       []maps.Link       `json:"links,omitempty"`
}

// item is a record that this command has looked at: as it was, and as it is to be.
type item[T any] struct{ was, now *T } // nil: none

func (i *item[T]) changed() bool { return !reflect.DeepEqual(i.was, i.now) }

// kind is all records of one kind. They are read one by one, until somebody asks for all.
type kind[T any] struct {
	p      *Path
	prefix string
	items  map[uint32]*item[T]
	all    bool
}

func newKind[T any](p *Path, prefix string) kind[T] {
	return kind[T]{p: p, prefix: prefix, items: make(map[uint32]*item[T])}
}

func (k *kind[T]) key(id uint32) string { return k.prefix + strconv.FormatUint(uint64(id), 10) }

func (k *kind[T]) item(id uint32) (*item[T], error) {
	if i := k.items[id]; i != nil {
		return i, nil
	}
	i := &item[T]{}
	if !k.all {
		var was T
		ok, err := k.p.host.Records().Get(k.key(id), &was)
		if err != nil {
			return nil, err
		}
		if ok {
			i.was, i.now = &was, &was
		}
	}
	k.items[id] = i
	return i, nil
}

// get is the record as it is to be; nil: none. It is not changed in place: see set.
func (k *kind[T]) get(id uint32) (*T, error) {
	i, err := k.item(id)
	if err != nil {
		return nil, err
	}
	return i.now, nil
}

func (k *kind[T]) set(id uint32, now *T) error {
	i, err := k.item(id)
	if err == nil {
		i.now = now
	}
	return err
}

// read reads all records.
func (k *kind[T]) read() error {
	if k.all {
		return nil
	}
	err := k.p.host.Records().Each(k.prefix, func(key string, decode func(any) error) error {
		id, err := strconv.ParseUint(strings.TrimPrefix(key, k.prefix), 10, 32)
		if err != nil {
			return fmt.Errorf("record %s: %w", key, err)
		}
		if k.items[uint32(id)] != nil {
			return nil
		}
		var was T
		if err := decode(&was); err != nil {
			return err
		}
		k.items[uint32(id)] = &item[T]{&was, &was}
		return nil
	})
	k.all = err == nil
	return err
}

// each is all records, as they are to be.
func (k *kind[T]) each(fn func(id uint32, now *T) error) error {
	if err := k.read(); err != nil {
		return err
	}
	for _, id := range sortedKeys(k.items) {
		if now := k.items[id].now; now != nil {
			if err := fn(id, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// write puts what has changed.
func (k *kind[T]) write() error {
	for id, i := range k.items {
		if !i.changed() {
			continue
		}
		var err error
		if i.now == nil {
			err = k.p.host.Records().Delete(k.key(id))
		} else {
			err = k.p.host.Records().Put(k.key(id), i.now)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settle makes what was written what was.
func (k *kind[T]) settle() {
	for _, i := range k.items {
		i.was = i.now
	}
}

// meta is what the datapath knows of the host.
type meta struct {
	Flavour  string            `json:"flavour"`
	Settings map[string]string `json:"settings,omitempty"` // of /proc/sys/net, as they were
	Bridges  map[string]calls  `json:"bridges,omitempty"`  // adopted bridges, as they were
	Router   bool              `json:"router,omitempty"`   // forwarding is on because of us
	Foreign  int               `json:"foreign,omitempty"`  // others' rules for what is forwarded, when it was turned on
	Sources  int               `json:"sources,omitempty"`  // publications with from=
	Pool     pool              `json:"pool,omitempty"`     // of masquerade
}

func (p *Path) meta() (*meta, error) {
	if p.about == nil {
		m := &meta{}
		if _, err := p.host.Records().Get(keyHost, m); err != nil {
			return nil, err
		}
		p.about = m
		p.before = clone(*m)
	}
	return p.about, nil
}

func clone(m meta) meta {
	raw, _ := json.Marshal(m)
	var c meta
	_ = json.Unmarshal(raw, &c)
	return c
}
