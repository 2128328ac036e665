// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/maps"
)

// portBatch is what one command published: the specs as they were given, and
// while the container's network is up the doors that they became. Batches, not
// doors, are records: publishing one more port does not read what is there.
type portBatch struct {
	Specs   []string       `json:"specs"`
	Derived bool           `json:"derived,omitempty"` // of -P: made anew by every start
	Binds   [][]netip.Addr `json:"binds,omitempty"`   // the sets of host addresses in Doors
	Doors   []door         `json:"doors,omitempty"`

	read []hostSpec // of Specs, once somebody has asked
}

// parsed is what the specs say.
func (b *portBatch) parsed() ([]hostSpec, error) {
	if b.read == nil {
		list, err := parseSpecs(b.Specs)
		if err != nil {
			return nil, err
		}
		b.read = list
	}
	return b.read, nil
}

// door is a range of host ports, on every address of its set, that leads to a container.
type door struct {
	Spec  int        `json:"s"` // index in Specs
	Bind  int        `json:"b"` // index in Binds
	Rule  uint32     `json:"r"`
	Proto maps.Proto `json:"t"`
	Host  uint16     `json:"h"` // first
	Port  uint16     `json:"p"` // first, in the container
	Count int        `json:"n"`
}

func batchKey(container string) string {
	return fmt.Sprintf("%s/%016x", container, time.Now().UnixNano())
}

// putSpecs remembers what a new container is to publish.
func (o *op) putSpecs(c *Container, specs []string) error {
	if len(specs) == 0 {
		return nil
	}
	return store.Put(o.tx, bucketPorts, batchKey(c.ID), portBatch{Specs: specs})
}

func (o *op) putBatch(key string, b *portBatch) error {
	if len(b.Specs) == 0 {
		return store.Delete(o.tx, bucketPorts, key)
	}
	return store.Put(o.tx, bucketPorts, key, b)
}

func (o *op) batches(container string) (keys []string, list []*portBatch, err error) {
	err = store.EachPrefix(o.tx, bucketPorts, container+"/", func(key string, b portBatch) error {
		keys, list = append(keys, key), append(list, &b)
		return nil
	})
	return keys, list, err
}

// specs is every -p of a container.
func (o *op) specs(container string) ([]string, error) {
	_, list, err := o.batches(container)
	var specs []string
	for _, b := range list {
		if !b.Derived {
			specs = append(specs, b.Specs...)
		}
	}
	return specs, err
}

func (o *op) dropSpecs(c *Container) error {
	keys, _, err := o.batches(c.ID)
	for _, key := range keys {
		if err := store.Delete(o.tx, bucketPorts, key); err != nil {
			return err
		}
	}
	return err
}

// raisePorts opens all doors of a container, with the host ports that they had
// last if these are in the batch still, and -P's.
func (o *op) raisePorts(c *Container) error {
	keys, batches, err := o.batches(c.ID)
	if err != nil {
		return err
	}
	explicit := make(map[string]bool)
	for i, b := range batches {
		if b.Derived {
			continue
		}
		if err := o.raiseBatch(c, b, b.Doors); err != nil {
			return err
		}
		if err := o.putBatch(keys[i], b); err != nil {
			return err
		}
		for _, d := range b.Doors {
			for n := range d.Count {
				explicit[protoPort{d.Proto, d.Port + uint16(n)}.String()] = true
			}
		}
	}
	if !c.PublishAll {
		return o.syncRouted(c, true)
	}
	all := &portBatch{Derived: true}
	for _, e := range c.Exposed {
		if !explicit[e] {
			all.Specs = append(all.Specs, e)
		}
	}
	var before []door
	for _, b := range batches {
		if b.Derived && slices.Equal(b.Specs, all.Specs) {
			before = b.Doors
		}
	}
	if err := o.raiseBatch(c, all, before); err != nil {
		return err
	}
	if err := o.putBatch(c.ID+"/all", all); err != nil {
		return err
	}
	return o.syncRouted(c, true)
}

// lowerPorts closes all doors of a container; the host ports stay in the batch
// for raisePorts in the same command, and are forgotten by forgetDoors.
func (o *op) lowerPorts(c *Container) error {
	keys, batches, err := o.batches(c.ID)
	if err != nil {
		return err
	}
	if err := o.syncRouted(c, false); err != nil {
		return err
	}
	for i, b := range batches {
		if len(b.Doors) == 0 {
			continue
		}
		o.rebuild = true
		var rules []uint32
		for _, d := range b.Doors {
			if err := o.closeDoor(b, d); err != nil {
				return err
			}
			rules = append(rules, d.Rule)
		}
		if err := giveNumbers(o.tx, numRules, rules...); err != nil {
			return err
		}
		if !c.Held {
			if err := o.release(b.Doors); err != nil {
				return err
			}
		}
		if err := o.hostPortsChanged(); err != nil {
			return err
		}
		if err := o.putBatch(keys[i], b); err != nil {
			return err
		}
	}
	return nil
}

// forgetDoors ends what lowerPorts closed: the next start chooses anew.
func (o *op) forgetDoors(c *Container) error {
	keys, batches, err := o.batches(c.ID)
	if err != nil {
		return err
	}
	for i, b := range batches {
		if b.Derived {
			b.Specs = nil
		}
		if len(b.Doors) == 0 && !b.Derived {
			continue
		}
		b.Doors, b.Binds = nil, nil
		if err := o.putBatch(keys[i], b); err != nil {
			return err
		}
	}
	return nil
}
