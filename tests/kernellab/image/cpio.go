// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"
)

// archive writes a newc cpio, what the kernel unpacks into its first root
// (Documentation/driver-api/early-userspace/buffer-format.rst). Everything in it is
// root's. The first error stays and is close's.
type archive struct {
	w       *bufio.Writer
	inode   int
	written int64
	dirs    map[string]bool
	err     error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), dirs: map[string]bool{".": true, "/": true}}
}

// file adds a file and the directories above it. perm is its permission bits.
func (a *archive) file(name string, perm uint32, data []byte) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	a.dir(path.Dir(name))
	a.entry(name, 0o100000|perm, data)
}

// dir adds a directory and those above it, each once.
func (a *archive) dir(name string) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if a.dirs[name] || name == "" {
		return
	}
	a.dirs[name] = true
	a.dir(path.Dir(name))
	a.entry(name, 0o040755, nil)
}

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}

func (a *archive) entry(name string, mode uint32, data []byte) {
	a.inode++
	// magic, inode, mode, uid, gid, links, mtime, size, device (2), rdevice (2), length of the name, check
	a.put(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name))
	a.put(data)
}

// put writes and pads to four bytes.
func (a *archive) put(data []byte) {
	if a.err != nil {
		return
	}
	_, a.err = a.w.Write(data)
	a.written += int64(len(data))
	for ; a.err == nil && a.written%4 != 0; a.written++ {
		a.err = a.w.WriteByte(0)
	}
}
