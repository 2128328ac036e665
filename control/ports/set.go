// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"strconv"
	"strings"
)

// Range is First..Last, both included.
type Range struct {
	First, Last uint16
}

// Len is the number of ports, 0 when Last is below First.
func (r Range) Len() int { return max(0, int(r.Last)-int(r.First)+1) }

// Contains reports whether port is in the range.
func (r Range) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

func (r Range) String() string { return rangeString(r.First, r.Last) }

const words = 65536 / 64

// Set is a set of ports, 8 KiB. The zero Set is empty, == compares, and it is
// written as the kernel writes it: "1-5,7".
type Set struct {
	w [words]uint64
}

// Add takes port in.
func (s *Set) Add(port uint16) { s.w[port/64] |= 1 << (port % 64) }

// AddRange takes First..Last in.
func (s *Set) AddRange(r Range) {
	for p := int(r.First); p <= int(r.Last); p++ {
		s.Add(uint16(p))
	}
}

// Remove takes port out.
func (s *Set) Remove(port uint16) { s.w[port/64] &^= 1 << (port % 64) }

// Has reports whether port is in.
func (s *Set) Has(port uint16) bool { return s.w[port/64]>>(port%64)&1 != 0 }

// Len counts the ports.
func (s *Set) Len() (n int) {
	for _, w := range s.w {
		n += bits.OnesCount64(w)
	}
	return n
}

// Union returns the ports of either.
func (s *Set) Union(t *Set) (u Set) {
	for i := range u.w {
		u.w[i] = s.w[i] | t.w[i]
	}
	return u
}

// Minus returns the ports of s that are not in t.
func (s *Set) Minus(t *Set) (u Set) {
	for i := range u.w {
		u.w[i] = s.w[i] &^ t.w[i]
	}
	return u
}

// Intersect returns the ports of both.
func (s *Set) Intersect(t *Set) (u Set) {
	for i := range u.w {
		u.w[i] = s.w[i] & t.w[i]
	}
	return u
}

// All yields the ports, rising.
func (s *Set) All() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for i, w := range s.w {
			for ; w != 0; w &= w - 1 {
				if !yield(uint16(i*64 + bits.TrailingZeros64(w))) {
					return
				}
			}
		}
	}
}

// Ranges yields the longest ranges that make up the set, rising.
func (s *Set) Ranges() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for p := 0; p < 65536; {
			first := s.next(p, 0)
			if first == 65536 {
				return
			}
			p = s.next(first, ^uint64(0))
			if !yield(Range{uint16(first), uint16(p - 1)}) {
				return
			}
		}
	}
}

// next returns the first port >= from that is in s^flip, or 65536.
func (s *Set) next(from int, flip uint64) int {
	for i := from / 64; i < words; i++ {
		w := s.w[i] ^ flip
		if i == from/64 {
			w &= ^uint64(0) << (from % 64)
		}
		if w != 0 {
			return i*64 + bits.TrailingZeros64(w)
		}
	}
	return 65536
}

func (s Set) String() string {
	var b []byte
	for r := range s.Ranges() {
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = appendRange(b, r)
	}
	return string(b)
}

func appendRange(b []byte, r Range) []byte {
	b = strconv.AppendUint(b, uint64(r.First), 10)
	if r.Last != r.First {
		b = append(b, '-')
		b = strconv.AppendUint(b, uint64(r.Last), 10)
	}
	return b
}

// MarshalText writes "1-5,7".
func (s Set) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseSet.
func (s *Set) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSet(string(text))
	return err
}

// ParseSet reads "1-5,7", in any order; white space around it and an empty string
// are no error. Ports are 0..65535.
func ParseSet(text string) (s Set, err error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return s, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		a, b, isRange := strings.Cut(item, "-")
		first, err := strconv.ParseUint(a, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(b, 10, 16)
		}
		if err == nil && last < first {
			err = errors.New("the wrong way round")
		}
		if err != nil {
			return Set{}, fmt.Errorf("invalid port range: %s", piece(item))
		}
		s.AddRange(Range{uint16(first), uint16(last)})
	}
	return s, nil
}
