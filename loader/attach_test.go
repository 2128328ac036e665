// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/needs"
)

// Both kinds keep the same promises.
func eachKind(t *testing.T, f func(t *testing.T, kind string)) {
	for _, kind := range []string{KindTCX, KindClsact} {
		t.Run(kind, func(t *testing.T) {
			if kind == KindClsact {
				t.Setenv(NoTCX, "1")
			} else {
				needs.Linux(t, 6, 6, "TCX")
			}
			newNetns(t)
			f(t, kind)
		})
	}
}

func TestAttach(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		pins, m := testPins(t), newCounter(t)
		prog := counting(t, "from_lo", m)
		s := newSender(t)

		a, err := Attach(prog, "from_lo", 1, Ingress, pins)
		require.NoError(t, err)
		require.Equal(t, Attachment{Program: "from_lo", Ifindex: 1, Kind: kind, Changed: true}, a)
		runtime.GC() // a link that is collected would detach
		runtime.GC()
		s.send(t, 10)
		require.EqualValues(t, 10, count(t, m))

		again, err := Attach(prog, "from_lo", 1, Ingress, pins)
		require.NoError(t, err)
		require.False(t, again.Changed)
		s.send(t, 10)
		require.EqualValues(t, 20, count(t, m), "attached twice")

		require.NoError(t, Detach("from_lo", 1, pins))
		s.send(t, 10)
		require.EqualValues(t, 20, count(t, m), "still attached")
		require.NoError(t, Detach("from_lo", 1, pins))
		left, err := os.ReadDir(linksDir(pins))
		require.NoError(t, err)
		require.Empty(t, left)
	})
}

func TestAttachEgress(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		pins, in, out := testPins(t), newCounter(t), newCounter(t)
		_, err := Attach(counting(t, "from_lo", in), "from_lo", 1, Ingress, pins)
		require.NoError(t, err)
		_, err = Attach(counting(t, "to_lo", out), "to_lo", 1, Egress, pins)
		require.NoError(t, err)
		newSender(t).send(t, 3)
		require.EqualValues(t, 3, count(t, in))
		require.EqualValues(t, 3, count(t, out))
		require.NoError(t, Detach("to_lo", 1, pins))
		newSender(t).send(t, 3)
		require.EqualValues(t, 6, count(t, in))
		require.EqualValues(t, 3, count(t, out))
	})
}

// Packets are seen by the old program or by the new one, and by one of them.
func TestAttachReplaces(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		pins, m1, m2 := testPins(t), newCounter(t), newCounter(t)
		one, two := counting(t, "from_lo", m1), counting(t, "from_lo", m2)
		_, err := Attach(one, "from_lo", 1, Ingress, pins)
		require.NoError(t, err)
		s := newSender(t)

		const swaps = 200
		type result struct {
			changed int
			err     error
		}
		netns, err := os.Open("/proc/thread-self/ns/net")
		require.NoError(t, err)
		defer netns.Close()
		done := make(chan result)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends
			r := result{err: unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET)}
			for i := range swaps {
				if r.err != nil {
					break
				}
				p := two
				if i%2 == 1 {
					p = one
				}
				var a Attachment
				if a, r.err = Attach(p, "from_lo", 1, Ingress, pins); a.Changed {
					r.changed++
				}
			}
			done <- r
		}()
		sent := 0
		for running := true; running; {
			s.send(t, 10)
			sent += 10
			select {
			case r := <-done:
				require.NoError(t, r.err)
				require.Equal(t, swaps, r.changed)
				running = false
			default:
			}
		}
		require.EqualValues(t, sent, count(t, m1)+count(t, m2))
		require.NotZero(t, count(t, m2))
	})
}

