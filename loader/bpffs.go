// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The kernel makes this directory for bpffs (kernel/bpf/inode.c).
const systemBPFFS = "/sys/fs/bpf"

// Source of the mounts that we make, by which Unmount knows them.
const mountSource = "bpfnet"

// Mount makes dir, mode 0700, on a bpffs: on the one that dir lies on, else on
// a new one at /sys/fs/bpf when dir is below that, else on a new one at dir, which must
// be empty.
func Mount(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("bpffs %s: not an absolute path", dir)
	}
	dir = filepath.Clean(dir)
	on, err := onBPFFS(nearest(dir))
	if err != nil {
		return err
	}
	if !on {
		at := dir
		if dir == systemBPFFS || strings.HasPrefix(dir, systemBPFFS+"/") {
			at = systemBPFFS
		} else if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("bpffs %s: %w", dir, pathCause(err))
		}
		if err := mountAt(at); err != nil {
			return err
		}
	}
	return makeDir(dir)
}

// mountAt mounts under a lock on the directory below the mount, so that of
// several processes one mounts and the others find it.
func mountAt(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("bpffs %s: %w", dir, pathCause(err))
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("bpffs %s: lock: %w", dir, err)
	}
	if on, err := onBPFFS(dir); err != nil || on {
		return err
	}
	hidden, err := f.Readdirnames(1)
	if err == nil {
		return fmt.Errorf("bpffs %s: has files (%.40q), which a mount would hide: name a directory that is empty, or not there yet", dir, hidden[0])
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("bpffs %s: %w", dir, pathCause(err))
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RELATIME)
	if err := unix.Mount(mountSource, dir, "bpf", flags, "mode=0700"); err != nil {
		return fmt.Errorf("bpffs %s: mount: %w", dir, err)
	}
	return nil
}

// Unmount removes dir, which must be empty of pins, and the bpffs that Mount
// made for it when nothing else is on it. Missing is fine.
func Unmount(dir string) error {
	dir = filepath.Clean(dir)
	mounts := []string{dir}
	if strings.HasPrefix(dir, systemBPFFS+"/") {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("bpffs %s: %w", dir, pathCause(err))
		}
		mounts = []string{systemBPFFS}
	}
	for _, at := range mounts {
		ours, err := ourMount(at)
		if err != nil {
			return err
		}
		if !ours {
			continue
		}
		entries, err := os.ReadDir(at)
		if err != nil {
			return fmt.Errorf("bpffs %s: %w", at, pathCause(err))
		}
		// Names with a dot are the kernel's own (maps.debug, progs.debug).
		if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !strings.Contains(e.Name(), ".") }) {
			continue
		}
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("bpffs %s: unmount: %w", at, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("bpffs %s: %w", dir, pathCause(err))
	}
	return nil
}

// makeDir makes a directory that only root may enter, or checks and narrows one
// that exists. The root of somebody else's bpffs keeps its mode: what we make
// inside is 0700 all the same.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("bpffs %s: %w", dir, pathCause(err))
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("bpffs %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("bpffs %s: not a directory", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("bpffs %s: owned by user %d, not by us", dir, st.Uid)
	case st.Mode&0o077 == 0:
		return nil
	}
	var above unix.Stat_t
	if err := unix.Lstat(filepath.Dir(dir), &above); err == nil && above.Dev != st.Dev {
		if ours, err := ourMount(dir); err != nil || !ours {
			return err
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("bpffs %s: %w", dir, pathCause(err))
	}
	return nil
}

// nearest is path, or the closest directory above it that exists.
func nearest(path string) string {
	for path != "/" {
		if _, err := os.Stat(path); err == nil {
			break
		}
		path = filepath.Dir(path)
	}
	return path
}

func onBPFFS(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("bpffs %s: %w", path, err)
	}
	return int64(st.Type) == unix.BPF_FS_MAGIC, nil
}

// ourMount says whether Mount made a mount at path.
func ourMount(path string) (bool, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return false, fmt.Errorf("mountinfo: %w", pathCause(err))
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// 36 35 98:0 /root /mount/point options [optional...] - type source options
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) > 4 && len(tail) > 1 &&
			unescape(fields[4]) == path && tail[0] == "bpf" && tail[1] == mountSource {
			return true, nil
		}
	}
	return false, nil
}

// unescape undoes the octal escapes of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// pathCause drops the path that os repeats in its errors.
func pathCause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
