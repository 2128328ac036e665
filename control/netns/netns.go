// SPDX-License-Identifier: Apache-2.0

// Package netns opens, makes and keeps network namespaces, and runs code inside
// them. A namespace is held by file descriptor from the moment it was checked, so
// that a path which changes its meaning cannot change what is worked on.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNotNetns says that a path or descriptor is something else than a network namespace.
var ErrNotNetns = errors.New("not a network namespace")

// NS is an open network namespace. It must be closed; nothing closes it behind
// the caller's back, because a descriptor number that outlived its namespace
// would name another one. The methods may be called by several goroutines at once.
type NS struct {
	fd   atomic.Int64 // -1 once closed
	id   string
	name string // for errors: the path it came from
}

// Open opens the namespace at path, which may be a bind mount, a link below
// /proc, or a symbolic link to one of them.
//
// The error wraps fs.ErrNotExist if nothing is there and ErrNotNetns if the file is
// anything but a network namespace. A file that is no namespace is never really
// opened: no FIFO blocks, no device is touched.
func Open(path string) (*NS, error) {
	look, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("netns %s: %w", path, err)
	}
	defer unix.Close(look)

	var fs unix.Statfs_t
	if err := unix.Fstatfs(look, &fs); err != nil {
		return nil, fmt.Errorf("netns %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("netns %s: %w", path, ErrNotNetns)
	}

	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", look), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("netns %s: %w", path, err)
	}
	return wrap(fd, path)
}

// wrap takes fd over, and closes it if it is no network namespace.
func wrap(fd int, name string) (*NS, error) {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		unix.Close(fd)
		return nil, fmt.Errorf("netns %s: %w", name, ErrNotNetns)
	}
	id, err := fileID(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("netns %s: %w", name, err)
	}
	ns := &NS{id: id, name: name}
	ns.fd.Store(int64(fd))
	return ns, nil
}

func fileID(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

// Current opens the namespace of the calling thread.
func Current() (*NS, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return Open("/proc/thread-self/ns/net")
}

// OfPID opens the namespace of a process. The caller knows that the process is
// still the one that it means.
func OfPID(pid int) (*NS, error) {
	return Open(fmt.Sprintf("/proc/%d/ns/net", pid))
}

// New makes an unnamed namespace, with nothing but a lo that is down. It lives
// as long as somebody holds it: see Persist.
func New() (*NS, error) {
	var ns *NS
	err := onThrowaway(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("netns: unshare: %w", err)
		}
		var err error
		ns, err = Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	ns.name = "new"
	return ns, nil
}

// Close gives the descriptor back. Closing twice is no error.
func (ns *NS) Close() error {
	fd := ns.fd.Swap(-1)
	if fd < 0 {
		return nil
	}
	return unix.Close(int(fd))
}

// FD is the namespace's descriptor, -1 after Close. It stays the NS's own.
func (ns *NS) FD() int { return int(ns.fd.Load()) }

// Path names the namespace for this process, as long as the NS is open.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/self/fd/%d", ns.FD()) }

// ID is "device:inode" of the namespace: unique among those that exist at one
// time, used again later. Cookie is never used again.
func (ns *NS) ID() string { return ns.id }

// Equal says whether both are the same namespace.
func (ns *NS) Equal(other *NS) bool { return other != nil && ns.id == other.id }

// Holds says whether a process is in the namespace. Other than OfPID it needs no right
// to trace that process, which root may lack for process 1: it compares the numbers
// of two files of /proc/PID/net, of which each namespace has its own (fs/proc/proc_net.c).
func (ns *NS) Holds(pid int) (bool, error) {
	var theirs, ours unix.Stat_t
	path := fmt.Sprintf("/proc/%d/net/dev", pid)
	if err := unix.Stat(path, &theirs); err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	err := ns.Do(func() error {
		return os.NewSyscallError("stat", unix.Stat("/proc/thread-self/net/dev", &ours))
	})
	if err != nil {
		return false, fmt.Errorf("netns %s: %w", ns.name, err)
	}
	return theirs.Dev == ours.Dev && theirs.Ino == ours.Ino, nil
}

func (ns *NS) String() string { return fmt.Sprintf("netns %s (%s)", ns.name, ns.id) }

// Cookie is the kernel's number of the namespace, the same as BPF's
// bpf_get_netns_cookie: unique until the next boot.
func (ns *NS) Cookie() (uint64, error) {
	var cookie uint64
	err := ns.Do(func() error {
		sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(sock)
		cookie, err = unix.GetsockoptUint64(sock, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return os.NewSyscallError("getsockopt SO_NETNS_COOKIE", err)
	})
	if err != nil {
		return 0, fmt.Errorf("netns %s: cookie: %w", ns.name, err)
	}
	return cookie, nil
}

// Netlink opens a netlink handle in the namespace, for the families given
// (unix.NETLINK_ROUTE if none). Ask the handle for no other family: netlink
// would open a socket in the caller's namespace for it. The caller closes it.
func (ns *NS) Netlink(families ...int) (*netlink.Handle, error) {
	if len(families) == 0 {
		families = []int{unix.NETLINK_ROUTE}
	}
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(families...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netns %s: netlink: %w", ns.name, err)
	}
	return h, nil
}
