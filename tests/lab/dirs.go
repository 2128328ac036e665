// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const namePrefix = "bpfnet-lab-"

func (l *Lab) mountBPFFS() error {
	l.bpffsRoot = filepath.Join(l.Dir, "bpffs")
	if err := os.Mkdir(l.bpffsRoot, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(l.name, l.bpffsRoot, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", l.bpffsRoot, err)
	}
	l.BPFFS = filepath.Join(l.bpffsRoot, "bpfnet")
	return os.Mkdir(l.BPFFS, 0o700)
}

func (l *Lab) makeCgroup() error {
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	path := filepath.Join(root, l.name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	l.Cgroup = path
	return nil
}

func cgroupRoot() (string, error) {
	list, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", err
	}
	if len(list) == 0 {
		return "", errors.New("no cgroup2 file system is mounted")
	}
	return list[0].Mountpoint, nil
}

// below lists the mounts in dir, the innermost first.
func below(dir string) ([]string, error) {
	list, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, err
	}
	var found []string
	for _, m := range list {
		if m.Mountpoint != dir {
			found = append(found, m.Mountpoint)
		}
	}
	slices.Reverse(found)
	return found, nil
}

// unmountAll takes away the bpffs and what the product mounted in the lab's directory.
func (l *Lab) unmountAll() error {
	dir, err := filepath.EvalSymlinks(l.Dir)
	if err != nil {
		return err
	}
	points, err := below(dir)
	if err != nil {
		return err
	}
	for _, p := range points {
		// One that went with another, or was shared with it, is no error.
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("umount %s: %w", p, err)
		}
	}
	if points, err = below(dir); err == nil && len(points) > 0 {
		err = fmt.Errorf("still mounted: %s", strings.Join(points, ", "))
	}
	return err
}

func cgroupProcs(path string) (pids []int) {
	// A cgroup made below the lab's belongs to it too.
	filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		data, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		for _, f := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// emptyCgroup ends, by pid, what the lab's processes left running.
func (l *Lab) emptyCgroup() error {
	if l.Cgroup == "" {
		return nil
	}
	return killCgroup(l.Cgroup)
}

func killCgroup(path string) error {
	if !eventually(10*time.Second, func() bool {
		pids := cgroupProcs(path)
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		return len(pids) == 0
	}) {
		return fmt.Errorf("cgroup %s: processes %v do not end", path, cgroupProcs(path))
	}
	return nil
}

func (l *Lab) removeCgroup() error {
	if l.Cgroup == "" {
		return nil
	}
	return removeCgroup(l.Cgroup)
}

func removeCgroup(path string) error {
	var dirs []string
	filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return nil
	})
	slices.Reverse(dirs)
	for _, dir := range dirs {
		var err error
		// A process that has just ended is still counted for a moment.
		if !eventually(5*time.Second, func() bool {
			err = unix.Rmdir(dir)
			return err == nil || errors.Is(err, unix.ENOENT)
		}) {
			return fmt.Errorf("cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// sweep takes away what the labs of processes left that ended without Close.
// Namespaces need no sweeping: they end with their process.
func sweep() {
	dead := func(name string) bool {
		rest, ok := strings.CutPrefix(name, namePrefix)
		pid, err := strconv.Atoi(strings.SplitN(rest, "-", 2)[0])
		return ok && err == nil && pid > 0 && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
	}
	list, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("bpf"))
	if err != nil {
		return
	}
	for _, m := range list {
		if dead(m.Source) {
			unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	}
	root, err := cgroupRoot()
	if err != nil {
		return
	}
	groups, _ := os.ReadDir(root)
	for _, g := range groups {
		if path := filepath.Join(root, g.Name()); dead(g.Name()) && killCgroup(path) == nil {
			removeCgroup(path)
		}
	}
}