func TestAttachAgainAfterForce(t *testing.T) {
	needs.Linux(t, 6, 6, "TCX")
	newNetns(t)
	pins, m := testPins(t), newCounter(t)
	prog := counting(t, "from_lo", m)
	_, err := Attach(prog, "from_lo", 1, Ingress, pins)
	require.NoError(t, err)

	on, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	require.NoError(t, err)
	require.Len(t, on.Programs, 1)
	id, _ := on.Programs[0].LinkID()
	l, err := link.NewFromID(id)
	require.NoError(t, err)
	require.NoError(t, l.Detach())
	require.NoError(t, l.Close())
	newSender(t).send(t, 1)
	require.Zero(t, count(t, m))

	a, err := Attach(prog, "from_lo", 1, Ingress, pins)
	require.NoError(t, err)
	require.True(t, a.Changed)
	newSender(t).send(t, 1)
	require.EqualValues(t, 1, count(t, m))
}

func TestAttachIsLast(t *testing.T) {
	needs.Linux(t, 6, 6, "TCX")
	newNetns(t)
	pins, m := testPins(t), newCounter(t)
	other, err := link.AttachTCX(link.TCXOptions{Interface: 1, Program: counting(t, "other", m), Attach: ebpf.AttachTCXIngress})
	require.NoError(t, err)
	defer other.Close()
	_, err = Attach(counting(t, "from_lo", m), "from_lo", 1, Ingress, pins)
	require.NoError(t, err)

	on, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	require.NoError(t, err)
	require.Len(t, on.Programs, 2)
	info, err := other.Info()
	require.NoError(t, err)
	require.Equal(t, info.Program, on.Programs[0].ID)
}

// What is not ours stays: a qdisc that was there, and one that others use now.
func TestClsactLeavesOthers(t *testing.T) {
	t.Setenv(NoTCX, "1")
	newNetns(t)
	pins, m := testPins(t), newCounter(t)
	prog := counting(t, "from_uplink", m)
	foreign := func(ifindex int) *netlink.BpfFilter {
		f := filter(record{"x", ifindex, 0}, Ingress)
		f.Fd, f.Name, f.Priority, f.Handle = prog.FD(), "foreign", 10, 1
		return f
	}
	qdiscs := func(ifindex int) (n int) {
		list, err := netlink.QdiscList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}})
		require.NoError(t, err)
		for _, q := range list {
			if q.Type() == "clsact" {
				n++
			}
		}
		return n
	}
	attach := func(ifindex int) {
		_, err := Attach(prog, "from_uplink", ifindex, Ingress, pins)
		require.NoError(t, err)
	}

	ours := newVeth(t, "ours")
	attach(ours)
	require.Equal(t, 1, qdiscs(ours))
	require.NoError(t, Detach("from_uplink", ours, pins))
	require.Zero(t, qdiscs(ours), "our qdisc stays behind")

	theirs := newVeth(t, "theirs")
	require.NoError(t, netlink.QdiscAdd(clsact(record{ifindex: theirs})))
	attach(theirs)
	require.NoError(t, Detach("from_uplink", theirs, pins))
	require.Equal(t, 1, qdiscs(theirs), "removed a qdisc that was there before")

	shared := newVeth(t, "shared")
	attach(shared)
	require.NoError(t, netlink.FilterAdd(foreign(shared)))
	require.NoError(t, Detach("from_uplink", shared, pins))
	require.Equal(t, 1, qdiscs(shared), "removed a qdisc that others use")
	left, err := filters(record{ifindex: shared}, Ingress)
	require.NoError(t, err)
	require.Len(t, left, 1)

	taken := newVeth(t, "taken")
	require.NoError(t, netlink.QdiscAdd(clsact(record{ifindex: taken})))
	f := foreign(taken)
	f.Priority = filterPriority
	require.NoError(t, netlink.FilterAdd(f))
	_, err = Attach(prog, "from_uplink", taken, Ingress, pins)
	require.ErrorIs(t, err, errTaken)
}

func TestAttachNoDevice(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		pins := testPins(t)
		_, err := Attach(counting(t, "from_uplink", newCounter(t)), "from_uplink", 4711, Ingress, pins)
		require.ErrorIs(t, err, unix.ENODEV)
		left, err := os.ReadDir(linksDir(pins))
		require.NoError(t, err)
		require.Empty(t, left)
	})
}

