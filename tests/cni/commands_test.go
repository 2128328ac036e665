// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// prev is a configuration with an ADD's result, as runtimes keep it for CHECK and DEL.
func (a answer) prev(t testing.TB, c conf) conf {
	t.Helper()
	var result map[string]any
	require.NoError(t, json.Unmarshal([]byte(a.out), &result))
	return c.with(conf{"prevResult": result})
}

// All versions: the result has the version's form and says what is there.
func TestVersions(t *testing.T) {
	r := newRuntime(t)
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			r := *r
			r.t = t
			p := r.pod("pod-" + version)
			c := r.pods().with(conf{"cniVersion": version})
			a := r.must(p.call("ADD", c))
			require.Contains(t, strings.Join(strings.Fields(a.out), ""), `"cniVersion":"`+version+`"`)
			require.Len(t, a.result.Interfaces, 3)
			bridge, host, inside := a.result.Interfaces[0], a.result.Interfaces[1], a.result.Interfaces[2]
			require.Equal(t, lab.Link(t, r.Host, bridge.Name).Attrs().HardwareAddr.String(), bridge.Mac)
			require.Equal(t, lab.Link(t, r.Host, host.Name).Attrs().HardwareAddr.String(), host.Mac)
			require.Equal(t, "eth0", inside.Name)
			require.Equal(t, p.path, inside.Sandbox)
			l := lab.Link(t, p.ns, "eth0")
			require.Equal(t, l.Attrs().HardwareAddr.String(), inside.Mac)
			h, err := p.ns.Netlink()
			require.NoError(t, err)
			defer h.Close()
			is, err := h.AddrList(l, netlink.FAMILY_ALL)
			require.NoError(t, err)
			require.Len(t, a.result.IPs, 2)
			for _, ip := range a.result.IPs {
				require.Equal(t, 2, *ip.Interface)
				require.True(t, slices.ContainsFunc(is, func(a netlink.Addr) bool { return a.IPNet.String() == ip.Address.String() }), ip.Address)
				require.NoError(t, lab.Ping(p.ns, ip.Gateway.String(), wait))
			}
			require.Len(t, a.result.Routes, 2)

			if version != "0.3.1" {
				r.must(p.call("CHECK", a.prev(t, c)))
			} else {
				r.fails(p.call("CHECK", a.prev(t, c)), 1, "CHECK")
			}
			for _, command := range []string{"GC", "STATUS"} {
				gc := p.call(command, c.with(conf{"cni.dev/valid-attachments": []any{map[string]any{"containerID": p.id, "ifname": "eth0"}}}))
				if version == "1.1.0" {
					r.must(gc)
				} else {
					r.fails(gc, 1, command)
				}
			}
			require.NoError(t, lab.Ping(p.ns, a.result.IPs[0].Gateway.String(), wait))
			r.must(p.call("DEL", a.prev(t, c)))
			r.empty()
		})
	}
	for _, version := range []string{"0.2.0", "0.3.0", "2.0.0"} {
		p := r.pod("old")
		r.fails(p.call("ADD", r.pods().with(conf{"cniVersion": version})), 1)
	}
	a := r.must(call{command: "VERSION"})
	var said struct {
		Supported []string `json:"supportedVersions"`
	}
	require.NoError(t, json.Unmarshal([]byte(a.out), &said))
	require.Equal(t, []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}, said.Supported)
}

// DEL ends an attachment however much of it is left, and again.
func TestDel(t *testing.T) {
	r := newRuntime(t)
	c := mapped(r.pods(), "8080:80/tcp")
	for name, del := range map[string]func(p pod, a answer) call{
		"as added":            func(p pod, a answer) call { return p.call("DEL", a.prev(t, c)) },
		"without prevResult":  func(p pod, _ answer) call { return p.call("DEL", r.pods()) },
		"without a namespace": func(p pod, _ answer) call { return call{command: "DEL", conf: c, id: p.id} },
		"namespace gone": func(p pod, _ answer) call {
			p.vanish(t)
			return p.call("DEL", c)
		},
		"without CNI_NETNS": func(p pod, _ answer) call {
			return call{command: "DEL", conf: c, id: p.id, unset: "CNI_NETNS"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.t = t
			p := r.pod("gone")
			a := r.must(p.call("ADD", c))
			require.Contains(t, r.containers(), "gone")
			line := del(p, a)
			r.must(line)
			r.empty()
			r.must(line)
		})
	}
	t.Run("another interface", func(t *testing.T) {
		r := *r
		r.t = t
		p := r.pod("stays")
		r.must(p.call("ADD", c))
		other := p.call("DEL", c)
		other.ifName = "eth7"
		r.must(other)
		require.Contains(t, r.containers(), "stays")
		r.must(p.call("DEL", c))
		r.empty()
	})
	t.Run("nothing was ever here", func(t *testing.T) {
		r := *r
		r.t = t
		root := filepath.Join(t.TempDir(), "none")
		r.must(call{command: "DEL", conf: r.pods().with(conf{"root": root}), id: "nobody"})
		_, err := os.Stat(root)
		require.ErrorIs(t, err, os.ErrNotExist)
	})
}

