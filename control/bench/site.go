// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/lab"
	"github.com/bpfnet/bpfnet/control/netns"
)

// site is one lab with its containers; contenders of one site differ in who talks to
// whom. All sites of a run stand at the same time, and one of them is measured.
//
//	   client                    host                     containers
//	┌─────────────┐  uplink   ┌──────────────────┐     ┌───────────────────────────┐
//	│ 203.0.113.2 ├───────────┤ 203.0.113.1      ├─────┤ peer, container 1 … web,  │
//	└─────────────┘           └──────────────────┘     │ which is the last one     │
//	                                                   └───────────────────────────┘
type site struct {
	*lab.Lab
	scale     Scale
	datapath  string           // "" is plain
	m         *control.Manager // nil: plain
	web, peer *netns.NS

	webAddr, peerAddr, gateway netip.Addr
}

// Scale is what a site has: ports published in all, evenly by its containers. What is
// measured is the last port of the last container.
type Scale struct {
	Ports      int `json:"ports"`
	Containers int `json:"containers"`
}

func (s Scale) String() string { return fmt.Sprintf("%dx%d", s.Ports, s.Containers) }

// One is the least scale.
var One = Scale{1, 1}

func (s Scale) check() error {
	if s.Ports < 1 || s.Ports > mostPorts || s.Containers < 1 || s.Containers > mostContainers {
		return fmt.Errorf("scale %s: 1 to %d ports, 1 to %d containers", s, mostPorts, mostContainers)
	}
	return nil
}

// port is the last of those that are published, and the one on which every server
// listens; those before it count down from it.
const (
	port           = 65000
	proxyPort      = port - 1 // of the host, for docker-proxy
	mostPorts      = port - 1023
	mostContainers = 1000 // a Linux bridge, which the iptables datapath needs, has 1,023 ports
)

// specs are the ports of container i, 0 the first. UDP has the last port only.
func (s Scale) specs(i int) []string {
	var list []string
	first, last := i*s.Ports/s.Containers, (i+1)*s.Ports/s.Containers
	for n := first; n < last; n++ {
		p := port - s.Ports + 1 + n
		list = append(list, fmt.Sprintf("%d:%d/tcp", p, p))
	}
	if i == s.Containers-1 {
		list = append(list, fmt.Sprintf("%d:%d/udp", port, port))
	}
	return list
}

const labName = "bpfnet-bench"

func newSite(scale Scale) (*site, error) {
	l, err := lab.New(labName)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return &site{Lab: l, scale: scale}, nil
}

// managed is a site that a Manager runs. stop is asked between two containers.
func managed(datapath string, scale Scale, stop func() error) (s *site, err error) {
	if s, err = newSite(scale); err != nil {
		return nil, err
	}
	undo := s.Close
	defer func() {
		if err != nil {
			_ = undo() // the error is the news
		}
	}()
	// The machine's own configuration is none of the lab's.
	config := filepath.Join(s.Dir, "config.json")
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		return nil, err
	}
	s.datapath = datapath
	s.m, err = control.Open(control.Options{
		Root: s.Root, BPFFS: s.BPFFS, Netns: s.Host.Path(), Cgroup: s.Cgroup, Datapath: datapath,
		Config: config,
	})
	if err != nil {
		return nil, err
	}
	s.OnClose(s.m.Close)
	s.OnClose(s.m.Uninstall)
	if err := s.m.Init(&control.Config{}); err != nil {
		return nil, err
	}
	if s.peer, s.peerAddr, err = s.attach("peer"); err != nil {
		return nil, err
	}
	for i := range scale.Containers {
		if err := stop(); err != nil {
			return nil, err
		}
		if s.web, s.webAddr, err = s.attach(containerName(i), scale.specs(i)...); err != nil {
			return nil, err
		}
	}
	n, err := s.m.Network(control.DefaultNetwork)
	if err != nil {
		return nil, err
	}
	s.gateway = n.Subnets[0].Gateway
	// A bridge of 1,000 ports that floods a container's question fills the CPU's backlog
	// (net.core.netdev_max_backlog, 1000), and the host's answer is dropped: so the
	// containers that are measured know their gateway.
	for _, ns := range []*netns.NS{s.peer, s.web} {
		if err := addNeighbour(ns, s.gateway, n.MAC); err != nil {
			return nil, fmt.Errorf("gateway's neighbour entry: %w", err)
		}
	}
	return s, nil
}