func TestAttachments(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		pins, m := testPins(t), newCounter(t)
		prog := counting(t, "from_uplink", m)
		set := openSet(filepath.Join(programsDir(pins), "test-1"))
		require.NoError(t, makeDir(set.dir))
		own, err := prog.Clone()
		require.NoError(t, err)
		require.NoError(t, own.Pin(filepath.Join(set.dir, "from_uplink")))
		require.NoError(t, own.Close())
		slow, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		require.NoError(t, err)
		require.NoError(t, slow.Pin(filepath.Join(set.dir, BPFMapSlowPaths)))
		require.NoError(t, slow.Close())
		require.NoError(t, choose(pins, set))

		good, gone, stale := newVeth(t, "good"), newVeth(t, "gone"), newVeth(t, "stale")
		for _, i := range []int{good, gone} {
			_, err := Attach(prog, "from_uplink", i, Ingress, pins)
			require.NoError(t, err)
		}
		_, err = Attach(counting(t, "from_uplink", m), "from_uplink", stale, Ingress, pins)
		require.NoError(t, err)
		delLink(t, gone)

		list, err := Attachments(pins)
		require.NoError(t, err)
		problems := make(map[int]string)
		for _, a := range list {
			require.Equal(t, kind, a.Kind)
			problems[a.Ifindex] = a.Problem
		}
		require.Len(t, problems, 3)
		require.Empty(t, problems[good])
		require.Contains(t, problems[gone], "gone")
		require.Contains(t, problems[stale], "another program")

		pruned, err := Prune(pins)
		require.NoError(t, err)
		require.Len(t, pruned, 1)
		require.Equal(t, gone, pruned[0].Ifindex)
		require.NoError(t, os.Remove(filepath.Join(set.dir, BPFMapSlowPaths)))
		list, err = Attachments(pins)
		require.NoError(t, err)
		require.Len(t, list, 2)
		for _, a := range list {
			require.NotEmpty(t, a.Problem)
		}
	})
}

func TestClaim(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		first, second, m := testPins(t), testPins(t), newCounter(t)
		require.NoError(t, Claim(Options{BPFFS: first}))
		_, err := Attach(counting(t, "from_lo", m), "from_lo", 1, Ingress, first)
		require.NoError(t, err)
		require.NoError(t, Claim(Options{BPFFS: first}), "does not know itself")
		require.ErrorIs(t, Claim(Options{BPFFS: second}), ErrClaimed)
		require.NoError(t, Detach("from_lo", 1, first))
		require.NoError(t, Claim(Options{BPFFS: second}))
	})
}

// Pins have one owner, as long as that is there.
func TestOwner(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		return path
	}
	pins, first, second := testPins(t), file("first"), file("second")
	require.NoError(t, Mount(pins))
	require.NoError(t, Claim(Options{BPFFS: pins, Owner: second}), "nobody's yet")
	for _, owner := range []string{first, first, filepath.Join(dir, ".", "first"), ""} {
		require.NoError(t, setOwner(pins, owner))
	}
	require.NoError(t, os.Symlink(first, filepath.Join(dir, "another-way")))
	require.NoError(t, Claim(Options{BPFFS: pins, Owner: filepath.Join(dir, "another-way")}))
	err := Claim(Options{BPFFS: pins, Owner: second})
	require.ErrorIs(t, err, ErrOwned)
	require.ErrorContains(t, err, first)
	require.ErrorIs(t, setOwner(pins, second), ErrOwned)
	require.NoError(t, os.Remove(first))
	require.NoError(t, setOwner(pins, second), "the first is gone")
	require.ErrorIs(t, Claim(Options{BPFFS: pins, Owner: file("first")}), ErrOwned)
	require.NoError(t, Uninstall(Options{BPFFS: pins}))
	require.NoDirExists(t, pins)
}

func TestRecordNames(t *testing.T) {
	for _, r := range []record{{"from_lo", 1, 1}, {"to_uplink", 70000, 1 << 63}, {"post_bind4", 0, 0}} {
		got, ok := parseRecord(r.name())
		require.True(t, ok)
		require.Equal(t, r, got)
	}
	for _, name := range []string{"qdisc-1-1", "a-b", "a-0-1", "a-1-x", "a-1-2-next"} {
		_, ok := parseRecord(name)
		require.False(t, ok, name)
	}
}
