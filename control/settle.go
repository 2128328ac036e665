// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/control/ports"
	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/maps"
)

// settlePorts makes the kernel's publications and rules those of the store.
func (o *op) settlePorts(live []*Container) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	wanted := make(map[uint32]bool) // rules
	type opening struct {
		c *Container
		b *portBatch
		d door
	}
	var doors []opening
	var want ports.Set
	for _, c := range live {
		_, batches, err := o.batches(c.ID)
		if err != nil {
			return err
		}
		for _, b := range batches {
			for _, d := range b.Doors {
				doors = append(doors, opening{c, b, d})
				wanted[d.Rule] = true
				if d.Proto != maps.SCTP && !c.Held {
					want.AddRange(ports.Range{First: d.Host, Last: d.Host + uint16(d.Count-1)})
				}
			}
		}
	}
	if err := o.wantedLinks(wanted); err != nil {
		return err
	}
	if err := o.dropRules(t, wanted); err != nil {
		return err
	}
	for _, x := range doors {
		o.attempt("container "+x.c.Name+": "+x.b.Specs[x.d.Spec], func() error {
			pub, err := publicationOf(x.c, x.b, x.d)
			if err != nil {
				return err
			}
			return o.openDoor(x.b, x.d, pub)
		})
	}
	if _, err := keepNumbers(o.tx, numRules, wanted); err != nil {
		return err
	}
	v, err := o.hostView()
	if err != nil {
		return err
	}
	rec, _, err := store.Get[reservedRecord](o.tx, bucketHost, keyReserved)
	if err != nil {
		return err
	}
	if o.newHost {
		rec.Mine = ports.Set{}
	}
	return o.writeReserved(v, want, rec.Mine)
}

// publicationOf is a door as the programs are to see it.
func publicationOf(c *Container, b *portBatch, d door) (maps.Publication, error) {
	specs, err := b.parsed()
	if err != nil {
		return maps.Publication{}, err
	}
	pub := c.publication(d)
	pub.Sources = specs[d.Spec].From
	return pub, nil
}

// publication is a door without regard to who may use it.
func (c *Container) publication(d door) maps.Publication {
	pub := maps.Publication{HostPort: d.Host, Port: d.Port, Held: c.Held}
	if ep := gatewayEndpoint(c, false); ep != nil {
		pub.Endpoint4 = ep.Slot
	}
	if ep := gatewayEndpoint(c, true); ep != nil {
		pub.Endpoint6 = ep.Slot
	}
	return pub
}

func (o *op) wantedLinks(wanted map[uint32]bool) error {
	return store.Each(o.tx, bucketLinks, func(_ string, rec linkRecord) error {
		for _, r := range rec.Rules {
			wanted[r.Rule] = true
		}
		return nil
	})
}

// dropRules removes what leads to rules that nobody wants, then the rules.
func (o *op) dropRules(t *datapath.Tables, wanted map[uint32]bool) error {
	if err := t.Ports.Recount(); err != nil {
		return err
	}
	bindings, err := t.Ports.List()
	if err != nil {
		return err
	}
	for _, b := range bindings {
		if wanted[b.Rule] {
			continue
		}
		if err := t.Ports.Unpublish(b); err != nil {
			return err
		}
		o.did("port %s: closed, nobody's", netip.AddrPortFrom(b.Addr, b.First))
	}
	links, err := t.Links.List()
	if err != nil {
		return err
	}
	for l, rule := range links {
		if !wanted[rule] {
			if err := t.Links.Delete(l); err != nil {
				return err
			}
		}
	}
	pubs, linkRules, err := t.Rules.List()
	if err != nil {
		return err
	}
	for _, rule := range append(pubs, linkRules...) {
		if !wanted[rule] {
			if err := t.Rules.Clear(rule); err != nil {
				return err
			}
		}
	}
	return nil
}
