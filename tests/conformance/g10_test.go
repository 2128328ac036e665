// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// G10: an unprivileged user opens neither maps nor store nor socket (and runs no command: TestNotRoot).
func TestG10(t *testing.T) {
	parallel(t)
	c, _, _, _ := ownCast(t)
	socket := filepath.Join(c.Dir, "driver.sock")
	d := &daemon{c.start("daemon", "--docker-driver="+socket), t}
	d.says("following ")
	require.NoError(t, os.Chmod(c.Dir, 0o755), "what is inside protects itself")
	before := c.inventory()

	type try struct {
		what string
		call func() error
	}
	connect := func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
	}
	open := func(path string) func() error {
		return func() error {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			unix.Close(fd)
			return err
		}
	}
	tries := []try{{"the store", open(filepath.Join(c.Root, "store.db"))}, {"the socket", connect}}
	if !netfilter() {
		pin := filepath.Join(c.BPFFS, "maps", loader.BPFMapFlows4)
		m, err := ebpf.LoadPinnedMap(pin, nil)
		require.NoError(t, err)
		defer m.Close()
		info, err := m.Info()
		require.NoError(t, err)
		id, _ := info.ID()
		tries = append(tries, try{"a map by its pin", func() error { return objGet(pin) }},
			try{"a map by its number", func() error { return mapByID(uint32(id)) }},
			try{"the links", open(filepath.Join(c.BPFFS, "links"))})
	}
	for _, x := range tries {
		require.NoError(t, x.call(), "the control: root may have %s", x.what)
		err := unprivileged(x.call)
		require.True(t, errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES), "%s: %v", x.what, err)
	}

	c.same(before, "what nobody tried")
	c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
}

// G10: a container's root, with CAP_NET_ADMIN in its own namespaces, does with its interface what it
// likes, and to the host's devices and programs nothing.
func TestG10ContainerRoot(t *testing.T) {
	parallel(t)
	c, _, _, _ := ownCast(t)
	box := c.Start(t, c.Client, "setpriv", "--reuid", fmt.Sprint(nobody), "--regid", fmt.Sprint(nobody), "--clear-groups",
		"unshare", "--user", "--map-root-user", "--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep 1000")
	eventually(t, "a container", func() bool { return strings.Contains(box.Stdout(), "ready") })
	c.must("attach", "--net", "n1", "box", fmt.Sprintf("pid:%d", box.Pid()))
	before := c.inventory()
	root := func(script string) (string, error) {
		return c.Run(c.Client, "nsenter", "--target", fmt.Sprint(box.Pid()), "--user", "--net", "sh", "-c", script)
	}
	out, err := root("id -u; ip link set eth0 mtu 1400 && ip link set eth0 mtu 1500 && ip -br addr show dev eth0")
	require.NoError(t, err, out)
	require.True(t, strings.HasPrefix(out, "0\n"), out)
	for script, words := range map[string]string{
		"cat " + filepath.Join(c.Root, "store.db"):                    "Permission denied",
		"ls " + filepath.Join(c.BPFFS, "maps"):                        "Permission denied",
		"nsenter --net=" + c.NetnsPath + " ip link del " + c.X.Device: "Permission denied|not permitted",
		"ip link set eth0 netns " + fmt.Sprint(os.Getpid()):           "not permitted",
		"mount -t bpf none /tmp":                                      "not permitted|permission denied|must be superuser",
	} {
		out, err := root(script)
		require.Error(t, err, "%s: %s", script, out)
		require.Regexp(t, "(?i)"+words, err.Error(), script)
	}
	c.same(before, "what a container's root tried")
	c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
}

// unprivileged runs fn on a thread of its own that has no privileges, and ends the thread.
func unprivileged(fn func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		for _, call := range []struct{ nr, ids uintptr }{{unix.SYS_SETGROUPS, 0}, {unix.SYS_SETRESGID, 3}, {unix.SYS_SETRESUID, 3}} {
			var id uintptr
			if call.ids > 0 {
				id = nobody
			}
			if _, _, errno := unix.RawSyscall(call.nr, id, id, id); errno != 0 {
				result <- fmt.Errorf("call %d: %w", call.nr, errors.New(errno.Error()))
				return
			}
		}
		result <- fn()
	}()
	return <-result
}

// objGet and mapByID are bpf(2) itself: the library remembers what its caller may do.
func objGet(path string) error {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	attr := struct {
		path      uint64
		fd, flags uint32
	}{path: uint64(uintptr(unsafe.Pointer(name)))}
	err = bpfCall(unix.BPF_OBJ_GET, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(name)
	return err
}

func mapByID(id uint32) error {
	attr := struct{ id, next, flags uint32 }{id: id}
	return bpfCall(unix.BPF_MAP_GET_FD_BY_ID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

func bpfCall(cmd uintptr, attr unsafe.Pointer, size uintptr) error {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}
