// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/lab"
)

var (
	any4 = netip.IPv4Unspecified()
	any6 = netip.IPv6Unspecified()
)

func TestPorts(t *testing.T) {
	p := newTables(t).Ports
	at := func(want uint32, proto Proto, addr string, port uint16) {
		t.Helper()
		rule, ok, err := p.At(proto, ip(addr), port)
		require.NoError(t, err)
		require.Equal(t, want, rule)
		require.Equal(t, want != 0, ok)
	}
	b := Binding{TCP, any4, 7000, 3, 5000}
	require.NoError(t, p.Publish(b))
	require.NoError(t, p.Publish(b), "the same again")
	at(0, TCP, "0.0.0.0", 6999)
	at(5000, TCP, "0.0.0.0", 7000)
	at(5000, TCP, "192.0.2.1", 7002)
	at(0, TCP, "0.0.0.0", 7003)
	at(0, UDP, "0.0.0.0", 7000)
	at(0, TCP, "::", 7000)

	one := Binding{TCP, ip("192.0.2.1"), 8000, 2, 5001}
	two := Binding{TCP, ip("192.0.2.2"), 8000, 2, 5002}
	six := Binding{TCP, ip("2001:db8::1"), 8000, 1, 5003}
	for _, b := range []Binding{one, two, six} {
		require.NoError(t, p.Publish(b))
	}
	at(5001, TCP, "192.0.2.1", 8001)
	at(5002, TCP, "192.0.2.2", 8001)
	at(0, TCP, "192.0.2.3", 8001)
	at(5003, TCP, "2001:db8::1", 8000)

	list, err := p.List()
	require.NoError(t, err)
	require.Equal(t, []Binding{b, one, two, six}, list)

	require.NoError(t, p.Unpublish(one))
	require.NoError(t, p.Unpublish(one), "again")
	at(0, TCP, "192.0.2.1", 8001)
	at(5002, TCP, "192.0.2.2", 8001)
	require.True(t, addressed(t, p, TCP, any4, 8001), "the bit is gone while an address publishes the port")
	require.NoError(t, p.Unpublish(two))
	require.False(t, addressed(t, p, TCP, any4, 8001), "the bit stays behind")
	require.True(t, addressed(t, p, TCP, any6, 8000))
	foreign := b
	foreign.Rule = 1
	require.NoError(t, p.Unpublish(foreign))
	at(5000, TCP, "0.0.0.0", 7000)
	require.NoError(t, p.Unpublish(b))
	require.NoError(t, p.Unpublish(six))
	list, err = p.List()
	require.NoError(t, err)
	require.Empty(t, list)
}

// More ports than are looked up one by one, of which some lead elsewhere and some not.
func TestManyPortsOfOneAddress(t *testing.T) {
	p := newTables(t).Ports
	addr := ip("192.0.2.1")
	many := Binding{TCP, addr, 1000, 2 * fewKeys, 1}
	beside := Binding{TCP, ip("192.0.2.2"), 1000, 2 * fewKeys, 2}
	require.NoError(t, p.Publish(beside))
	require.NoError(t, p.Publish(Binding{TCP, addr, 1500, 10, 1}))
	require.NoError(t, p.Publish(many), "ten of them are its own")
	require.NoError(t, p.Publish(many), "the same again")
	require.NoError(t, p.Unpublish(Binding{TCP, addr, 1000, 2 * fewKeys, 3}), "of another rule")
	list, err := p.List()
	require.NoError(t, err)
	require.Equal(t, []Binding{many, beside}, list)
	require.NoError(t, p.Unpublish(Binding{TCP, addr, 1999, 1, 1}))
	require.NoError(t, p.Publish(Binding{TCP, addr, 1999, 1, 7}))
	port, taken, err := p.Conflict(many)
	require.NoError(t, err)
	require.True(t, taken)
	require.EqualValues(t, 1999, port)
	require.ErrorIs(t, p.Publish(many), ErrPublished)
	require.NoError(t, p.Unpublish(many))
	list, err = p.List()
	require.NoError(t, err)
	require.Equal(t, []Binding{{TCP, addr, 1999, 1, 7}, beside}, list)
	require.NoError(t, p.Unpublish(beside))
	require.False(t, addressed(t, p, TCP, any4, 1998))
	require.True(t, addressed(t, p, TCP, any4, 1999))
}

