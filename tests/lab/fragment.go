// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"fmt"
)

const etherLen, ipv6Len = 14, 40

// Fragments cuts a frame's IP packet, as its sender or a router would (RFC 791 section
// 3.2, RFC 8200 section 4.5), into frames with at most size bytes of payload each, in order; size
// is a multiple of 8. id is the datagram's, of which IPv4 takes 16 bits. A packet without
// IPv4 options, and without extension headers.
func Fragments(frame []byte, size int, id uint32) (list [][]byte) {
	if size < 8 || size%8 != 0 {
		panic(fmt.Sprintf("fragments: size %d: not a multiple of 8", size))
	}
	head := etherLen + int(frame[etherLen]&0xf)*4
	if frame[etherLen]>>4 == 6 {
		head = etherLen + ipv6Len
	}
	payload := frame[head:]
	for off := 0; off < len(payload); off += size {
		end := min(off+size, len(payload))
		list = append(list, Fragment(frame[:head], payload[off:end], off, end < len(payload), id))
	}
	return list
}

// Fragment is one fragment: the frame's headers up to the end of its IP header, a piece of its
// payload, and the piece's offset in bytes. What is not so in nature (overlaps, an odd length)
// is the caller's to ask for.
func Fragment(headers, piece []byte, off int, more bool, id uint32) []byte {
	f := append([]byte{}, headers...)
	flag := uint16(0)
	if f[etherLen]>>4 == 6 {
		if more {
			flag = 1
		}
		ext := []byte{f[etherLen+6], 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint16(ext[2:], uint16(off)|flag)
		binary.BigEndian.PutUint32(ext[4:], id)
		f[etherLen+6] = 44
		binary.BigEndian.PutUint16(f[etherLen+4:], uint16(len(ext)+len(piece)))
		return append(append(f, ext...), piece...)
	}
	if more {
		flag = 0x2000
	}
	ip := f[etherLen:]
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(piece)))
	binary.BigEndian.PutUint16(ip[4:], uint16(id))
	binary.BigEndian.PutUint16(ip[6:], uint16(off/8)|flag)
	ip[10], ip[11] = 0, 0
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return append(f, piece...)
}
