// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// /proc/sys/net shows the network namespace of the thread that opens it.
const (
	rangeFile    = "/proc/sys/net/ipv4/ip_local_port_range"
	reservedFile = "/proc/sys/net/ipv4/ip_local_reserved_ports"
)

// The kernel answers a read with as much of the bitmap as fits and nothing more
// after it (proc_do_large_bitmap in kernel/sysctl.c), so one buffer has to hold
// all: at most 21,845 times "10000-10001,". It takes at most a page of one write.
const (
	reservedText  = 512 << 10
	reservedChunk = 4000
)

// ReadRange returns ip_local_port_range: where the host's own connections, and
// host ports that nobody named, come from.
func ReadRange() (Range, error) {
	text, err := os.ReadFile(rangeFile)
	if err != nil {
		return Range{}, err
	}
	return parseLocalRange(string(text))
}

func parseLocalRange(text string) (Range, error) {
	fields := strings.Fields(text)
	if len(fields) == 2 {
		first, err1 := strconv.ParseUint(fields[0], 10, 16)
		last, err2 := strconv.ParseUint(fields[1], 10, 16)
		if err1 == nil && err2 == nil && 0 < first && first <= last {
			return Range{uint16(first), uint16(last)}, nil
		}
	}
	return Range{}, fmt.Errorf("%s: not two ports: %q", rangeFile, cut(text))
}

// ReadReserved returns ip_local_reserved_ports.
func ReadReserved() (Set, error) {
	f, err := os.Open(reservedFile)
	if err != nil {
		return Set{}, err
	}
	defer func() { _ = f.Close() }()
	return readReserved(f)
}

func readReserved(f *os.File) (Set, error) {
	buf := make([]byte, reservedText)
	n, err := f.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Set{}, err
	}
	if n == len(buf) {
		return Set{}, fmt.Errorf("%s: longer than %d bytes", reservedFile, n)
	}
	s, err := ParseSet(string(buf[:n]))
	if err != nil {
		return Set{}, fmt.Errorf("%s: %w", reservedFile, err)
	}
	return s, nil
}

// WriteReserved makes ip_local_reserved_ports s. Ports that are only added never
// leave a moment in which others are missing, and cost by their own number.
func WriteReserved(s Set) error {
	f, err := os.OpenFile(reservedFile, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	now, err := readReserved(f)
	if err != nil {
		return err
	}
	if now == s {
		return nil
	}
	// A write at offset 0 replaces the bitmap, one behind it adds to it.
	write, offset := s, int64(0)
	if gone := now.Minus(&s); gone == (Set{}) {
		write, offset = s.Minus(&now), 1
	}
	for _, chunk := range write.chunks(reservedChunk) {
		n, err := f.WriteAt(chunk, offset)
		if err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}

// chunks writes the set as lists of whole ranges, each of at most size bytes; an
// empty set is one empty line.
func (s *Set) chunks(size int) (list [][]byte) {
	var b []byte
	for r := range s.Ranges() {
		if len(b)+len("65535-65535,\n") > size {
			list = append(list, append(b, '\n'))
			b = nil
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = appendRange(b, r)
	}
	return append(list, append(b, '\n'))
}
