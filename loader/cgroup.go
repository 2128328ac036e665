// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// BindGuard is the programs that refuse binds of published ports.
type BindGuard struct {
	Bind4, Bind6         *ebpf.Program // note who asks for any port
	PostBind4, PostBind6 *ebpf.Program // refuse
}

type guardHook struct {
	name string
	prog *ebpf.Program
	at   ebpf.AttachType
}

// hooks are in the order of attaching: who refuses comes after who notes.
func (g BindGuard) hooks() []guardHook {
	return []guardHook{
		{BPFProgBind4, g.Bind4, ebpf.AttachCGroupInet4Bind},
		{BPFProgBind6, g.Bind6, ebpf.AttachCGroupInet6Bind},
		{BPFProgPostBind4, g.PostBind4, ebpf.AttachCGroupInet4PostBind},
		{BPFProgPostBind6, g.PostBind6, ebpf.AttachCGroupInet6PostBind},
	}
}

// AttachBindGuard puts the guard on a cgroup v2 directory, all of it or nothing.
// What is attached there already gets the programs in place; what is attached to
// another cgroup moves.
func AttachBindGuard(cgroupDir string, guard BindGuard, pins string) (changed bool, err error) {
	id, err := cgroupID(cgroupDir)
	if err != nil {
		return false, err
	}
	if err := makeDir(linksDir(pins)); err != nil {
		return false, err
	}
	var done []string
	for _, h := range guard.hooks() {
		now, err := attachCgroup(cgroupDir, id, h.name, h.prog, h.at, pins)
		if err != nil {
			for _, name := range done {
				err = errors.Join(err, detach(record{program: name}, 0, pins))
			}
			return false, err
		}
		if now {
			done = append(done, h.name)
		}
	}
	return len(done) > 0, nil
}

// DetachBindGuard undoes AttachBindGuard. Nothing attached is fine.
func DetachBindGuard(pins string) error {
	hooks := BindGuard{}.hooks()
	slices.Reverse(hooks)
	for _, h := range hooks {
		if err := detach(record{program: h.name}, 0, pins); err != nil {
			return err
		}
	}
	return nil
}

func attachCgroup(dir string, id uint64, name string, prog *ebpf.Program, at ebpf.AttachType, pins string) (changed bool, err error) {
	r := record{program: name}
	old, err := link.LoadPinnedLink(r.path(pins), nil)
	if err == nil {
		defer old.Close()
		now, err := linkCgroup(old)
		if err != nil {
			return false, fmt.Errorf("%s: %w", r, err)
		}
		if now == id {
			changed, err = update(old, prog)
			if err != nil {
				err = fmt.Errorf("%s: %w", r, err)
			}
			return changed, err
		}
		if err := detach(r, 0, pins); err != nil {
			return false, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%s: %w", r, err)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: at, Program: prog})
	if err != nil {
		return false, fmt.Errorf("%s on cgroup %s: %w", r, dir, err)
	}
	defer l.Close() // detaches what could not be pinned
	if err := l.Pin(r.path(pins)); err != nil {
		return false, fmt.Errorf("%s: pin %s: %w", r, r.path(pins), err)
	}
	return true, nil
}

// linkCgroup is the id of the cgroup that a link is on; 0 when that is gone.
func linkCgroup(l link.Link) (uint64, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	cg := info.Cgroup()
	if cg == nil {
		return 0, errors.New("pin is not of a cgroup link")
	}
	return cg.CgroupId, nil
}

// cgroupID is what links call a cgroup: the file handle of its directory.
func cgroupID(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("cgroup %s: %w", dir, err)
	}
	if int64(st.Type) != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("cgroup %s: not in a cgroup v2 tree", dir)
	}
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil {
		return 0, &os.PathError{Op: "cgroup", Path: dir, Err: err}
	}
	if h.Size() != 8 {
		return 0, fmt.Errorf("cgroup %s: handle of %d bytes", dir, h.Size())
	}
	return binary.NativeEndian.Uint64(h.Bytes()), nil
}
