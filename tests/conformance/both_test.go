// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/datapath/iptables"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// fewRows are those that say most about the iptables datapath in little time; make differences has all.
const fewRows = `^Test(A1|A4|A5|A6|A9|A10|A13|C1|C3|C4|C7|D1|D4)$`

// A few rows hold on the iptables datapath, too, by the very same tests; and fewer still on the
// flavour that is not the host's default.
func TestFewRowsOnIPTables(t *testing.T) {
	parallel(t)
	if netfilter() {
		return // they are what runs
	}
	for _, x := range []struct{ flavour, rows string }{{iptables.NFT, fewRows}, {iptables.Legacy, `^Test(A1|A10|C4)$`}} {
		cmd := exec.Command("/proc/"+strconv.Itoa(os.Getpid())+"/exe", "-test.run", x.rows, "-test.timeout", "3m")
		cmd.Env = append(os.Environ(), "BPFNET_DATAPATH="+control.DatapathIPTables, "BPFNET_IPTABLES="+x.flavour)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", x.flavour, out)
	}
}

// Random commands have the same outcome on both datapaths, and after each of them everybody
// reaches the same servers by the same addresses. With the long counts each run has a seed of its
// own; BPFNET_SEED repeats it.
//
//	X ── H ─┬─ bridge (icc on or off) ─┬─ one
//	        │                          └─ two
//	        └─ n2 ───────────────────── six, and who joins it
func TestBothDatapaths(t *testing.T) {
	parallel(t)
	seed := uint64(21)
	if soak() {
		seed = uint64(time.Now().UnixNano())
	}
	if text := os.Getenv("BPFNET_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("BPFNET_SEED=%d", seed)
	var worlds [2]*world
	for i, path := range []string{control.DatapathBPF, control.DatapathIPTables} {
		worlds[i] = newWorld(t, path, seed)
	}
	said, reached, steps := []string{"begin"}, 0, times(100, 5)
	for step := range steps + 1 {
		var outcomes [2]string
		var reach [2]map[question]string
		for i, w := range worlds {
			if step > 0 {
				what, err := w.random()
				outcomes[i] = fmt.Sprintf("%s: %v", what, err)
			}
			reach[i] = w.matrix()
		}
		said = append(said, outcomes[0])
		require.Equal(t, outcomes[0], outcomes[1], "BPFNET_SEED=%d, after %s", seed, strings.Join(said, "; "))
		// Who is silent in one of them only is given more time there.
		for i, w := range worlds {
			for q := range reach[1-i] {
				if _, answered := reach[i][q]; !answered {
					w.put(q, wait, reach[i])
				}
			}
		}
		reached += len(reach[0])
		require.Equal(t, readable(reach[0]), readable(reach[1]), "BPFNET_SEED=%d, after %s", seed, strings.Join(said, "; "))
	}
	require.Greater(t, reached, steps*10, "the control: much is reached")
}

// world is a host with one of the datapaths, and its containers.
type world struct {
	*cast
	who []*actor
	r   *rand.Rand
}

func newWorld(t *testing.T, path string, seed uint64) *world {
	c := newCastOn(t, path, lab.RouteToHost())
	yes := true
	require.NoError(t, c.m.Init(&control.Config{BIP: "10.1.0.1/24", BIP6: "fd00:1::1/64", IPv6: &yes}))
	c.network("n2", 2, true)
	w := &world{cast: c, r: rand.New(rand.NewPCG(seed, 0))}
	w.who = []*actor{c.container("one", "", exposes("80")), c.container("two", "", exposes("80")), c.container("six", "n2", exposes("80"))}
	for _, a := range w.who {
		c.serve(a, 80)
		c.serve(a, 81)
	}
	return w
}

func exposes(ports ...string) func(*control.ContainerOptions) {
	return func(o *control.ContainerOptions) { o.Expose = append(o.Expose, ports...) }
}

// random is one command. What it draws does not depend on what came of those before.
func (c *world) random() (string, error) {
	r := c.r
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	server, client := pick("one", "two", "six"), pick("one", "two", "six")
	spec := pick("", "", "", "127.0.0.1:", lab.HostIPv4+":", "["+lab.HostIPv6+"]:") + pick("8000:80", "8001:80", "8001:81", "8000-8002:79-81") + pick("", "", "/udp") +
		pick("", "", "", ",from=203.0.113.0/24,fd00:2::/64")
	icc := r.IntN(2) == 0
	switch r.IntN(8) {
	case 0, 1, 2:
		_, err := c.m.Publish(server, spec)
		return "publish " + server + " " + spec, err
	case 3:
		// One that is there, if any is.
		pubs, err := c.m.Publications(server)
		if err != nil || len(pubs) == 0 {
			return "unpublish nothing of " + server, err
		}
		spec := pubs[r.IntN(1<<16)%len(pubs)].Spec
		return "unpublish " + server + " " + spec, c.m.Unpublish(server, spec)
	case 4:
		return "link " + client + " " + server, c.m.Link(client, server)
	case 5:
		return "unlink " + client + " " + server, c.m.Unlink(client, server)
	case 6:
		network := pick("n2", "bridge")
		if r.IntN(2) == 0 {
			return "connect " + network + " " + server, c.m.Connect(network, server, control.EndpointOptions{})
		}
		return "disconnect " + network + " " + server, c.m.Disconnect(network, server)
	default:
		return fmt.Sprint("icc ", icc), c.m.Init(&control.Config{ICC: &icc})
	}
}

// question is who asks whom.
type question struct {
	from, proto string
	to          netip.AddrPort
}

func readable(reach map[question]string) (list []string) {
	for q, server := range reach {
		list = append(list, fmt.Sprintf("%s by %s to %s reaches %s", q.from, q.proto, q.to, server))
	}
	slices.Sort(list)
	return list
}

// matrix asks from everywhere to everywhere at once, and says who answered.
func (c *world) matrix() map[question]string {
	c.t.Helper()
	var ports, own []netip.AddrPort // published, and containers'
	for _, host := range []string{lab.HostIPv4, lab.HostIPv6, "10.1.0.1", "fd00:1::1", "10.2.0.1"} {
		for port := uint16(8000); port < 8003; port++ {
			ports = append(ports, netip.AddrPortFrom(netip.MustParseAddr(host), port))
		}
	}
	containers, err := c.m.Containers()
	require.NoError(c.t, err)
	for _, k := range containers {
		for _, ep := range k.Endpoints {
			for _, a := range []netip.Prefix{ep.IPv4, ep.IPv6} {
				if a.IsValid() {
					own = append(own, netip.AddrPortFrom(a.Addr(), 80), netip.AddrPortFrom(a.Addr(), 81))
				}
			}
		}
	}
	loopback := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8000"), netip.MustParseAddrPort("127.0.0.1:8001")}
	asked := map[string][]netip.AddrPort{"X": slices.Concat(ports, own), "H": slices.Concat(loopback, ports, own)}
	beside := besideSecond(containers)
	for _, a := range c.who {
		asked[a.name] = own
		if !beside[a.name] {
			asked[a.name] = slices.Concat(ports, own)
		}
	}
	reach := make(map[question]string)
	var lock sync.Mutex
	var asking sync.WaitGroup
	slots := make(chan struct{}, 32)
	for from, list := range asked {
		for _, to := range list {
			for _, proto := range []string{"tcp", "udp"} {
				asking.Go(func() {
					slots <- struct{}{}
					defer func() { <-slots }()
					q := question{from, proto, to}
					if server, ok := c.reaches(q, silence); ok {
						lock.Lock()
						defer lock.Unlock()
						reach[q] = server
					}
				})
			}
		}
	}
	asking.Wait()
	return reach
}

// put asks one question, and notes the answer.
func (c *world) put(q question, limit time.Duration, reach map[question]string) {
	if server, ok := c.reaches(q, limit); ok {
		reach[q] = server
	}
}

func (c *world) reaches(q question, limit time.Duration) (server string, ok bool) {
	from := map[string]*netns.NS{"X": c.Client, "H": c.Host}[q.from]
	for _, a := range c.who {
		if a.name == q.from {
			from = a.ns
		}
	}
	reply, err := ask(from, q.proto, "", q.to.String(), limit)
	return reply.Server, err == nil
}

// besideSecond are the containers on a network that another one has joined beside its own:
// published ports that lead there they reach by iptables only (README: what is not there yet).
func besideSecond(containers []*control.Container) map[string]bool {
	beside := make(map[string]bool)
	for _, server := range containers {
		for _, client := range containers {
			for id := range server.Endpoints {
				if len(server.Endpoints) > 1 && client.Endpoints[id] != nil {
					beside[client.Name] = true
				}
			}
		}
	}
	return beside
}
