// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
)

// op is one command at work: a transaction, the host it works on and what to
// take back if it fails.
type op struct {
	m     *Manager
	tx    *store.Tx
	host  *hostRecord
	undo  undoList
	steps []string // what was done, a line each

	// The kernel has lost something that the store would still want if the
	// transaction does not commit: a failure is mended by reconcile.
	rebuild     bool
	reconciling bool
	dropFlows   bool           // what cannot be carried over may end
	after       []func() error // once it has committed
	gone        bool           // uninstalled: then the root directory goes, too

	ns   *netns.NS
	dp   datapath.Datapath
	shut []func() error

	// Read once: what the host has.
	boot    string
	view    *hostView
	devices []netlink.Link
	addrs   map[netip.Addr]bool
	binds   map[string]netip.Addr // default binding addresses by network
	half    map[string]bool       // see halfLaid

	newHost  bool // reconcile after a boot, or in a new namespace
	problems []string
	recorded map[string]bool // problems that a record of the store has
}

// update runs fn as one command. Before it, the host is set up if it never was,
// and reconciled if the last command was killed or the machine was booted. When
// fn or the commit fails, everything that was done is taken back.
func (m *Manager) update(fn func(*op) error) error { return m.updateWith(nil, fn) }

// updateWith is update with the flags of init, for a host that has to be set up.
func (m *Manager) updateWith(flags *Config, fn func(*op) error) error {
	found, _ := os.Stat(m.root)
	_, lacks := os.Stat(m.storePath())
	if err := m.makeRoot(); err != nil {
		return err
	}
	db, err := m.openStore()
	if err != nil {
		return err
	}
	defer db.Close()
	h, err := hostOf(db)
	if err != nil {
		return err
	}
	if h == nil {
		err = m.run(db, func(o *op) error {
			if err := o.initHost(flags); err != nil {
				return err
			}
			return fn(o)
		})
		if err != nil && errors.Is(lacks, fs.ErrNotExist) {
			_ = m.leaveRoot(found) // the error is the news
		}
		return err
	}
	if err := m.settle(db, h); err != nil {
		return err
	}
	return m.run(db, fn)
}

// change is update for what must exist before: on a host that nobody has set up
// the answer is missing, and nothing is touched.
func (m *Manager) change(missing error, fn func(*op) error) error {
	db, err := m.existingStore()
	if err != nil {
		return err
	}
	if db == nil {
		return missing
	}
	defer db.Close()
	h, err := hostOf(db)
	if err != nil {
		return err
	}
	if h == nil {
		return missing
	}
	if err := m.settle(db, h); err != nil {
		return err
	}
	return m.run(db, fn)
}

// run is one transaction with its kernel steps.
func (m *Manager) run(db *store.DB, fn func(*op) error) error {
	o, err := m.try(db, fn)
	if err != nil && o.rebuild {
		if _, err2 := m.try(db, (*op).reconcile); err2 != nil {
			return errors.Join(err, fmt.Errorf("taking it back: %w", err2))
		}
	}
	return err
}

func (m *Manager) try(db *store.DB, fn func(*op) error) (*op, error) {
	o := &op{m: m}
	defer o.close()
	err := db.Update(func(tx *store.Tx) error {
		o.tx = tx
		h, found, err := store.Get[hostRecord](tx, bucketHost, "host")
		if err != nil {
			return err
		}
		if found {
			o.host = &h
		}
		if err := m.markDirty(); err != nil {
			return err
		}
		if err := fn(o); err != nil {
			return err
		}
		return o.flush()
	})
	o.tx = nil
	if err == nil {
		for _, f := range o.after {
			err = errors.Join(err, f())
		}
		if o.gone {
			return o, errors.Join(err, m.removeRoot())
		}
		return o, errors.Join(err, m.markClean())
	}
	if o.reconciling {
		return o, err // its steps are not taken back, but repeated
	}
	undoErr := o.undo.run()
	if undoErr != nil {
		err = errors.Join(err, fmt.Errorf("taking it back: %w", undoErr))
	}
	if undoErr != nil || o.rebuild {
		return o, err // the mark stays: whoever comes next reconciles
	}
	return o, errors.Join(err, m.markClean())
}

// settle makes sure that the kernel is in the state that the store describes.
func (m *Manager) settle(db *store.DB, h *hostRecord) error {
	if err := m.sameHost(h); err != nil {
		return err
	}
	why, err := m.unsettled(h)
	if err != nil || why == "" {
		return err
	}
	o, err := m.try(db, (*op).reconcile)
	for _, p := range o.problems {
		m.warn("%s", p)
	}
	return err
}

// hostOf is the record of the host; nil when it was never set up.
func hostOf(db *store.DB) (*hostRecord, error) {
	var h hostRecord
	var found bool
	err := db.View(func(tx *store.Tx) (err error) {
		h, found, err = store.Get[hostRecord](tx, bucketHost, "host")
		return err
	})
	if err != nil || !found {
		return nil, err
	}
	return &h, nil
}

// did notes a step for the user.
func (o *op) did(format string, a ...any) {
	o.steps = append(o.steps, fmt.Sprintf(format, a...))
}

// hostNetns is the namespace that plays the host.
func (o *op) hostNetns() (*netns.NS, error) {
	if o.ns == nil {
		ns, err := openHostNetns(o.host.Netns)
		if err != nil {
			return nil, err
		}
		o.ns = ns
		o.shut = append(o.shut, ns.Close)
	}
	return o.ns, nil
}

func (o *op) close() {
	for i := len(o.shut) - 1; i >= 0; i-- {
		_ = o.shut[i]()
	}
	o.shut = nil
}

func openHostNetns(path string) (*netns.NS, error) {
	if path == "" {
		return netns.Current()
	}
	return netns.Open(path)
}

// markDirty leaves a mark that a kill does not take away. It need not reach the
// disk: after a power cut the pins are gone, which says the same.
func (m *Manager) markDirty() error {
	f, err := os.OpenFile(m.dirtyPath(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	return f.Close()
}

func (m *Manager) markClean() error {
	if err := removeIfThere(m.dirtyPath()); err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	return nil
}

// note adds a line to the mark: what a kill would leave that does not show by itself.
func (o *op) note(line string) error {
	f, err := os.OpenFile(o.m.dirtyPath(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		_ = f.Close()
		return fmt.Errorf("mark: %w", err)
	}
	return f.Close()
}

// notes are the lines that the mark has.
func (m *Manager) notes() map[string]bool {
	raw, _ := os.ReadFile(m.dirtyPath())
	lines := make(map[string]bool)
	for line := range strings.Lines(string(raw)) {
		lines[strings.TrimSpace(line)] = true
	}
	return lines
}

// Lines of the mark about a cable by its host end: it is being laid, and has everything.
const (
	noteCable = "cable "
	noteLaid  = "laid "
)

// halfLaid says whether who laid a cable was killed on the way.
func (o *op) halfLaid(hostIf string) bool {
	if o.half == nil {
		o.half = make(map[string]bool)
		raw, _ := os.ReadFile(o.m.dirtyPath())
		for line := range strings.Lines(string(raw)) {
			if name, ok := strings.CutPrefix(line, noteCable); ok {
				o.half[strings.TrimSpace(name)] = true
			} else if name, ok := strings.CutPrefix(line, noteLaid); ok {
				delete(o.half, strings.TrimSpace(name))
			}
		}
	}
	return o.half[hostIf]
}

// ignore drops an error of one kind.
func ignore(err, kind error) error {
	if errors.Is(err, kind) {
		return nil
	}
	return err
}
