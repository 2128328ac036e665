// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Persist keeps the namespace alive, and gives it a name, by a bind mount on the
// file path (made with mode 0600, its directory with 0700). Nothing is done if the
// same namespace is there already; another namespace there is an error.
//
// The directory becomes a shared mount, as /run/netns does with iproute2: mount
// namespaces that were copied from this one follow when the name goes, and do not
// keep the network namespace alive behind our back.
func Persist(ns *NS, path string) (err error) {
	parent := filepath.Dir(path)
	lock, err := lockDir(parent, true)
	if err != nil {
		return fmt.Errorf("netns %s: %w", path, err)
	}
	defer lock.Close()

	switch old, err := Open(path); {
	case err == nil:
		defer old.Close()
		if old.Equal(ns) {
			return nil
		}
		return fmt.Errorf("netns %s: another namespace is there: %w", path, fs.ErrExist)
	case errors.Is(err, ErrNotNetns), errors.Is(err, fs.ErrNotExist):
	default:
		return err
	}

	if err := shareDir(parent); err != nil {
		return fmt.Errorf("netns %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			unshareDir(parent)
		}
	}()
	target, made, err := openTarget(path)
	if err != nil {
		return fmt.Errorf("netns %s: %w", path, err)
	}
	defer target.Close()
	// The target by descriptor: what was checked is what is mounted on.
	if err := unix.Mount(ns.Path(), fmt.Sprintf("/proc/self/fd/%d", target.Fd()), "", unix.MS_BIND, ""); err != nil {
		if made {
			os.Remove(path)
		}
		return fmt.Errorf("netns %s: mount: %w", path, err)
	}
	return nil
}

// openTarget opens the empty file that is mounted on, and makes it if there is none.
func openTarget(path string) (f *os.File, made bool, err error) {
	const flags = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err = os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		return f, true, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return nil, false, err
	}
	if f, err = os.OpenFile(path, flags, 0); err != nil {
		return nil, false, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() != 0 {
		f.Close()
		return nil, false, errors.New("something else is there")
	}
	return f, false, nil
}

// Unpersist takes the name away; the namespace goes when nobody else holds it.
// It is no error if there is none. A file with content is left alone, and is an error.
func Unpersist(path string) error {
	dir, err := lockDir(filepath.Dir(path), false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("netns %s: %w", path, err)
	}
	defer dir.Close()

	// Several mounts on one another are undone one by one; EINVAL means none is left.
	for range 32 {
		err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil {
			break
		}
	}
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("netns %s: umount: %w", path, err)
	}
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("netns %w", err)
	case !st.Mode().IsRegular() || st.Size() != 0:
		return fmt.Errorf("netns %s: %w", path, ErrNotNetns)
	default:
		if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("netns %s: %w", path, err)
		}
	}
	return unshareDir(filepath.Dir(path))
}

// lockDir keeps Persist and Unpersist in one directory apart, among all processes.
func lockDir(dir string, create bool) (*os.File, error) {
	if create {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "flock", Path: dir, Err: err}
	}
	return f, nil
}

// shareDir makes sure that mounts in dir propagate: a bind mount of dir on
// itself, shared, unless it lies in a shared mount already.
func shareDir(dir string) error {
	m, err := mountOf(dir)
	if err != nil {
		return err
	}
	if m.shared {
		return nil
	}
	if m.point != m.dir {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return &fs.PathError{Op: "bind mount", Path: dir, Err: err}
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return &fs.PathError{Op: "share mount", Path: dir, Err: err}
	}
	return nil
}

// unshareDir undoes shareDir when no name is mounted in dir any more.
func unshareDir(dir string) error {
	m, err := mountOf(dir)
	if err != nil || m.point != m.dir || m.below > 0 || m.root == "/" || !strings.HasSuffix(m.dir, m.root) {
		return nil // not a mount of dir on itself, or in use
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return &fs.PathError{Op: "umount", Path: dir, Err: err}
	}
	return nil
}

type mount struct {
	dir    string // what was asked for, without symbolic links
	root   string // what is mounted: a path within its file system
	point  string
	shared bool
	below  int // mounts in dir
}

// mountOf finds the mount in which dir lies.
func mountOf(dir string) (mount, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return mount{}, err
	}
	if real, err = filepath.Abs(real); err != nil {
		return mount{}, err
	}
	list, err := mountinfo.GetMounts(nil)
	if err != nil {
		return mount{}, err
	}
	best := mount{dir: real}
	for _, m := range list {
		if strings.HasPrefix(m.Mountpoint, real+"/") {
			best.below++
		}
		inside := m.Mountpoint == "/" || m.Mountpoint == real || strings.HasPrefix(real, m.Mountpoint+"/")
		if inside && len(m.Mountpoint) >= len(best.point) { // of equals the later one is on top
			best.root, best.point, best.shared = m.Root, m.Mountpoint, strings.Contains(m.Optional, "shared:")
		}
	}
	return best, nil
}
