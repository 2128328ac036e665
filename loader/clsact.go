// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// Above the 0xc000 that the kernel gives the first filter that asks for no
	// priority (net/sched/cls_api.c, tcf_auto_prio; it counts down): we are last.
	filterPriority = 0xfb9f
	filterHandle   = 0xb9f
	filterPrefix   = "bpfnet_"

	qdiscMark = "qdisc" // of the directory that says that the qdisc is ours
)

var errTaken = errors.New("our priority is taken by a filter that is not ours")

// attachClsact puts prog into our filter on the hook, adding the clsact qdisc
// when the device has none, and pins prog as the record of it.
func attachClsact(prog *ebpf.Program, r record, dir Direction, pins string) (changed bool, err error) {
	id, err := programID(prog)
	if err != nil {
		return false, fmt.Errorf("%s: %w", r, err)
	}
	if err := addQdisc(r, pins); err != nil {
		return false, err
	}
	old, err := ourFilter(r, dir)
	if err != nil {
		return false, err
	}
	if old == nil || ebpf.ProgramID(old.Id) != id || old.Name != filterPrefix+r.program {
		f := filter(r, dir)
		f.Fd = prog.FD()
		if err := netlink.FilterReplace(f); err != nil {
			return false, fmt.Errorf("%s: %s filter: %w", r, dir, err)
		}
		changed = true
	}
	return changed, repin(prog, id, r.path(pins))
}

func detachClsact(r record, pins string) error {
	for _, dir := range []Direction{Ingress, Egress} {
		f, err := ourFilter(r, dir)
		if err != nil {
			return err
		}
		if f == nil || f.Name != filterPrefix+r.program {
			continue
		}
		if err := netlink.FilterDel(filter(r, dir)); err != nil && !noDevice(err) {
			return fmt.Errorf("%s: %s filter: %w", r, dir, err)
		}
	}
	return removeQdisc(r, pins)
}

func filter(r record, dir Direction) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: r.ifindex,
			Parent:    parent(dir),
			Handle:    filterHandle,
			Protocol:  unix.ETH_P_ALL,
			Priority:  filterPriority,
		},
		Name:         filterPrefix + r.program,
		DirectAction: true,
	}
}

func parent(dir Direction) uint32 {
	if dir == Egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// ourFilter is what sits in our place on the hook; nil when nothing does. A
// filter of somebody else's there is an error.
func ourFilter(r record, dir Direction) (*netlink.BpfFilter, error) {
	filters, err := filters(r, dir)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if f.Attrs().Priority != filterPriority {
			continue
		}
		b, ok := f.(*netlink.BpfFilter)
		if !ok || !strings.HasPrefix(b.Name, filterPrefix) {
			return nil, fmt.Errorf("%s: %s: %w", r, dir, errTaken)
		}
		return b, nil
	}
	return nil, nil
}

// filters of a hook; none when the device or the qdisc is not there.
func filters(r record, dir Direction) ([]netlink.Filter, error) {
	device := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: r.ifindex}}
	list, err := netlink.FilterList(device, parent(dir))
	if err != nil && !noDevice(err) {
		return nil, fmt.Errorf("%s: %s filters: %w", r, dir, err)
	}
	return list, nil
}

func clsact(r record) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: r.ifindex,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

func qdiscPath(r record, pins string) string {
	return filepath.Join(linksDir(pins), fmt.Sprintf("%s-%d-%d", qdiscMark, r.ifindex, r.cookie))
}

func addQdisc(r record, pins string) error {
	err := netlink.QdiscAdd(clsact(r))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: clsact qdisc: %w", r, err)
	}
	if err := os.Mkdir(qdiscPath(r, pins), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", r, err)
	}
	return nil
}

// removeQdisc removes the qdisc if we added it and nobody uses it.
func removeQdisc(r record, pins string) error {
	if _, err := os.Stat(qdiscPath(r, pins)); err != nil {
		return nil
	}
	for _, dir := range []Direction{Ingress, Egress} {
		left, err := filters(r, dir)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return nil
		}
	}
	if err := netlink.QdiscDel(clsact(r)); err != nil && !noDevice(err) {
		return fmt.Errorf("%s: clsact qdisc: %w", r, err)
	}
	if err := os.Remove(qdiscPath(r, pins)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", r, pathCause(err))
	}
	return nil
}

// repin makes path a pin of prog, at no moment of nothing.
func repin(prog *ebpf.Program, id ebpf.ProgramID, path string) error {
	if old, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		oldID, err := programID(old)
		old.Close()
		if err == nil && oldID == id {
			return nil
		}
	}
	own, err := prog.Clone() // prog itself may be pinned elsewhere, and Pin would move that
	if err != nil {
		return err
	}
	defer own.Close()
	next := path + "-next"
	os.Remove(next)
	if err := own.Pin(next); err != nil {
		return fmt.Errorf("pin %s: %w", next, err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

// noDevice says that the device, its qdisc or its filter is not there.
func noDevice(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)
}
