// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// changer changes the configuration of both at once, as the control plane does: what a decision
// was based on gets a new generation, and then the epoch moves.
type changer struct {
	*maker
	away map[string]func() // what is gone, by name, and how it comes back
}

// bump gives a rule its next generation.
func (c *changer) bump(id uint32) {
	if r := c.m.Rules[id]; r != nil {
		r.Gen++
	} else {
		c.m.Rules[id] = &Rule{Gen: 1}
	}
}

// leave takes something away, or brings it back if it is away.
func (c *changer) leave(name string, away func() (back func())) string {
	if back := c.away[name]; back != nil {
		back()
		delete(c.away, name)
		return name + " is back"
	}
	c.away[name] = away()
	return name + " is gone"
}

// change makes one change and says which.
func (c *changer) change() string {
	m := c.m
	number := 1 + uint32(c.IntN(7))
	slot := 1 + uint32(c.IntN(13))
	n, e := m.Networks[number], m.Endpoints[slot]
	flag := func(name string, b *bool) string {
		*b = !*b
		c.bump(number)
		return fmt.Sprintf("network %d: %s %v", number, name, *b)
	}
	switch c.IntN(16) {
	case 0, 1: // unpublished, published again
		rule := one[uint32](c.Rand, 5000, 5001, 5003, 5004, 5005, 5006, 5009, 5010, 5010, 5100, 5110, 5101, 5103, 5105, 5106, 5200)
		return c.leave(fmt.Sprintf("publication %d", rule), func() func() {
			gone := map[Port]uint32{}
			for p, id := range m.Ports {
				if id == rule {
					gone[p] = id
					delete(m.Ports, p)
				}
			}
			r := *m.Rules[rule]
			m.Rules[rule] = &Rule{Gen: r.Gen + 1}
			c.bump(hostPorts)
			return func() {
				r.Gen = m.Rules[rule].Gen + 1
				m.Rules[rule] = &r
				for p, id := range gone {
					m.Ports[p] = id
				}
				c.bump(hostPorts)
			}
		})
	case 2: // another server behind it
		rule := one[uint32](c.Rand, 5000, 5100, 5003, 5103)
		if r := m.Rules[rule]; r.Kind == publication {
			r.Gen++
			to := one[uint32](c.Rand, 1, 2, 3, 9)
			r.Endpoint4, r.Endpoint6 = to, to
			c.bump(hostPorts)
			return fmt.Sprintf("publication %d leads to %d", rule, to)
		}
	case 3: // from=
		rule := one[uint32](c.Rand, 5002, 5102, 5000)
		if r := m.Rules[rule]; r.Kind == publication {
			r.Gen++
			r.Sources = one(c.Rand, nil, []netip.Prefix{netip.PrefixFrom(client4, 32), netip.PrefixFrom(client6, 128)})
			return fmt.Sprintf("publication %d from %v", rule, r.Sources)
		}
	case 4, 5: // a container stops, starts, with another address sometimes
		return c.leave(fmt.Sprintf("container %d", slot), func() func() {
			was := *e
			home := m.Networks[e.Network]
			home.Members = slices.DeleteFunc(slices.Clone(home.Members), func(s uint32) bool { return s == slot })
			*e = Endpoint{Gen: e.Gen + 1, Network: e.Network}
			return func() {
				was.Gen, was.Flows = e.Gen+1, 0
				if c.chance(3) {
					b := was.IP4.As4()
					b[3] ^= 0x40
					was.IP4 = netip.AddrFrom4(b)
				}
				*e = was
				home.Members = append(home.Members, slot)
			}
		})
	case 6, 7:
		return flag("icc", &n.ICC)
	case 8:
		return flag("masquerade", &n.Masquerade)
	case 9:
		return flag("full cone", &n.FullCone)
	case 10:
		if c.chance(2) {
			return flag("isolate", &n.Isolate)
		}
		return flag("internal", &n.Internal)
	case 11: // a link, by a rule of its own
		mate := one(c.Rand, 1, 2, 3, 4, 9, 10)
		proto, port := one[uint8](c.Rand, tcp, udp, icmp4, icmp6), one[uint16](c.Rand, 80, 0)
		id := 6100 + slot
		return c.leave(fmt.Sprintf("link %d to %d, %d/%d", slot, mate, port, proto), func() func() {
			m.Rules[id] = &Rule{Gen: c.gen(id) + 1, Kind: linkRule}
			links := []Link{{slot, uint32(mate), port, proto}, {Client: slot, Server: uint32(mate)}}
			for _, l := range links {
				m.Links[l] = id
			}
			return func() {
				for _, l := range links {
					delete(m.Links, l)
				}
				m.Rules[id] = &Rule{Gen: c.gen(id) + 1}
			}
		})
	case 12: // an address of the host
		a := one(c.Rand, host4, host6, second4, second6, tunnel4, tunnel6)
		return c.leave("address "+a.String(), func() func() {
			delete(m.Host, a)
			return func() { m.Host[a] = true }
		})
	case 13: // a route: gone, unreachable, by another way
		i := c.IntN(len(m.Routes))
		was := m.Routes[i]
		return c.leave(fmt.Sprintf("route %d %v", was.Table, was.To), func() func() {
			hops := was.Hops
			switch {
			case len(hops) == 2 && c.chance(2):
				hops = hops[1:]
			case len(hops) > 0 && c.chance(2):
				hops = slices.Clone(hops)
				hops[0].MTU, hops[0].Ifindex = 1280, one(c.Rand, c.devices["up0"], c.devices["up1"])
			default:
				hops = nil
			}
			set := func(hops []Hop) {
				for j := range m.Routes {
					if m.Routes[j].Table == was.Table && m.Routes[j].To == was.To {
						m.Routes[j].Hops = hops
					}
				}
			}
			set(hops)
			return func() { set(was.Hops) }
		})
	case 14: // a container's table
		m.RouteTables[slot] = one[uint32](c.Rand, 0, 7)
		return fmt.Sprintf("container %d by table %d", slot, m.RouteTables[slot])
	case 15:
		m.Settings.Quota = one[uint32](c.Rand, 0, 1, 4, 24)
		m.Settings.Pool = one(c.Rand, []Range{{20000, 20019}, {21000, 21019}}, []Range{{20003, 20006}}, []Range{{20003, 20003}}, []Range{{20007, 20007}, {20011, 20011}})
		return fmt.Sprintf("%+v", m.Settings)
	}
	return "nothing"
}

