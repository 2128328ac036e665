// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPick(t *testing.T) {
	both := []netip.Addr{addr("0.0.0.0"), addr("::")}
	four := both[:1]
	eph := Range{32768, 32777}
	other := errors.New("something else")
	type key struct {
		proto string
		addr  string
		port  uint16
	}
	tests := []struct {
		name      string
		spec      string
		addrs     []netip.Addr
		taken     map[key]error
		reserved  []uint16
		start     uint16
		want      uint16
		expectErr string
	}{
		{name: "fixed", spec: "8080:80", addrs: both, want: 8080},
		{name: "B5", spec: "8080:80", addrs: both, taken: map[key]error{{"tcp", "0.0.0.0", 8080}: ErrAllocated},
			expectErr: "Bind for 0.0.0.0:8080 failed: port is already allocated"},
		{name: "B5, IPv6 only", spec: "8080:80", addrs: both, taken: map[key]error{{"tcp", "::", 8080}: ErrAllocated},
			expectErr: "Bind for [::]:8080 failed: port is already allocated"},
		{name: "B6", spec: "8080:80", addrs: both, taken: map[key]error{{"tcp", "0.0.0.0", 8080}: ErrInUse},
			expectErr: "Bind for 0.0.0.0:8080 failed: address already in use"},
		{name: "B7", spec: "192.0.2.1:8080:80", addrs: []netip.Addr{addr("192.0.2.1")}, taken: map[key]error{{"tcp", "192.0.2.1", 8080}: ErrNotAvailable},
			expectErr: "Bind for 192.0.2.1:8080 failed: cannot assign requested address"},
		{name: "B10, the other protocol", spec: "8080:80/udp", addrs: both, taken: map[key]error{{"tcp", "0.0.0.0", 8080}: ErrAllocated}, want: 8080},
		{name: "fixed and reserved", spec: "32770:80", addrs: both, reserved: []uint16{32770}, want: 32770},
		{name: "A15", spec: "7000-7002:80-82", addrs: both, want: 7000},
		{name: "A15, one taken", spec: "7000-7002:80-82", addrs: both, taken: map[key]error{{"tcp", "::", 7002}: ErrInUse},
			expectErr: "Bind for [::]:7002 failed: address already in use"},
		{name: "the last port", spec: "65535:80", addrs: four, want: 65535},
		{name: "a range to the last port", spec: "65534-65535:80-81", addrs: four, want: 65534},

		{name: "B3", spec: "8080-8083:80", addrs: both, taken: map[key]error{{"tcp", "0.0.0.0", 8080}: ErrAllocated}, want: 8081},
		{name: "B3, one family each", spec: "8080-8083:80", addrs: both,
			taken: map[key]error{{"tcp", "0.0.0.0", 8080}: ErrAllocated, {"tcp", "::", 8081}: ErrInUse}, want: 8082},
		{name: "B4", spec: "8080-8081:80", addrs: both,
			taken: map[key]error{{"tcp", "0.0.0.0", 8080}: ErrAllocated, {"tcp", "::", 8081}: ErrInUse}, expectErr: "all ports are allocated"},
		{name: "no such address is no exhaustion", spec: "8080-8083:80", addrs: four, taken: map[key]error{{"tcp", "0.0.0.0", 8080}: ErrNotAvailable},
			expectErr: "Bind for 0.0.0.0:8080 failed: cannot assign requested address"},
		{name: "choose to the last port", spec: "65534-65535:80", addrs: four,
			taken: map[key]error{{"tcp", "0.0.0.0", 65534}: ErrInUse}, want: 65535},
		{name: "choose past the last port", spec: "65534-65535:80", addrs: four,
			taken: map[key]error{{"tcp", "0.0.0.0", 65534}: ErrInUse, {"tcp", "0.0.0.0", 65535}: ErrInUse}, expectErr: "all ports are allocated"},

		{name: "B1", spec: "80", addrs: both, want: 32768},
		{name: "B1, reserved", spec: "80", addrs: both, reserved: []uint16{32768, 32769}, want: 32770},
		{name: "B1, one number for both", spec: "80", addrs: both,
			taken: map[key]error{{"tcp", "0.0.0.0", 32768}: ErrAllocated, {"tcp", "::", 32769}: ErrInUse}, want: 32770},
		{name: "start", spec: "80", addrs: both, start: 32775, want: 32775},
		{name: "start, wraps", spec: "80", addrs: both, start: 32776, reserved: []uint16{32776, 32777, 32768}, want: 32769},
		{name: "start outside", spec: "80", addrs: both, start: 80, want: 32768},
		{name: "only the one before start", spec: "80", addrs: four, start: 32769, want: 32768,
			reserved: []uint16{32769, 32770, 32771, 32772, 32773, 32774, 32775, 32776, 32777}},
		{name: "exhausted", spec: "80", addrs: four, start: 32770, expectErr: "all ports are allocated",
			reserved: []uint16{32768, 32769, 32770, 32771, 32772, 32773, 32774, 32775, 32776, 32777}},
		{name: "another error ends it", spec: "80", addrs: four, taken: map[key]error{{"tcp", "0.0.0.0", 32768}: other},
			expectErr: "Bind for 0.0.0.0:32768 failed: something else"},
		{name: "a run", spec: "80-82", addrs: both, want: 32768},
		{name: "a run behind a hole", spec: "80-82", addrs: both, taken: map[key]error{{"tcp", "::", 32770}: ErrInUse}, want: 32771},
		{name: "a run over start", spec: "80-82", addrs: four, start: 32771, reserved: []uint16{32773, 32776}, want: 32768},
		{name: "a run that begins before start and ends behind it", spec: "80-83", addrs: four, start: 32771, reserved: []uint16{32773, 32768}, want: 32774},
		{name: "a run just over start", spec: "80-83", addrs: four, start: 32771, reserved: []uint16{32768, 32773, 32776}, want: 32769},
		{name: "no run does not wrap", spec: "80-83", addrs: four, start: 32776, reserved: []uint16{32770, 32774}, expectErr: "all ports are allocated"},
		{name: "the whole range", spec: "80-89", addrs: four, start: 32772, want: 32768},
		{name: "more than the range", spec: "80-90", addrs: four, expectErr: "all ports are allocated"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			specs, err := Parse(tt.spec)
			require.NoError(t, err)
			var reserved Set
			for _, p := range tt.reserved {
				reserved.Add(p)
			}
			free := func(proto string, a netip.Addr, port uint16) error {
				require.NotZero(t, port)
				return tt.taken[key{proto, a.String(), port}]
			}
			got, err := Pick(specs[0], tt.addrs, eph, reserved.Has, free, tt.start)
			if tt.expectErr != "" {
				require.EqualError(t, err, tt.expectErr)
				require.Zero(t, got)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestPickErrors(t *testing.T) {
	free := func(err error) func(string, netip.Addr, uint16) error {
		return func(string, netip.Addr, uint16) error { return err }
	}
	one := []netip.Addr{addr("0.0.0.0")}
	fixed := Spec{HostFirst: 80, HostLast: 80, First: 80, Last: 80, Proto: "tcp"}
	for _, sentinel := range []error{ErrAllocated, ErrInUse, ErrNotAvailable} {
		_, err := Pick(fixed, one, Range{1, 2}, nil, free(sentinel), 0)
		require.ErrorIs(t, err, sentinel)
	}
	_, err := Pick(Spec{First: 80, Last: 80, Proto: "tcp"}, one, Range{1, 2}, nil, free(ErrInUse), 0)
	require.ErrorIs(t, err, ErrExhausted)
	got, err := Pick(Spec{First: 80, Last: 80, Proto: "tcp"}, one, Range{1, 2}, nil, free(nil), 0)
	require.NoError(t, err, "no reserved")
	require.EqualValues(t, 1, got)
	_, err = Pick(Spec{First: 80, Last: 80}, one, Range{}, nil, free(nil), 0)
	require.ErrorIs(t, err, ErrExhausted, "no range")
	_, err = Pick(fixed, nil, Range{1, 2}, nil, free(nil), 0)
	require.EqualError(t, err, "nothing to bind")
	_, err = Pick(Spec{}, one, Range{1, 2}, nil, free(nil), 0)
	require.EqualError(t, err, "nothing to bind")
}
