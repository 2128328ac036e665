// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// nobody is the user without rights; what root has made is there for it to find.
const nobody = 65534

func asNobody(a *syscall.SysProcAttr) { a.Credential = &syscall.Credential{Uid: nobody, Gid: nobody} }

// Without root the first line says so, whatever was asked for and whether the host is set up or not.
func TestNotRoot(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	c.container("srv", "n1", publish("7000:70"))
	_, path := c.namespace("spare")
	before := append(c.exact(), c.litter(c.Client)...)
	values := strings.NewReplacer("SPARE", path, "NEW", filepath.Join(c.Dir, "new"))
	for _, line := range []string{
		"init", "init --bip 10.9.0.1/24", "--root NEW --bpffs NEW/b init", "run -- true", "run -d -p 80 -- true", "attach new netns:SPARE", "exec srv true", "ps", "ps -a", "logs srv",
		"start srv", "stop srv", "restart srv", "rm srv", "rm -f srv", "inspect srv", "port srv", "publish srv 80", "unpublish srv 7000:70", "link srv srv",
		"unlink srv srv", "network create n9", "network ls", "network inspect n1", "network rm n1", "network prune -f", "network connect n1 srv", "network disconnect n1 srv",
		"bridge ls", "status", "flows", "reconcile", "uninstall", "demo",
	} {
		t.Run(line, func(t *testing.T) { c.in(t).refuse(refusal{line: line, words: "root"}, values, asNobody) })
	}
	require.Empty(t, difference(before, append(c.exact(), c.litter(c.Client)...)))
	require.NoDirExists(t, filepath.Join(c.Dir, "new"))

	// What needs no right works, and root's own command does.
	cmd := c.Command(lab.Binary(t), "version")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	asNobody(cmd.SysProcAttr)
	p, err := c.StartCommand(c.Host, cmd)
	require.NoError(t, err)
	require.Zero(t, c.ended(p, []string{"version"}).code, p.Stderr())
	c.must("unpublish", "srv", "7000:70")
}

// withoutArg makes this test binary a wrapper: COMMAND whose bpf(2) fails with an errno, for one of
// its operations or (-1) for all, as on a kernel that was built without them.
const withoutArg = "bpfnet-without"

func without(operation int, errno unix.Errno) []string {
	return []string{"/proc/" + strconv.Itoa(os.Getpid()) + "/exe", withoutArg, strconv.Itoa(operation), strconv.Itoa(int(errno))}
}

func init() {
	if len(os.Args) < 5 || os.Args[1] != withoutArg {
		return
	}
	operation, _ := strconv.Atoi(os.Args[2])
	errno, _ := strconv.Atoi(os.Args[3])
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	unless := func(k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: skip}
	}
	end := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	fail := end(unix.SECCOMP_RET_ERRNO | uint32(errno))
	filter := []unix.SockFilter{load(0), unless(unix.SYS_BPF, 1), fail, end(unix.SECCOMP_RET_ALLOW)} // struct seccomp_data: nr, …
	if operation >= 0 {
		filter = []unix.SockFilter{load(0), unless(unix.SYS_BPF, 3), load(16), unless(uint32(operation), 1), fail, end(unix.SECCOMP_RET_ALLOW)} // … args[0]
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
	if err == nil {
		err = syscall.Exec(os.Args[4], os.Args[4:], os.Environ())
	}
	panic(err)
}