func (c *changer) gen(id uint32) uint32 {
	if r := c.m.Rules[id]; r != nil {
		return r.Gen
	}
	return 0
}

// sequence goes through packets and changes on one world.
func (w *world) sequence(seed, n uint64, steps int, careful bool) (packets, changes int, failure string) {
	w.begin(n)
	c := &changer{&maker{world: w, Rand: rand.New(rand.NewPCG(seed, 1<<32+n))}, map[string]func(){}}
	var story []string
	fail := func(i int, what string) string {
		return fmt.Sprintf("step %d of sequence %d\n%s\nchanges until then: %v\nrepeat: BPFNET_ORACLE_SEED=%d BPFNET_ORACLE_BATCH=%d go test -count=1 -run 'TestSequences$' ./tests/oracle",
			i, n, what, story, seed, n)
	}
	for i := range steps {
		switch {
		case c.chance(12):
			if what := w.quotasDiffer(); what != "" {
				return packets, changes, fail(i, what)
			}
			story = append(story, fmt.Sprintf("%d: %s", i, c.change()))
			w.m.Epoch++
			w.fill(&w.m.Tables)
			w.at(w.m.Now, w.m.Epoch)
			changes++
			continue
		case c.chance(25):
			w.m.Now += uint32(one(c.Rand, 1, 5, 29, 31, 59, 61, 119, 121, 241, 299, 301, 7441))
			w.at(w.m.Now, w.m.Epoch)
			continue
		}
		a := c.next(one(c.Rand, FromUplink, FromUplink, FromEndpoint, FromEndpoint, FromEndpoint, FromLo, ToBridge, FromTunnel, ToUplink, ToTunnel, ToEndpoint, ToParent))
		got, what := w.differ(a, false, careful)
		if what == errRefused.Error() {
			continue
		}
		if what == "" && careful {
			what = w.flowsDiffer()
		}
		if what != "" {
			return packets, changes, fail(i, describe(a)+"\n"+what)
		}
		packets++
		c.lead(a, got)
	}
	if what := w.flowsDiffer(); what != "" {
		return packets, changes, fail(steps, what)
	}
	return packets, changes, ""
}

// Packets and changes of the configuration, in any order, time passing: step by step the model and
// the programs say the same, and at the end they remember the same flows.
func TestSequences(t *testing.T) {
	w := newWorld(t)
	const steps = 600
	if n, err := strconv.ParseUint(os.Getenv("BPFNET_ORACLE_BATCH"), 10, 64); err == nil {
		_, _, failure := w.sequence(seed(), n, steps, true)
		require.Empty(t, failure)
		return
	}
	packets, changes, total := 0, 0, count()
	for n := uint64(0); packets < total; n++ {
		p, c, failure := w.sequence(seed(), n, steps, false)
		if failure != "" {
			_, _, exact := w.sequence(seed(), n, steps, true)
			if exact == "" {
				exact = failure
			}
			require.Empty(t, exact)
		}
		packets, changes = packets+p, changes+c
		w.tried["established"] += len(w.m.established)
	}
	if !testing.Short() {
		w.triedAll()
	}
	t.Logf("%d packets, %d changes, 0 differences", packets, changes)
}