// All of a list or nothing of it, with what was there before as it was.
func TestPublishAllOrNone(t *testing.T) {
	p := newTables(t).Ports
	before := []Binding{{TCP, any4, 80, 1, 1}, {TCP, ip("192.0.2.1"), 90, 1, 2}, {TCP, ip("192.0.2.1"), 205, 1, 9}}
	require.NoError(t, p.Publish(before...))
	for _, clash := range []Binding{{TCP, any4, 200, 10, 5}, {TCP, ip("192.0.2.1"), 205, 1, 5}, {TCP, ip("192.0.2.2"), 100, 1, 5}, {TCP, ip("192.0.2.3"), 119, 1, 5}} {
		err := p.Publish(before[0], before[1], Binding{TCP, any4, 100, 2, 3}, Binding{TCP, ip("192.0.2.3"), 110, 10, 4}, clash)
		var taken *PublishedError
		require.ErrorAs(t, err, &taken)
		require.ErrorIs(t, err, ErrPublished)
		require.Equal(t, clash, taken.Binding)
		list, err := p.List()
		require.NoError(t, err)
		require.ElementsMatch(t, before, list)
		require.False(t, addressed(t, p, TCP, any4, 110))
	}
	more := []Binding{{TCP, any4, 100, 2, 3}, {TCP, ip("192.0.2.3"), 110, 10, 4}, {UDP, any4, 100, 2, 5}}
	require.NoError(t, p.Publish(more...))
	list, err := p.List()
	require.NoError(t, err)
	require.ElementsMatch(t, append(before, more...), list)
}

// addressed is what the programs see: look into ports_addr, too.
func addressed(t *testing.T, p *Ports, proto Proto, any netip.Addr, port uint16) bool {
	t.Helper()
	name := "ports6"
	if any.Is4() {
		name = "ports4"
	}
	m, err := p.src.Map(name)
	require.NoError(t, err)
	index, err := proto.index()
	require.NoError(t, err)
	var slot uint32
	require.NoError(t, m.Lookup(uint32(index*portCount)+uint32(port), &slot))
	return slot&portAddresses != 0
}

func TestPortConflicts(t *testing.T) {
	p := newTables(t).Ports
	require.NoError(t, p.Publish(Binding{TCP, any4, 100, 10, 1}))
	require.NoError(t, p.Publish(Binding{TCP, ip("192.0.2.1"), 200, 10, 2}))
	require.NoError(t, p.Publish(Binding{UDP, any6, 100, 10, 3}))
	for _, c := range []struct {
		b    Binding
		port uint16 // 0: none
	}{
		{Binding{TCP, any4, 90, 10, 9}, 0},
		{Binding{TCP, any4, 90, 11, 9}, 100},
		{Binding{TCP, any4, 105, 100, 9}, 105},
		{Binding{TCP, any4, 110, 90, 9}, 0},
		{Binding{TCP, any4, 110, 91, 9}, 200},
		{Binding{TCP, ip("192.0.2.1"), 109, 1, 9}, 109},
		{Binding{TCP, ip("192.0.2.2"), 109, 1, 9}, 109},
		{Binding{TCP, ip("192.0.2.1"), 195, 10, 9}, 200},
		{Binding{TCP, ip("192.0.2.2"), 195, 20, 9}, 0},
		{Binding{TCP, any4, 100, 10, 1}, 0}, // itself
		{Binding{TCP, ip("192.0.2.1"), 200, 10, 2}, 0},
		{Binding{UDP, any4, 100, 10, 9}, 0},
		{Binding{TCP, any6, 100, 110, 9}, 0},
		{Binding{UDP, ip("2001:db8::1"), 105, 10, 9}, 105},
		{Binding{TCP, ip("2001:db8::1"), 100, 110, 9}, 0},
	} {
		port, taken, err := p.Conflict(c.b)
		require.NoError(t, err)
		require.Equal(t, c.port != 0, taken, "%+v", c.b)
		require.Equal(t, c.port, port, "%+v", c.b)
		if taken {
			require.ErrorIs(t, p.Publish(c.b), ErrPublished)
		}
	}
	err := p.Publish(Binding{TCP, any4, 95, 10, 9})
	require.ErrorContains(t, err, "0.0.0.0:100 tcp")
	_, ok, err := p.At(TCP, any4, 95)
	require.NoError(t, err)
	require.False(t, ok, "half done")
}

