// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// What was dropped on devices that are gone is one row a reason in `status`, whoever had them.
//
//	n1 ─┬─ srv   stays; each sends frames from an address that is not its own
//	    ├─ one   detached
//	    └─ two   detached
func TestStatusOfGoneDevices(t *testing.T) {
	parallel(t)
	const n = 7
	c := newCast(t)
	c.network("n1", 1, true)
	actors := []*actor{c.container("srv", "n1"), c.container("one", "n1"), c.container("two", "n1")}
	rows := func() (list []control.DropStatus) {
		status, err := c.m.Status()
		require.NoError(t, err)
		for _, d := range status.Drops {
			if d.Reason == "SPOOFED_IPV4" {
				list = append(list, d)
			}
		}
		return list
	}
	for _, a := range actors {
		forged := c.station(a, "n1")
		forged.ip4 = netip.MustParseAddr("10.1.0.99")
		before := c.drops("SPOOFED_IPV4")
		require.NoError(t, lab.Inject(a.ns, "eth0", forged.to(c.gateway("n1"), 4).UDP(1, 2, []byte("x")), n))
		eventually(t, "drops", func() bool { return c.drops("SPOOFED_IPV4") == before+n })
	}
	require.Len(t, rows(), 3)
	for _, r := range rows() {
		require.NotEqual(t, "(gone)", r.Device)
		require.NotEmpty(t, r.Container)
	}
	require.NoError(t, c.m.RemoveContainer("one"))
	require.NoError(t, c.m.RemoveContainer("two"))
	left := rows()
	require.Len(t, left, 2)
	require.Equal(t, "srv", left[0].Container)
	require.Equal(t, control.DropStatus{Device: "(gone)", Reason: "SPOOFED_IPV4", Packets: 2 * n}, left[1])
}
