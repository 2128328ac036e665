// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net/netip"
	"testing"
)

func BenchmarkHost(b *testing.B) {
	inNetns(b, func() {
		for port := range uint16(300) {
			defer holder{"tcp", "0.0.0.0", ""}.open(b, 2000+port)()
			defer holder{"udp", "::", ""}.open(b, 2000+port)()
		}
		b.Run("HeldByHost", func(b *testing.B) {
			for b.Loop() {
				_ = HeldByHost("tcp", addr("0.0.0.0"), 8080)
			}
		})
		b.Run("HostPorts", func(b *testing.B) {
			for b.Loop() {
				_, _ = HostPorts()
			}
		})
		specs, _ := Parse("4000-63999:4000-63999")
		both := []netip.Addr{addr("0.0.0.0"), addr("::")}
		for name, free := range map[string]func() func(string, netip.Addr, uint16) error{
			"checker": func() func(string, netip.Addr, uint16) error { return new(Checker).Free },
			"binds":   func() func(string, netip.Addr, uint16) error { return HeldByHost },
		} {
			b.Run("Pick of 60,000/"+name, func(b *testing.B) {
				for b.Loop() {
					if _, err := Pick(specs[0], both, Range{}, nil, free(), 0); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		var many, more Set
		for p := 32768; p < 60999; p += 4 {
			many.Add(uint16(p))
		}
		more = many
		more.Add(40001)
		b.Run("WriteReserved of 7,000 ports", func(b *testing.B) {
			for b.Loop() {
				if err := WriteReserved(many); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				_ = WriteReserved(Set{})
				b.StartTimer()
			}
		})
		b.Run("WriteReserved of one more", func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				_ = WriteReserved(many)
				b.StartTimer()
				if err := WriteReserved(more); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}