func TestPortRefuses(t *testing.T) {
	p := newTables(t).Ports
	for _, b := range []Binding{
		{ICMP, any4, 1, 1, 1}, {TCP, netip.Addr{}, 1, 1, 1}, {TCP, any4, 0, 1, 1}, {TCP, any4, 65535, 2, 1},
		{TCP, any4, 1, 0, 1}, {TCP, ip("::ffff:1.2.3.4"), 1, 1, 1}, {TCP, ip("fe80::1%eth0"), 1, 1, 1},
		{TCP, any4, 1, 1, 0}, {TCP, any4, 1, 1, 1 << 31},
	} {
		require.Error(t, p.Publish(b), "%+v", b)
	}
	require.NoError(t, p.Publish(Binding{SCTP, any6, 1, 65535, 1}))
}

// Random publishing against an obvious table of every address and port.
func TestPortsAtRandom(t *testing.T) {
	p := newTables(t).Ports
	type door struct {
		proto Proto
		addr  netip.Addr
		port  uint16
	}
	rng := rand.New(rand.NewPCG(5, 6))
	addrs := []netip.Addr{any4, any6, ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1"), ip("2001:db8::2")}
	doors := make(map[door]uint32)
	var published []Binding
	conflicts := func(b Binding) (uint16, bool) {
		for i := range b.Count {
			port := b.First + uint16(i)
			for d := range doors {
				if d.proto == b.Proto && d.port == port && d.addr.Is4() == b.Addr.Is4() &&
					(d.addr == b.Addr || d.addr.IsUnspecified() || b.Addr.IsUnspecified()) {
					return port, true
				}
			}
		}
		return 0, false
	}
	for n := range uint32(400) {
		if len(published) > 0 && rng.IntN(3) == 0 {
			i := rng.IntN(len(published))
			b := published[i]
			require.NoError(t, p.Unpublish(b))
			for d, rule := range doors {
				if rule == b.Rule {
					delete(doors, d)
				}
			}
			published = append(published[:i], published[i+1:]...)
		} else {
			b := Binding{[]Proto{TCP, UDP}[rng.IntN(2)], addrs[rng.IntN(len(addrs))], uint16(1 + rng.IntN(60)), 1 + rng.IntN(6), n + 1}
			port, taken := conflicts(b)
			gotPort, gotTaken, err := p.Conflict(b)
			require.NoError(t, err)
			require.Equal(t, taken, gotTaken)
			require.Equal(t, port, gotPort)
			if taken {
				require.ErrorIs(t, p.Publish(b), ErrPublished)
				continue
			}
			require.NoError(t, p.Publish(b))
			published = append(published, b)
			for i := range b.Count {
				doors[door{b.Proto, b.Addr, b.First + uint16(i)}] = b.Rule
			}
		}
		for _, proto := range []Proto{TCP, UDP} {
			port := uint16(1 + rng.IntN(66))
			bits := map[bool]bool{} // by IPv4
			for _, a := range addrs {
				any := any6
				if a.Is4() {
					any = any4
				}
				want, ok := doors[door{proto, a, port}]
				if ok && !a.IsUnspecified() {
					bits[a.Is4()] = true
				}
				if !ok {
					want = doors[door{proto, any, port}]
				}
				got, _, err := p.At(proto, a, port)
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
			require.Equal(t, bits[true], addressed(t, p, proto, any4, port))
			require.Equal(t, bits[false], addressed(t, p, proto, any6, port))
		}
	}
	require.NotEmpty(t, published)
	list, err := p.List()
	require.NoError(t, err)
	require.ElementsMatch(t, published, list)
}

// A killed process left ports counted that no address publishes: Recount mends it.
func TestPortsAfterCrash(t *testing.T) {
	p := newTables(t).Ports
	kept := Binding{TCP, ip("192.0.2.1"), 79, 2, 1}
	require.NoError(t, p.Publish(kept))
	lost := Binding{TCP, ip("192.0.2.2"), 80, 2, 2}
	require.NoError(t, p.edit(lost, func(_ int, slot uint32) uint32 { return slot + portAddress }))
	_, taken, err := p.Conflict(Binding{TCP, any4, 81, 1, 3})
	require.NoError(t, err)
	require.True(t, taken, "the control")
	require.NoError(t, p.Recount())
	_, taken, err = p.Conflict(Binding{TCP, any4, 81, 1, 3})
	require.NoError(t, err)
	require.False(t, taken)
	require.False(t, addressed(t, p, TCP, any4, 81))
	require.True(t, addressed(t, p, TCP, any4, 80))
	require.NoError(t, p.Unpublish(kept))
	require.False(t, addressed(t, p, TCP, any4, 80))
}

// Loose bounds, five times and more what a machine of two slow cores takes, of the process's
// own time: what others do on the machine does not count. None with -short: where the
// machine is emulated.
func TestPortsAreFast(t *testing.T) {
	p := newTables(t).Ports
	used := func() time.Duration {
		var ts unix.Timespec
		require.NoError(t, unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts))
		return time.Duration(ts.Nano())
	}
	slowness := lab.Slowness(t)
	timed := func(what string, limit time.Duration, f func() error) {
		t.Helper()
		limit = time.Duration(float64(limit) * slowness)
		start := used()
		require.NoError(t, f())
		took := used() - start
		t.Logf("%-28s %s", what, took)
		if !testing.Short() {
			require.Less(t, took, limit, what)
		}
	}
	all := Binding{TCP, any4, 5000, 60000, 1}
	timed("publish 60,000", 20*time.Millisecond, func() error { return p.Publish(all) })
	timed("conflict of 60,000", 10*time.Millisecond, func() error { _, _, err := p.Conflict(all); return err })
	timed("unpublish 60,000", 20*time.Millisecond, func() error { return p.Unpublish(all) })
	one := Binding{TCP, ip("192.0.2.1"), 5000, 60000, 1}
	timed("publish 60,000 on one address", 150*time.Millisecond, func() error { return p.Publish(one) })
	more := Binding{TCP, ip("192.0.2.2"), 4999, 1, 2}
	timed("publish 1 more", 5*time.Millisecond, func() error { return p.Publish(more) })
	timed("unpublish 1", 5*time.Millisecond, func() error { return p.Unpublish(more) })
	timed("unpublish 60,000", 250*time.Millisecond, func() error { return p.Unpublish(one) })
	single := func(f func(Binding) error) func() error {
		return func() error {
			for i := range uint16(10000) {
				if err := f(Binding{TCP, ip("192.0.2.1"), 5000 + i, 1, 1 + uint32(i)}); err != nil {
					return err
				}
			}
			return nil
		}
	}
	timed("publish 10,000 one by one", 250*time.Millisecond, single(func(b Binding) error { return p.Publish(b) }))
	timed("recount", 100*time.Millisecond, p.Recount)
	timed("unpublish 10,000 one by one", 400*time.Millisecond, single(p.Unpublish))
	var list []Binding
	require.NoError(t, single(func(b Binding) error { list = append(list, b); return nil })())
	timed("publish 10,000 at once", 50*time.Millisecond, func() error { return p.Publish(list...) })
}
