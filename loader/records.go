// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// record is an attachment as its pin's name tells it.
type record struct {
	program string
	ifindex int    // 0: a cgroup
	cookie  uint64 // of the device's network namespace
}

func linksDir(bpffs string) string { return filepath.Join(bpffs, "links") }

func (r record) name() string {
	if r.ifindex == 0 {
		return r.program
	}
	return fmt.Sprintf("%s-%d-%d", r.program, r.ifindex, r.cookie)
}

func (r record) path(pins string) string { return filepath.Join(linksDir(pins), r.name()) }

// String is the object of errors.
func (r record) String() string {
	if r.ifindex == 0 {
		return "program " + r.program
	}
	return fmt.Sprintf("program %s on device %d", r.program, r.ifindex)
}

func parseRecord(name string) (record, bool) {
	parts := strings.Split(name, "-")
	switch len(parts) {
	case 1:
		return record{program: name}, true
	case 3:
		ifindex, err := strconv.Atoi(parts[1])
		cookie, err2 := strconv.ParseUint(parts[2], 10, 64)
		return record{parts[0], ifindex, cookie}, err == nil && err2 == nil && ifindex > 0 && parts[0] != qdiscMark
	}
	return record{}, false
}

// readRecords lists the pinned attachments; none when there is no directory.
func readRecords(pins string) ([]record, error) {
	entries, err := os.ReadDir(linksDir(pins))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("links %s: %w", linksDir(pins), pathCause(err))
	}
	records := make([]record, 0, len(entries))
	for _, e := range entries {
		if r, ok := parseRecord(e.Name()); ok && !e.IsDir() {
			records = append(records, r)
		}
	}
	return records, nil
}

// NetnsCookie identifies the network namespace of the calling thread until the
// machine reboots.
func NetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace: socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("network namespace: cookie: %w", err)
	}
	return cookie, nil
}
