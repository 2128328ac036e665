// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"

	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/maps"
)

// reap finishes a container whose process or namespace is gone although nobody
// has said so: whoever waited for it was killed. It says whether it did.
func (o *op) reap(id string) (bool, error) {
	c, err := containerByID(o.tx, id)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil || c.State == StateExited || o.up(c) {
		return false, err
	}
	return true, o.finishUnseen(c)
}

// Settle records the end of a container's command of which nobody has told, and takes its
// network down; one that runs, or whose end is recorded, is left alone. ErrNotFound.
func (m *Manager) Settle(id string) error {
	return m.change(notFound("No such container: %s", id), func(o *op) error {
		_, err := o.reap(id)
		return err
	})
}

// finishUnseen finishes a container of whose end nobody has told.
func (o *op) finishUnseen(c *Container) error {
	if !c.Attached {
		c.ExitCode = exitUnseen
	}
	return o.finish(c)
}

// reapHolders reaps the containers that host ports lead to. It looks at all
// publications: only a conflict is worth that.
func (o *op) reapHolders(want maps.Binding) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	list, err := t.Ports.List()
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, b := range list {
		if !overlap(b, want) {
			continue
		}
		pub, ok, err := t.Rules.Publication(b.Rule)
		if err != nil {
			return err
		}
		for _, slot := range []uint32{pub.Endpoint4, pub.Endpoint6} {
			rec, found, err := store.Get[slotRecord](o.tx, bucketSlots, slotKey(slot))
			if err != nil {
				return err
			}
			if !ok || !found || seen[rec.Container] {
				continue
			}
			seen[rec.Container] = true
			if _, err := o.reap(rec.Container); err != nil {
				return err
			}
		}
	}
	return nil
}

// overlap says whether two bindings can be in each other's way.
func overlap(a, b maps.Binding) bool {
	return a.Proto == b.Proto && a.Addr.Is4() == b.Addr.Is4() &&
		(a.Addr == b.Addr || a.Addr.IsUnspecified() || b.Addr.IsUnspecified()) &&
		int(a.First) < int(b.First)+b.Count && int(b.First) < int(a.First)+a.Count
}