func addNeighbour(ns *netns.NS, addr netip.Addr, mac string) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	device, err := h.LinkByName(eth0)
	if err != nil {
		return err
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	return h.NeighSet(&netlink.Neigh{LinkIndex: device.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: hw})
}

func containerName(i int) string { return fmt.Sprint("web", i+1) }

// attach makes a container, and says its address.
func (s *site) attach(name string, publish ...string) (*netns.NS, netip.Addr, error) {
	ns, err := s.Namespace()
	if err != nil {
		return nil, netip.Addr{}, err
	}
	c, err := s.m.CreateContainer(control.ContainerOptions{Name: name, Attach: "netns:" + ns.Path(), Publish: publish})
	if err != nil {
		return nil, netip.Addr{}, err
	}
	for _, ep := range c.Endpoints {
		return ns, ep.IPv4.Addr(), nil
	}
	return nil, netip.Addr{}, fmt.Errorf("container %s: no address", name)
}

const plainBridge = "bridge0"

// plain is a site that the kernel alone runs: a bridge without programs or rules,
// forwarding, and a route from the client to the containers.
func plain() (s *site, err error) {
	if s, err = newSite(One); err != nil {
		return nil, err
	}
	undo := s.Close
	defer func() {
		if err != nil {
			_ = undo() // the error is the news
		}
	}()
	s.gateway, s.peerAddr, s.webAddr = netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr("172.17.0.3")
	h, err := s.Host.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = plainBridge
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	if err := lab.Up(s.Host, plainBridge, s.gateway.String()+"/16"); err != nil {
		return nil, err
	}
	err = s.Host.Do(func() error {
		// Rules of br_netfilter's are no part of plain bridging; without it there is no file.
		for _, family := range []string{"ip", "ip6", "arp"} {
			name := "/proc/sys/net/bridge/bridge-nf-call-" + family + "tables"
			if err := os.WriteFile(name, []byte("0"), 0); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	})
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		ns     **netns.NS
		device string
		addr   netip.Addr
	}{{&s.peer, "peer", s.peerAddr}, {&s.web, "web", s.webAddr}} {
		if *c.ns, err = s.plug(h, c.device, c.addr); err != nil {
			return nil, err
		}
	}
	return s, addRoute(s.Client, "172.17.0.0/16", lab.HostIPv4)
}

// plug makes a container's namespace on the bridge.
func (s *site) plug(h *netlink.Handle, device string, addr netip.Addr) (*netns.NS, error) {
	ns, err := s.Namespace()
	if err != nil {
		return nil, err
	}
	if err := lab.Cable(s.Host, device, ns, "eth0"); err != nil {
		return nil, err
	}
	bridge, err := h.LinkByName(plainBridge)
	if err != nil {
		return nil, err
	}
	end, err := h.LinkByName(device)
	if err != nil {
		return nil, err
	}
	if err := h.LinkSetMaster(end, bridge); err != nil {
		return nil, err
	}
	if err := h.LinkSetUp(end); err != nil {
		return nil, err
	}
	if err := lab.Up(ns, "eth0", addr.String()+"/16"); err != nil {
		return nil, err
	}
	return ns, addRoute(ns, "0.0.0.0/0", s.gateway)
}

func addRoute(ns *netns.NS, to string, via netip.Addr) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{Dst: dst, Gw: via.AsSlice()})
}
