// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// mounts makes the stage's mount namespace and arranges it. Nothing of it
// reaches the host: mounts travel from the host in (so that what the host
// unmounts is not kept busy by containers), never out.
func (s *stage) mounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detach mounts from the host's: %w", err)
	}
	top := "/"
	if s.Rootfs != "" {
		top = s.Rootfs
		// A root has to be a mount.
		if err := unix.Mount(top, top, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("rootfs %s: %w", top, err)
		}
	}
	root, err := openRoot(top)
	if err != nil {
		return fmt.Errorf("rootfs %s: %w", top, err)
	}
	defer root.Close()

	if s.Rootfs != "" {
		root.mountProc()
		if err := root.mountDev(); err != nil {
			return fmt.Errorf("rootfs %s: /dev: %w", top, err)
		}
	}
	if s.Netns != 0 {
		root.mountSys(s.Rootfs == "")
	}
	for _, target := range slices.Sorted(maps.Keys(s.Binds)) {
		if err := root.bindFile(s.Binds[target], target); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	if s.Rootfs != "" {
		if err := root.enter(); err != nil {
			return fmt.Errorf("rootfs %s: %w", top, err)
		}
	}
	return nil
}

// mountProc gives a root /proc, unless it has one. Errors are the command's to notice.
func (r *root) mountProc() {
	if self, err := r.open("/proc/self/stat"); err == nil {
		unix.Close(self)
		return
	}
	if dir, err := r.mkdirAll("/proc"); err == nil {
		unix.Mount("proc", fdPath(dir), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		unix.Close(dir)
	}
}

// mountSys covers /sys with the one that shows the network namespace of this
// thread, read-only; keep shows the host's control groups in it as before.
func (r *root) mountSys(keep bool) {
	const cgroup = "/sys/fs/cgroup"
	tree := -1
	if keep {
		if fd, err := unix.OpenTree(unix.AT_FDCWD, cgroup, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE); err == nil {
			tree = fd
			defer unix.Close(tree)
		}
	}
	dir, err := r.mkdirAll("/sys")
	if err != nil {
		return
	}
	defer unix.Close(dir)
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if unix.Mount("sysfs", fdPath(dir), "sysfs", flags, "") != nil || tree < 0 {
		return
	}
	if at, err := r.open(cgroup); err == nil {
		moveMount(tree, at)
		unix.Close(at)
	}
}

// mountDev gives a root the devices that every program expects, unless it has them.
func (r *root) mountDev() error {
	if null, err := r.open("/dev/null"); err == nil {
		var st unix.Stat_t
		err := unix.Fstat(null, &st)
		unix.Close(null)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR {
			return nil
		}
	}
	dir, err := r.mkdirAll("/dev")
	if errors.Is(err, unix.EROFS) {
		return nil // no place for it: the command may not need it
	}
	if err != nil {
		return err
	}
	err = unix.Mount("tmpfs", fdPath(dir), "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=64k")
	unix.Close(dir)
	if err != nil {
		return err
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := r.bindFile("/dev/"+name, "/dev/"+name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if dir, err = r.open("/dev"); err != nil {
		return err
	}
	defer unix.Close(dir)
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := unix.Symlinkat(to, dir, name); err != nil {
			return err
		}
	}
	// The host's terminals: the command's own may be one of them.
	if err := r.bindTree("/dev/pts", "/dev/pts"); err != nil {
		return fmt.Errorf("pts: %w", err)
	}
	shm, err := r.mkdirAll("/dev/shm")
	if err != nil {
		return err
	}
	defer unix.Close(shm)
	return unix.Mount("tmpfs", fdPath(shm), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777")
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func moveMount(tree, at int) error {
	return unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// enter makes r the root of this thread and its mount namespace, and lets go of the old one.
func (r *root) enter() error {
	if err := unix.Fchdir(r.fd); err != nil {
		return err
	}
	// The new root is put over itself and the old one beneath it: pivot_root(2).
	err := unix.PivotRoot(".", ".")
	if errors.Is(err, unix.EINVAL) {
		// The kernel's first root, an initramfs, cannot be pivoted away.
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return err
		}
		if err := unix.Chroot("."); err != nil {
			return err
		}
		return os.Chdir("/")
	}
	if err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return os.Chdir("/")
}