// CHECK notices what is not as ADD said.
func TestCheck(t *testing.T) {
	r := newRuntime(t)
	c := r.pods()
	p := r.pod("checked")
	add := func() conf { return r.must(p.call("ADD", c)).prev(t, c) }
	del := func() { r.must(p.call("DEL", c)) }
	const differs = 101

	good := add()
	r.must(p.call("CHECK", good))
	r.fails(p.call("CHECK", c), 7, "prevResult")
	stranger := r.pod("stranger")
	r.fails(stranger.call("CHECK", good), 3, "stranger")
	moved := call{command: "CHECK", conf: good, id: p.id, netns: stranger.path}
	r.fails(moved, differs, "namespace")
	var other map[string]any
	require.NoError(t, json.Unmarshal([]byte(strings.ReplaceAll(mustJSON(t, good["prevResult"]), "10.88.0.2/16", "10.88.0.3/16")), &other))
	r.fails(p.call("CHECK", good.with(conf{"prevResult": other})), differs, "10.88.0.3")
	del()
	good = mapped(add(), "8080:80/tcp")
	r.fails(p.call("CHECK", good), differs, "8080:80/tcp")
	_, err := r.m.Publish("checked", "8080:80")
	require.NoError(t, err)
	r.must(p.call("CHECK", good))
	del()

	for name, harm := range map[string]func(h *netlink.Handle, l netlink.Link) error{
		"address": func(h *netlink.Handle, l netlink.Link) error {
			list, err := h.AddrList(l, netlink.FAMILY_V4)
			require.NoError(t, err)
			return h.AddrDel(l, &list[0])
		},
		"route": func(h *netlink.Handle, l netlink.Link) error {
			list, err := h.RouteList(l, netlink.FAMILY_V4)
			require.NoError(t, err)
			i := slices.IndexFunc(list, func(r netlink.Route) bool { return r.Gw != nil })
			return h.RouteDel(&list[i])
		},
		"down": func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetDown(l) },
		"mac": func(h *netlink.Handle, l netlink.Link) error {
			return h.LinkSetHardwareAddr(l, []byte{2, 0, 0, 0, 0, 9})
		},
		"cable": func(h *netlink.Handle, l netlink.Link) error { return h.LinkDel(l) },
		"program, with its pin": func(_ *netlink.Handle, l netlink.Link) error {
			pins, err := filepath.Glob(fmt.Sprintf("%s/links/%s-%d-*", r.BPFFS, loader.BPFProgFromEndpoint, l.Attrs().ParentIndex))
			require.NoError(t, err)
			require.Len(t, pins, 1)
			return os.Remove(pins[0])
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.t = t
			good := add()
			r.must(p.call("CHECK", good))
			h, err := p.ns.Netlink()
			require.NoError(t, err)
			defer h.Close()
			require.NoError(t, harm(h, lab.Link(t, p.ns, "eth0")))
			r.fails(p.call("CHECK", good), differs)
			del()
			r.empty()
		})
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

// GC ends what the runtime does not list, on its network, and nothing of anybody else's.
func TestGC(t *testing.T) {
	r := newRuntime(t)
	c := r.pods()
	other := r.pods().with(conf{"name": "other", "subnets": []string{"10.89.0.0/16"}})
	long := strings.Repeat("0a", 32)
	valid, long64, stale := r.pod("valid"), r.pod(long), r.pod("stale")
	for _, p := range []pod{valid, long64, stale} {
		r.must(p.call("ADD", c))
	}
	second := stale.call("ADD", other)
	second.ifName = "eth1"
	r.must(second)
	_, path := r.AddNetns(t, "user")
	_, err := r.m.CreateContainer(control.ContainerOptions{Name: "user", Network: "pods", Attach: "netns:" + path})
	require.NoError(t, err)

	list := []any{map[string]any{"containerID": "valid", "ifname": "eth0"}, map[string]any{"containerID": long, "ifname": "eth0"}}
	r.must(call{command: "GC", conf: c.with(conf{"cni.dev/valid-attachments": list})})
	left := r.containers()
	require.Len(t, left, 4)
	require.Len(t, left["stale"].Endpoints, 1, "its other network is not this one")
	require.NoError(t, lab.Ping(valid.ns, "10.88.0.1", wait))

	r.must(call{command: "GC", conf: other.with(conf{"cni.dev/valid-attachments": []any{}})})
	r.must(call{command: "GC", conf: c.with(conf{"cni.dev/valid-attachments": list[1:]})})
	left = r.containers()
	require.Len(t, left, 2)
	require.Contains(t, left, "user")
	require.Contains(t, left, long)
	require.NoError(t, r.m.RemoveContainer("user"))
	r.must(long64.call("DEL", c))
	r.empty()
}

// STATUS says no where an ADD could not be served.
func TestStatus(t *testing.T) {
	r := newRuntime(t)
	r.must(call{command: "STATUS", conf: r.pods()})
	r.fails(call{command: "STATUS", conf: r.pods().with(conf{"mtu": 3})}, 7, "mtu")
	r.must(call{command: "STATUS", conf: r.pods().with(conf{"root": filepath.Join(t.TempDir(), "none")})})
	bad := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bad, "store.db"), []byte(strings.Repeat("no store", 10000)), 0o600))
	r.fails(call{command: "STATUS", conf: r.pods().with(conf{"root": bad})}, 50)
}
