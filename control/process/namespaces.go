// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// openNetns opens a network namespace by path and refuses anything else that is found there.
func openNetns(path, id string) (*os.File, error) {
	// Looked at before it is opened: opening a device or a FIFO may do something.
	look, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer unix.Close(look)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(look, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%s: not a network namespace", path)
	}
	f, err := os.Open(fdPath(look))
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, errno(err))
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s: not a network namespace", path)
	}
	if id != "" {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			f.Close()
			return nil, fmt.Errorf("network namespace %s: %w", path, err)
		}
		if now := fmt.Sprintf("%d:%d", st.Dev, st.Ino); now != id {
			f.Close()
			return nil, fmt.Errorf("network namespace %s: is another one now (%s, was %s)", path, now, id)
		}
	}
	return f, nil
}

type namespaces struct{ net, mnt, uts *os.File }

// openNamespaces opens those of one running process.
func openNamespaces(pid int, start uint64) (*namespaces, error) {
	h, err := Open(pid, start)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	defer h.Close()
	n := &namespaces{}
	for name, f := range map[string]**os.File{"net": &n.net, "mnt": &n.mnt, "uts": &n.uts} {
		if *f, err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name)); err != nil {
			break
		}
	}
	if err == nil && h.ended() {
		err = os.ErrProcessDone // and what was opened may be another's
	}
	if err != nil {
		n.close()
		return nil, fmt.Errorf("process %d: %w", pid, errno(err))
	}
	return n, nil
}

func (n *namespaces) close() {
	for _, f := range []*os.File{n.net, n.mnt, n.uts} {
		if f != nil {
			f.Close()
		}
	}
}

// killRest kills every process in a mount namespace, which the caller holds
// open, unless it is the caller's own: what a command leaves behind when it ends.
func killRest(mount *os.File) {
	var target, own unix.Stat_t
	if unix.Fstat(int(mount.Fd()), &target) != nil || unix.Stat("/proc/self/ns/mnt", &own) != nil {
		return
	}
	if target.Dev == own.Dev && target.Ino == own.Ino {
		return
	}
	// A process may fork while it is being looked for: again until none is found.
	for range 100 {
		if killRound(&target) == 0 {
			return
		}
	}
}

func killRound(target *unix.Stat_t) (killed int) {
	proc, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	names, err := proc.Readdirnames(-1)
	proc.Close()
	if err != nil {
		return 0
	}
	var held []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		if unix.Stat("/proc/"+name+"/ns/mnt", &st) != nil || st.Dev != target.Dev || st.Ino != target.Ino {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		// Looked at again now that the pid is held.
		if unix.Stat("/proc/"+name+"/ns/mnt", &st) == nil && st.Dev == target.Dev && st.Ino == target.Ino &&
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
			held = append(held, fd)
			continue
		}
		unix.Close(fd)
	}
	for _, fd := range held {
		pollEnd(fd, time.Second)
		unix.Close(fd)
	}
	return len(held)
}
