// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/store"
)

// Uninstall takes everything of ours down, running containers' endpoints
// included, and removes the store. Their processes go on. On a host that was never
// set up it does nothing.
func (m *Manager) Uninstall() error {
	return m.change(nil, (*op).uninstall)
}

func (o *op) uninstall() error {
	o.rebuild = true
	containers, err := o.allContainers()
	if err != nil {
		return err
	}
	for _, c := range containers {
		if err := o.lowerContainer(c); err != nil {
			return err
		}
	}
	networks, err := o.allNetworks()
	if err != nil {
		return err
	}
	for _, n := range networks {
		if err := o.removeNetwork(n); err != nil {
			return err
		}
	}
	if err := o.releaseAll(); err != nil {
		return err
	}
	if err := o.dropLeftovers(nil, nil); err != nil {
		return err
	}
	if err := o.path().Remove(); err != nil {
		return err
	}
	// Emptied, not only removed: a command may be waiting for this file's lock.
	for _, bucket := range allBuckets {
		err := store.Each(o.tx, bucket, func(key string, _ any) error {
			return store.Delete(o.tx, bucket, key)
		})
		if err != nil {
			return err
		}
	}
	o.gone = true
	return nil
}

// leaveRoot leaves the root directory as it was found, nil: not at all, and the store not made.
func (m *Manager) leaveRoot(found os.FileInfo) error {
	if found == nil {
		return m.removeRoot()
	}
	return errors.Join(removeIfThere(m.dirtyPath()), removeIfThere(m.storePath()), os.Chmod(m.root, found.Mode().Perm()))
}

// removeRoot removes what is ours below root, and root if nothing else is there. The store
// goes last: with it goes the lock, and the next command makes its own.
func (m *Manager) removeRoot() error {
	var errs []error
	for _, dir := range []string{dirNetns, dirContainers} {
		errs = append(errs, os.RemoveAll(filepath.Join(m.root, dir)))
	}
	errs = append(errs, removeIfThere(m.dirtyPath()), removeIfThere(m.storePath()))
	err := os.Remove(m.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
