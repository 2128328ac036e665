// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// attachAll puts the programs where a host with some uplinks has them.
func attachAll(t testing.TB, o Options, devices ...int) {
	t.Helper()
	set, err := OpenPrograms(o)
	require.NoError(t, err)
	defer set.Close()
	for _, ifindex := range devices {
		for _, name := range []string{BPFProgFromUplink, BPFProgToUplink} {
			prog, err := set.Program(name)
			require.NoError(t, err)
			_, err = Attach(prog, name, ifindex, directionOf(name), o.BPFFS)
			require.NoError(t, err)
		}
	}
}

func TestPatrol(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		o := testOptions(t)
		objs, err := Load(o)
		require.NoError(t, err)
		require.NoError(t, objs.Close())
		a, b := newVeth(t, "a"), newVeth(t, "b")
		attachAll(t, o, a, b)
		p := NewPatrol(o.BPFFS)
		look := func(want Sight, filters bool) {
			t.Helper()
			got, err := p.Look(filters)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		look(Sight{Records: 4, Changed: true}, true)
		look(Sight{Records: 4}, true)
		look(Sight{Records: 4}, false)

		// Detached by somebody else, one by one; a clsact filter is missed only where one looks.
		for i, name := range []string{BPFProgFromUplink, BPFProgToUplink} {
			r := record{program: name, ifindex: a}
			r.cookie, err = NetnsCookie()
			require.NoError(t, err)
			if kind == KindTCX {
				l, err := link.LoadPinnedLink(r.path(o.BPFFS), nil)
				require.NoError(t, err)
				require.NoError(t, l.Detach())
				require.NoError(t, l.Close())
				look(Sight{Records: 4, Lost: 1 + i}, false)
			} else {
				require.NoError(t, netlink.FilterDel(filter(r, directionOf(name))))
				look(Sight{Records: 4, Lost: i}, false) // what is known to be lost stays so
			}
			look(Sight{Records: 4, Lost: 1 + i}, true)
		}
		attachAll(t, o, a)
		look(Sight{Records: 4}, true)

		// A pin that was removed takes a TCX program with it.
		on, err := Devices(o.BPFFS)
		require.NoError(t, err)
		require.Equal(t, map[int][]string{a: {BPFProgFromUplink, BPFProgToUplink}, b: {BPFProgFromUplink, BPFProgToUplink}}, on)
		cookie, err := NetnsCookie()
		require.NoError(t, err)
		require.NoError(t, os.Remove(record{program: BPFProgToUplink, ifindex: a, cookie: cookie}.path(o.BPFFS)))
		look(Sight{Records: 3, Changed: true}, true)
		if kind == KindTCX { // the kernel lets go of it a moment later
			// On this thread: another one is not in the test's namespace.
			for limit := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
				left, err := link.QueryPrograms(link.QueryOptions{Target: a, Attach: ebpf.AttachTCXEgress})
				require.NoError(t, err)
				if len(left.Programs) == 0 {
					break
				}
				require.True(t, time.Now().Before(limit), "%d programs left", len(left.Programs))
			}
		}
		attachAll(t, o, a)
		look(Sight{Records: 4, Changed: true}, true)

		// The pin of the slow path's table.
		require.NoError(t, os.Remove(filepath.Join(programsDir(o.BPFFS), current, BPFMapSlowPaths)))
		look(Sight{Records: 4, Lost: 4}, false)
		objs, err = Load(o)
		require.NoError(t, err)
		require.Len(t, objs.Replaced, 4)
		require.NoError(t, objs.Close())
		look(Sight{Records: 4}, true)

		delLink(t, b)
		for _, filters := range []bool{false, true} {
			got, err := p.Look(filters)
			require.NoError(t, err)
			require.Equal(t, 2, got.Lost, "the device is gone")
		}
		gone, err := Prune(o.BPFFS)
		require.NoError(t, err)
		require.Len(t, gone, 2)
		look(Sight{Records: 2, Changed: true}, true)
		require.NoError(t, os.Remove(filepath.Join(programsDir(o.BPFFS), current)))
		_, err = p.Look(true)
		require.ErrorIs(t, err, ErrNotLoaded)
	})
}