// A host that cannot be set up: each command that would do it ends with one clear line, and leaves no
// root directory, no pins, no mount and no device. Nothing of the kernel is played: what is missing has been
// taken away from the process (mounts of its own, capabilities, system calls).
//
//	blank   a namespace with nothing but lo, in which a second bpfnet is to play the host
func TestNoHost(t *testing.T) {
	parallel(t)
	l := lab.New(t)
	c := &cast{Lab: l, t: t}
	blank, path := c.namespace("blank")
	dir := filepath.Join(c.Dir, "bad")
	require.NoError(t, os.Mkdir(dir, 0o755))
	in := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"file": "no JSON", "unknown": `{"frob": 1}`, "wrong": `{"mtu": "x"}`, "bip": `{"bip": "x"}`,
		"range": `{"bip": "10.9.0.1/24", "fixed-cidr": "10.8.0.0/24"}`} {
		require.NoError(t, os.WriteFile(in(name), []byte(text), 0o644))
	}
	require.NoError(t, os.Mkdir(in("v1"), 0o755))
	require.NoError(t, os.Mkdir(in("full"), 0o755))
	require.NoError(t, unix.Mount("ro", in("full"), "tmpfs", unix.MS_RDONLY, "size=4k"))
	t.Cleanup(func() { unix.Unmount(in("full"), unix.MNT_DETACH) })

	values := strings.NewReplacer("DIR", dir, "NONE", in("none"), "FILE", in("file"), "UNKNOWN", in("unknown"), "WRONG", in("wrong"), "BIP", in("bip"), "RANGE", in("range"),
		"READONLY", in("full"), "BLANK", path, "V1", in("v1"), "HERE", "--root~"+in("new")+"~--bpffs~"+in("pins"))
	state := func() []string {
		list := contents(dir)
		for _, name := range c.deviceNames(blank) {
			list = append(list, "device "+name)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		require.NoError(t, err)
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, dir) {
				list = append(list, "mount "+line)
			}
		}
		for _, key := range []string{"ipv4/ip_local_reserved_ports", "ipv4/ip_forward", "ipv4/conf/lo/route_localnet", "ipv4/conf/lo/accept_local"} {
			list = append(list, "setting "+key+" "+lab.ReadSysctl(t, blank, key))
		}
		return list
	}
	host := "--root " + in("new") + " --bpffs " + in("pins") + " --netns BLANK --cgroup " + c.Cgroup + " "
	before := state()
	refused := func(r refusal, wrap ...string) {
		t.Run(strings.Join(wrap, " ")+" "+strings.TrimPrefix(r.line, host), func(t *testing.T) {
			c := c.in(t)
			args := r.args(values)
			line := append(append([]string{}, wrap...), append([]string{lab.Binary(t)}, args...)...)
			cmd := c.Command(line[0], line[1:]...)
			p, err := c.StartCommand(c.Host, cmd)
			require.NoError(t, err)
			got := c.ended(p, args)
			clear(t, got, args, strings.Split(values.Replace(r.words), "|")...)
			code := 1
			if strings.Contains(r.line, " run ") {
				code = 125
			}
			require.Equal(t, code, got.code, got.err)
			t.Log(strings.TrimSpace(got.err))
			require.Empty(t, difference(before, state()))
		})
	}
	for _, command := range []string{"init", "run -- true"} {
		for _, r := range []refusal{
			{line: "--netns NONE", words: "NONE"}, {line: "--netns FILE", words: "FILE|not a network namespace"}, {line: "--netns /proc/self/ns/mnt", words: "/proc/self/ns/mnt|not a network namespace"},
			{line: "--cgroup NONE", words: "NONE"}, {line: "--cgroup FILE", words: "FILE|cgroup v2"}, {line: "--cgroup V1", words: "V1|cgroup v2"}, {line: "--cgroup /sys/fs/cgroup/cpu", words: "/sys/fs/cgroup/cpu|cgroup v2"},
			{line: "--bpffs FILE", words: "FILE"}, {line: "--bpffs FILE/x", words: "FILE/x"}, {line: "--bpffs /proc/bpfnet", words: "/proc/bpfnet"}, {line: "--bpffs READONLY/x", words: "READONLY/x"},
			{line: "--root FILE", words: "FILE"}, {line: "--root FILE/x", words: "FILE/x"}, {line: "--root READONLY/x", words: "READONLY/x"}, {line: "--root /proc/bpfnet", words: "/proc/bpfnet"},
			{line: "--datapath frob", words: "frob"}, {line: "--config NONE", words: "NONE"}, {line: "--config FILE", words: "FILE"}, {line: "--config UNKNOWN", words: "UNKNOWN|frob"},
			{line: "--config WRONG", words: "WRONG|mtu"}, {line: "--config BIP", words: "bip|x"},
		} {
			refused(refusal{line: host + r.line + " " + command, words: r.words})
		}
	}
	refused(refusal{line: host + "--config RANGE init", words: "10.8.0.0/24"})
	refused(refusal{line: host + "--config RANGE run -- true", words: "10.8.0.0/24"})
	for _, line := range []string{"init --mtu 5", "init --uplink a/b", "run -p x -- true", "run --net nosuch -- true", "run --link nobody -- true", "attach new netns:BLANK",
		"network create --subnet 10.9.0.0/33 n9", "network rm n9", "rm nobody", "publish nobody 80", "network connect n1 nobody", "unlink nobody srv"} {
		refused(refusal{line: host + line})
	}

	// The kernel lacks something.
	sh := func(script string) []string {
		return []string{"unshare", "--mount", "sh", "-ec", script + `; exec "$0" "$@"`}
	}
	for _, command := range []string{"init", "run -- true"} {
		init := refusal{line: host + command}
		with := func(words string) refusal { r := init; r.words = words; return r }
		refused(with("this kernel lacks|BTF"), sh("mount -t tmpfs none /sys/kernel/btf")...)
		refused(with("CAP_BPF|operation not permitted"), "setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon")
		refused(with("operation not permitted"), "setpriv", "--bounding-set=-sys_admin")
		if command != "init" { // which makes no device
			refused(with("operation not permitted"), "setpriv", "--bounding-set=-net_admin")
		}
		refused(with("this kernel lacks|bpf(2)"), without(-1, unix.ENOSYS)...)
		for operation, words := range map[int]string{
			unix.BPF_MAP_CREATE: "this kernel lacks|LPM tries", unix.BPF_PROG_LOAD: "load program|invalid argument",
			unix.BPF_LINK_CREATE: "bind4|not supported", unix.BPF_OBJ_PIN: "pin|invalid argument",
		} {
			refused(with(words), without(operation, unix.EINVAL)...)
		}
		any := strings.Replace(init.line, "--cgroup "+c.Cgroup, "", 1)
		refused(refusal{line: any, words: "cgroup"}, append([]string{"env", "-u", "BPFNET_CGROUP"}, sh("umount /sys/fs/cgroup/unified || umount -l /sys/fs/cgroup")...)...)
	}

	// The same without what is wrong.
	line := refusal{line: host + "init"}.args(values)
	c.must(line...)
	require.NotEmpty(t, difference(before, state()))
	line[len(line)-1] = "uninstall"
	c.must(line...)
	require.Empty(t, difference(before, state()))
}
