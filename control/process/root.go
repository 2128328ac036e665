// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// root is a directory within which paths are resolved as if it were "/":
// no "..", absolute link or magic link leads out of it (openat2, RESOLVE_IN_ROOT).
type root struct{ fd int }

func openRoot(dir string) (*root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &root{fd}, nil
}

func (r *root) Close() error { return unix.Close(r.fd) }

func (r *root) openat2(name string, flags, mode uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Mode:    mode,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for range 100 {
		// EAGAIN: a rename elsewhere, and ".." could not be shown to be safe.
		fd, err := unix.Openat2(r.fd, name, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// open returns a path-only descriptor.
func (r *root) open(name string) (int, error) { return r.openat2(name, unix.O_PATH, 0) }

// mkdirAll opens a directory, making it and those above it when missing (mode 0755).
func (r *root) mkdirAll(name string) (int, error) {
	fd, err := r.openat2(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != unix.ENOENT || name == "/" || name == "." {
		return fd, err
	}
	dir, base := split(name)
	parent, err := r.mkdirAll(dir)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, base, 0o755); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return r.openat2(name, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// file opens a regular file or device for mounting over it. Where there is none,
// an empty one is made, at the far end of a dangling link too.
func (r *root) file(name string) (int, error) {
	for range 40 { // as many links as the kernel follows
		fd, err := r.open(name)
		if err == nil {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				unix.Close(fd)
				return -1, err
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				unix.Close(fd)
				return -1, unix.EISDIR
			}
			return fd, nil
		}
		if err != unix.ENOENT {
			return -1, err
		}
		dir, base := split(name)
		parent, err := r.mkdirAll(dir)
		if err != nil {
			return -1, err
		}
		link, err := readlinkat(parent, base)
		unix.Close(parent)
		switch {
		case err == nil && path.IsAbs(link):
			name = link
		case err == nil:
			// Not cleaned: what ".." means is for the kernel to say.
			name = dir + "/" + link
		default:
			fd, err := r.openat2(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
			if err == nil {
				unix.Close(fd)
			} else if err != unix.EEXIST {
				return -1, err
			}
		}
	}
	return -1, unix.ELOOP
}

// bindFile covers the file name in the root with a file of the host.
func (r *root) bindFile(source, name string) error {
	at, err := r.file(name)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return bind(source, at)
}

// bindTree covers a directory of the root with one of the host and all that is mounted in it.
func (r *root) bindTree(source, name string) error {
	at, err := r.mkdirAll(name)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return bind(source, at)
}

func bind(source string, at int) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	defer unix.Close(tree)
	return moveMount(tree, at)
}

func split(name string) (dir, base string) {
	name = strings.TrimRight(name, "/")
	dir, base = path.Split(name)
	if dir = strings.TrimRight(dir, "/"); dir == "" {
		dir = "/"
	}
	return dir, base
}

func readlinkat(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", errors.New("link too long")
	}
	return string(buf[:n]), nil
}
