// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/maps"
)

// calls is whether a bridge lets netfilter see what it bridges, and what the kernel takes
// for 127.0.0.0/8 on it.
type calls struct {
	IPv4          uint8  `json:"ipv4"`
	IPv6          uint8  `json:"ipv6"`
	RouteLocalnet string `json:"routeLocalnet"`
}

// loadBridgeFilter makes sure of br_netfilter, without which what a bridge carries from
// one container to another passes by all rules. It runs on a thread in the namespace.
func loadBridgeFilter() error {
	const sign = procNet + "bridge/bridge-nf-call-iptables"
	if _, err := os.Stat(sign); err == nil {
		return nil
	}
	out, err := exec.Command("modprobe", "br_netfilter").CombinedOutput()
	if _, there := os.Stat(sign); there == nil {
		return nil
	}
	return fmt.Errorf("br_netfilter: the kernel has no such module (modprobe: %s), and without it iptables cannot keep containers of a network apart: choose --datapath bpf",
		cmpText(string(out), fmt.Sprint(err)))
}

// prepareBridge lets netfilter see what a bridge carries, and lets the host's 127.0.0.1 reach
// containers on it. It is asked of this bridge alone: others stay as they are.
func (p *Path) prepareBridge(n maps.Network, device string) error {
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	m, err := p.meta()
	if err != nil {
		return err
	}
	all, err := p.host.Networks()
	if err != nil {
		return err
	}
	foreign := false
	for _, x := range all {
		foreign = foreign || x.Bridge == device && x.Foreign
	}
	localnet := "ipv4/conf/" + device + "/route_localnet"
	return ns.Do(func() error {
		value, err := readNet(localnet)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", device, err)
		}
		if _, known := m.Bridges[device]; foreign && !known {
			was, err := bridgeCalls(n.Bridge)
			if err != nil {
				return fmt.Errorf("bridge %s: %w", device, err)
			}
			was.RouteLocalnet = value
			if m.Bridges == nil {
				m.Bridges = make(map[string]calls)
			}
			m.Bridges[device] = was
		}
		if value != "1" {
			if err := os.WriteFile(procNet+localnet, []byte("1"), 0); err != nil {
				return fmt.Errorf("bridge %s: route_localnet: %w", device, err)
			}
		}
		return setBridgeCalls(n.Bridge, calls{IPv4: 1, IPv6: 1})
	})
}

// restoreBridge puts an adopted bridge back; index is 0 when it is gone.
func (p *Path) restoreBridge(device string, index int) error {
	m, err := p.meta()
	if err != nil {
		return err
	}
	was, ok := m.Bridges[device]
	if !ok {
		return nil
	}
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	delete(m.Bridges, device)
	if index == 0 {
		return nil
	}
	return ns.Do(func() error {
		err := os.WriteFile(procNet+"ipv4/conf/"+device+"/route_localnet", []byte(was.RouteLocalnet), 0)
		return errors.Join(ignoreMissing(err), setBridgeCalls(index, was))
	})
}

// restoreBridges puts back all: those of our own as the kernel makes them.
func (p *Path) restoreBridges() error {
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	m, err := p.meta()
	if err != nil {
		return err
	}
	return p.networks.each(func(_ uint32, n *network) error {
		if _, adopted := m.Bridges[n.Device]; adopted {
			return p.restoreBridge(n.Device, n.Bridge)
		}
		return ns.Do(func() error {
			err := ignoreMissing(os.WriteFile(procNet+"ipv4/conf/"+n.Device+"/route_localnet", []byte("0"), 0))
			if err2 := setBridgeCalls(n.Bridge, calls{}); err2 != nil && !errors.Is(err2, unix.ENODEV) {
				err = errors.Join(err, err2)
			}
			return err
		})
	})
}

// bridgeCalls runs on a thread in the namespace, as setBridgeCalls does.
func bridgeCalls(index int) (c calls, err error) {
	data, err := link.BridgeData(index)
	if err != nil {
		return c, err
	}
	for kind, to := range map[uint16]*uint8{nl.IFLA_BR_NF_CALL_IPTABLES: &c.IPv4, nl.IFLA_BR_NF_CALL_IP6TABLES: &c.IPv6} {
		if v := data[kind]; len(v) > 0 {
			*to = v[0]
		}
	}
	return c, nil
}

func setBridgeCalls(index int, c calls) error {
	err := link.SetBridgeData(index, nl.NewRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, nl.Uint8Attr(c.IPv4)),
		nl.NewRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, nl.Uint8Attr(c.IPv6)))
	if err != nil {
		return fmt.Errorf("device %d: bridge-nf-call-iptables: %w", index, err)
	}
	return nil
}

// hairpins lets a container's port send back what came by it: with br_netfilter what a container
// asks of its own published port is turned round on the bridge.
func (p *Path) hairpins() error {
	var devices []string
	for _, i := range p.endpoints.items {
		if i.now != nil && (p.full || i.changed()) {
			devices = append(devices, i.now.Device)
		}
	}
	return p.setHairpin(true, devices...)
}

func (p *Path) unhairpin() error {
	var devices []string
	err := p.endpoints.each(func(_ uint32, e *endpoint) error {
		devices = append(devices, e.Device)
		return nil
	})
	return errors.Join(err, p.setHairpin(false, devices...))
}

// setHairpin leaves devices out that are gone, or no ports of a bridge.
func (p *Path) setHairpin(on bool, devices ...string) error {
	if len(devices) == 0 {
		return nil
	}
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, name := range devices {
		l, err := h.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		switch {
		case err != nil:
		case l.Attrs().MasterIndex != 0:
			err = h.LinkSetHairpin(l, on)
		case on:
			err = errors.New("is no port of its network's bridge: one takes 1,023, and without a port iptables reaches nobody: use another network, or --datapath bpf")
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("device %s: hairpin: %w", name, err)
		}
	}
	return nil
}
