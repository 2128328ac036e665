// SPDX-License-Identifier: Apache-2.0

// Package control is the control plane: it keeps what the user asked for in the
// store and makes the kernel match it.
//
// Every command is one operation (op): it holds the store's lock, plans and
// works in one transaction, and takes back what it did when a step fails. A
// file marks the time in which the kernel may be half way: whoever finds it
// left behind reconciles first.
package control

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/datapath/bpf"
	"github.com/bpfnet/bpfnet/control/store"
)

// DefaultRoot is where the store is when Options.Root is empty.
const DefaultRoot = "/var/lib/bpfnet"

// DefaultBPFFS is where pins are when Options.BPFFS is empty.
const DefaultBPFFS = bpf.DefaultPins

// Buckets of the store. Keys with several parts have them separated by "/".
const (
	bucketHost         = "host"          // "host": hostRecord
	bucketNetworks     = "networks"      // ID: Network
	bucketNetworkNames = "network-names" // name: ID
	bucketContainers   = "containers"    // ID: Container
	bucketNames        = "names"         // name: container ID
	bucketNumbers      = "numbers"       // kind: numbers
	bucketAddresses    = "addresses"     // network/address: container ID
	bucketMembers      = "members"       // network/container: slot, of endpoints that are up
	bucketSlots        = "slots"         // slot: slotRecord
	bucketPorts        = "ports"         // container/number: portBatch
	bucketLinks        = "links"         // client/target: linkRecord, of links in force
	bucketLinkedBy     = "linked-by"     // target/client: true, of all links
	bucketHosts        = "hosts"         // container: lines of its hosts file that are ours
	bucketNetns        = "netns"         // cookie: container ID
	bucketDriver       = "driver"        // network/endpoint: driverRecord
	bucketPath         = "datapath"      // the packets' path's own
)

var allBuckets = []string{
	bucketHost, bucketNetworks, bucketNetworkNames, bucketContainers, bucketNames, bucketNumbers, bucketAddresses,
	bucketMembers, bucketSlots, bucketPorts, bucketLinks, bucketLinkedBy, bucketHosts, bucketNetns, bucketDriver, bucketPath,
}

// Manager works on one host. It is opened per command; several processes may
// have one at once. Its methods are for one goroutine at a time.
type Manager struct {
	o    Options
	root string

	switches bool // Options.Datapath may differ from the host's: Init changes it
}

// Open prepares to work on a host and changes nothing. ErrNotRoot when the
// caller is not root.
func Open(o Options) (*Manager, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if o.Root == "" {
		o.Root = DefaultRoot
	}
	for _, p := range []*string{&o.Root, &o.BPFFS, &o.Netns, &o.Cgroup} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, err
		}
		*p = abs
	}
	if _, ok := kinds[o.Datapath]; !ok && o.Datapath != "" {
		return nil, invalid("datapath %q: %s", o.Datapath, strings.Join(slices.Sorted(maps.Keys(kinds)), " or "))
	}
	return &Manager{o: o, root: o.Root}, nil
}

// Close ends the use of the Manager; nothing of the host changes.
func (m *Manager) Close() error { return nil }

// What is below the root directory.
const (
	storeFile     = "store.db"
	dirtyFile     = "dirty" // there while a command works on the kernel
	dirNetns      = "netns"
	dirContainers = "containers"
)

func (m *Manager) storePath() string { return filepath.Join(m.root, storeFile) }

func (m *Manager) dirtyPath() string { return filepath.Join(m.root, dirtyFile) }

// warn hands a line to the user that is no error.
func (m *Manager) warn(format string, a ...any) {
	if m.o.Warn != nil {
		m.o.Warn(fmt.Sprintf(format, a...))
	}
}

// openStore takes the store's lock, and makes the store if it is missing. While this
// command waited for the lock, uninstall may have removed the file: then the one that
// is there now is taken.
func (m *Manager) openStore() (*store.DB, error) { return m.takeStore(true) }

// existingStore is openStore for who has nothing to do without one: nil then.
func (m *Manager) existingStore() (*store.DB, error) { return m.takeStore(false) }

func (m *Manager) takeStore(make bool) (*store.DB, error) {
	path := m.storePath()
	for {
		before, _ := os.Stat(path)
		if before == nil && !make {
			return nil, nil
		}
		db, err := store.Open(path)
		if err != nil {
			return nil, err
		}
		after, err := os.Stat(path)
		if err == nil && (before == nil || os.SameFile(before, after)) {
			if before != nil {
				return db, nil
			}
			// New: somebody else may have made it, and removed it again.
			if again, err := os.Stat(path); err == nil && os.SameFile(after, again) {
				return db, nil
			}
		}
		if err := db.Close(); err != nil {
			return nil, err
		}
	}
}

// makeRoot makes the root directory for root's eyes only. One in which others have files
// is neither closed to them nor, by uninstall, emptied: it is refused.
func (m *Manager) makeRoot() error {
	if err := os.MkdirAll(m.root, 0o700); err != nil {
		return fmt.Errorf("root directory %s: %w", m.root, err)
	}
	if _, err := os.Stat(m.storePath()); errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(m.root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("root directory %s: %w", m.root, err)
		}
		for _, e := range entries {
			switch e.Name() {
			case storeFile, dirtyFile, dirNetns, dirContainers, "lost+found":
			default:
				return invalid("root directory %s: has files that are not bpfnet's (%.40q): name one that is empty, or not there yet", m.root, e.Name())
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(m.root, &st); err != nil {
		return fmt.Errorf("root directory %s: %w", m.root, err)
	}
	if st.Uid != 0 {
		return fmt.Errorf("root directory %s: owned by user %d, not by root", m.root, st.Uid)
	}
	if st.Mode&0o077 != 0 {
		return os.Chmod(m.root, 0o700)
	}
	return nil
}

// view runs fn on what the store says, beside other readers. ok is false when
// nobody has set this host up: fn did not run.
func (m *Manager) view(fn func(*op) error) (ok bool, err error) {
	db, err := store.OpenRead(m.storePath())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer db.Close()
	err = db.View(func(tx *store.Tx) error {
		h, found, err := store.Get[hostRecord](tx, bucketHost, "host")
		if err != nil || !found {
			return err
		}
		if err := m.sameHost(&h); err != nil {
			return err
		}
		o := &op{m: m, tx: tx, host: &h}
		defer o.close()
		ok = true
		return fn(o)
	})
	return ok, err
}
