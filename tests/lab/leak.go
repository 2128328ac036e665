// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/moby/sys/mountinfo"
)

// checkGone says who still holds something of a lab that was taken down, but for the
// namespaces' own descriptors: once these are closed, their inode numbers may at once
// be those of another test's.
func (l *Lab) checkGone(namespaces []*netns.NS) error {
	var errs []error
	wanted, own := make(map[string]bool), make(map[string]bool)
	for _, ns := range namespaces {
		if ns.FD() < 0 {
			continue
		}
		_, inode, _ := strings.Cut(ns.ID(), ":")
		wanted["net:["+inode+"]"], own[procPath(ns)] = true, true
	}
	var holders []string
	// Threads of netns.Do and children that were reaped are gone in a moment.
	if !eventually(l.patience, func() bool {
		holders = slices.DeleteFunc(holdersOf(wanted), func(h string) bool { return own[h] })
		return len(holders) == 0
	}) {
		errs = append(errs, fmt.Errorf("network namespaces are still held by %s", strings.Join(holders, ", ")))
	}
	if l.Cgroup != "" {
		if _, err := os.Stat(l.Cgroup); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("cgroup %s is still there", l.Cgroup))
		}
	}
	list, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("bpf"))
	errs = append(errs, err)
	for _, m := range list {
		if m.Source == l.name {
			errs = append(errs, fmt.Errorf("bpffs is still mounted on %s", m.Mountpoint))
		}
	}
	return errors.Join(errs...)
}

// holdersOf lists the threads, descriptors and mounts by which namespaces of
// these names ("net:[inode]") are held.
func holdersOf(names map[string]bool) (holders []string) {
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/self/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		paths, _ := filepath.Glob(pattern)
		for _, p := range paths {
			if target, err := os.Readlink(p); err == nil && names[target] {
				holders = append(holders, p)
			}
		}
	}
	list, _ := mountinfo.GetMounts(mountinfo.FSTypeFilter("nsfs"))
	for _, m := range list {
		if names[m.Root] {
			holders = append(holders, "mount "+m.Mountpoint)
		}
	}
	return holders
}

// Leftovers lists what the product has in the lab: devices of H's that the lab did not
// make, programs on the lab's devices and on its cgroup, pins, mounts, and processes
// that were not started by the test itself. After an uninstall it is empty.
func (l *Lab) Leftovers(t testing.TB) (found []string) {
	t.Helper()
	h, err := l.Host.Netlink()
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	l.mu.Lock()
	clients, processes := slices.Clone(l.clients), slices.Clone(l.processes)
	l.mu.Unlock()
	for _, dev := range links {
		a := dev.Attrs()
		if a.Name != "lo" && !slices.ContainsFunc(clients, func(c *Client) bool { return c.Device == a.Name }) {
			found = append(found, "device "+a.Name)
		}
		qdiscs, err := h.QdiscList(dev)
		if err != nil {
			t.Fatalf("lab: %v", err)
		}
		for _, q := range qdiscs {
			if q.Type() == "clsact" {
				found = append(found, "clsact on "+a.Name)
			}
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			found = append(found, l.programs(a.Index, at, a.Name)...)
		}
	}
	cgroup, err := os.Open(l.Cgroup)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	defer cgroup.Close()
	for _, at := range []ebpf.AttachType{ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind, ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind} {
		found = append(found, l.programs(int(cgroup.Fd()), at, "the cgroup")...)
	}
	filepath.WalkDir(l.BPFFS, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != l.BPFFS {
			found = append(found, "pin "+path)
		}
		return nil
	})
	points, err := below(l.Root)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	for _, p := range points {
		found = append(found, "mount "+p)
	}
	for _, pid := range cgroupProcs(l.Cgroup) {
		if !slices.ContainsFunc(processes, func(p *Process) bool { return p.cmd.Process != nil && p.cmd.Process.Pid == pid }) {
			found = append(found, fmt.Sprintf("process %d", pid))
		}
	}
	return found
}

// programs is asked in H: a TCX target is an index there.
func (l *Lab) programs(target int, at ebpf.AttachType, on string) (found []string) {
	l.Host.Do(func() error {
		res, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: at})
		if err != nil {
			return nil // a kernel without TCX
		}
		for range res.Programs {
			found = append(found, fmt.Sprintf("program (%v) on %s", at, on))
		}
		return nil
	})
	return found
}
