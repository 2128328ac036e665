// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// wait is for what has to come, however busy the machine is.
const wait = 30 * time.Second

// disk is what survives a reboot: all that has been written over a copy of this machine's
// files, in which no unit is enabled.
type disk string

func newDisk(t testing.TB) disk {
	t.Helper()
	d := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", d, "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(d, unix.MNT_DETACH)) })
	for _, dir := range []string{"upper/etc", "work", "root", "units", "docker"} {
		require.NoError(t, os.MkdirAll(filepath.Join(d, dir), 0o755))
	}
	// With one of its own it is no first boot, at which systemd enables what it finds.
	require.NoError(t, os.WriteFile(filepath.Join(d, "upper/etc/machine-id"), []byte("00112233445566778899aabbccddeeff\n"), 0o444))
	require.NoError(t, os.Symlink("/lib/systemd/system/multi-user.target", filepath.Join(d, "units/default.target")))
	return disk(d)
}

// boot makes the root of a systemd on the disk $1, and becomes it. It runs in namespaces of
// its own. As in other containers, what is the whole kernel's can be read only, but not
// the network's, cgroups and bpffs; modules and the clock are out of reach.
const boot = `set -eu
root=$1/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
mount --bind "$1/units" "$root/etc/systemd/system"
mkdir -p "$root/var/lib/docker"
mount --bind "$1/docker" "$root/var/lib/docker" # overlays go on no overlay
cd "$root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
[ ! -e proc/sysrq-trigger ] || mount --bind /dev/null proc/sysrq-trigger
mount -t sysfs -o ro sysfs sys
mount -t bpf -o mode=700 bpf sys/fs/bpf
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
	: >dev/$node
	mount --bind /dev/$node dev/$node
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
pivot_root . mnt
umount -l mnt
mount --make-rshared /
exec env -i container=bpfnet-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-syslog,-mac_admin,-mac_override \
	/lib/systemd/systemd --show-status=0
`

// system is a systemd with a kernel's state of its own: it is PID 1 in a lab's host.
type system struct {
	*lab.Lab
	t   testing.TB
	one *lab.Process
}

// start boots from a disk, and waits until systemd has started everything.
func start(t testing.TB, d disk) *system {
	t.Helper()
	s := &system{Lab: lab.New(t, lab.HostDefault()), t: t}
	cmd := s.Command("sh", "-c", boot, "boot", string(d))
	// The cgroup namespace begins at the lab's cgroup, in which the child is first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	var err error
	s.one, err = s.StartCommand(s.Host, cmd)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			text, err := s.try("journalctl --no-pager -o short-monotonic; docker logs boxed 2>&1 || true")
			t.Logf("%s\n%v\n%s", s.one.Stderr(), err, text)
		}
	})
	s.eventually("systemd has booted", func() bool {
		select {
		case <-s.one.Done():
			t.Fatalf("systemd: %v: %s", s.one.Err(), s.one.Stderr())
		default:
		}
		state, _ := s.try("systemctl is-system-running")
		return state == "running" || state == "degraded"
	})
	require.Equal(t, "running", s.sh("systemctl is-system-running || systemctl --failed"))
	return s
}

func (s *system) eventually(what string, cond func() bool) {
	s.t.Helper()
	require.Eventually(s.t, cond, wait, 10*time.Millisecond, what)
}

// try runs a script as a login's session does.
func (s *system) try(script string) (string, error) {
	out, err := s.Run(s.Host, "nsenter", "--target", fmt.Sprint(s.one.Pid()), "--all", "--wdns=/",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive",
		"systemd-run", "--quiet", "--scope", "--slice=user.slice", "sh", "-euc", script)
	return strings.TrimSpace(out), err
}

// sh is try for what has to succeed.
func (s *system) sh(script string) string {
	s.t.Helper()
	out, err := s.try(script)
	require.NoError(s.t, err)
	return out
}

// put copies a file of this machine's into the system.
func (s *system) put(from, to string) {
	s.t.Helper()
	data, err := os.ReadFile(from)
	require.NoError(s.t, err)
	s.write(to, string(data))
}

// write makes a file that anybody may execute.
func (s *system) write(path, text string) {
	s.t.Helper()
	path = filepath.Join(fmt.Sprintf("/proc/%d/root", s.one.Pid()), path)
	require.NoError(s.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(s.t, os.WriteFile(path, []byte(text), 0o755))
}

// show is a property of the unit.
func (s *system) show(property string) string {
	s.t.Helper()
	return s.sh("systemctl show --value --property=" + property + " bpfnet")
}

// said waits for words of the daemon that runs now, in the journal.
func (s *system) said(words string) {
	s.t.Helper()
	s.eventually("the journal has: "+words, func() bool {
		return strings.Contains(s.sh("journalctl --no-pager -o cat _SYSTEMD_INVOCATION_ID="+s.show("InvocationID")), words)
	})
}

// attached says whether the host's device has a program.
func (s *system) attached(device string) bool {
	s.t.Helper()
	var status []struct {
		Hooks []struct {
			Device string
			OK     bool
		}
	}
	require.NoError(s.t, json.Unmarshal([]byte(s.sh("bpfnet status -o json")), &status))
	for _, h := range status[0].Hooks {
		if h.Device == device && h.OK {
			return true
		}
	}
	return false
}

// answers requires that a server answers X with a payload, by TCP and UDP.
func (s *system) answers(port, name string) {
	s.t.Helper()
	require.NoError(s.t, s.ask(port, name))
}

// comes waits until it does.
func (s *system) comes(port, name string) {
	s.t.Helper()
	var err error
	s.eventually(name+" answers", func() bool { err = s.ask(port, name); return err == nil })
	require.NoError(s.t, err)
}

func (s *system) ask(port, name string) error {
	for _, ask := range []func(*netns.NS, string, string, string, time.Duration) (string, error){lab.AskTCP, lab.AskUDP} {
		line, err := ask(s.Client, "", lab.HostIPv4+":"+port, "hello", wait/6)
		if err != nil {
			return err
		}
		r, err := lab.ParseReply(line)
		if err != nil {
			return err
		}
		if r.Server != name || r.Payload != "hello" || r.Remote.Addr().String() != lab.ClientIPv4 {
			return fmt.Errorf("port %s: %q", port, line)
		}
	}
	return nil
}
