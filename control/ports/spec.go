// SPDX-License-Identifier: Apache-2.0

// Package ports reads port specs, chooses host ports, and asks and tells the
// kernel which of them the host itself uses. What touches the kernel works on the
// network namespace of the calling thread.
package ports

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Spec is one -p.
type Spec struct {
	HostIP    netip.Addr     // invalid: none given
	HostFirst uint16         // 0: any free one, as HostLast then is
	HostLast  uint16         // a range as long as the container's, or one to choose from
	First     uint16         // in the container, 1..65535
	Last      uint16         // >= First
	Proto     string         // tcp, udp, sctp
	From      []netip.Prefix // who may connect; empty: everybody
	Raw       string         // as it was given
}

// Count is the number of container ports, 1..65535.
func (s Spec) Count() int { return int(s.Last) - int(s.First) + 1 }

// String is the one way to write what s means, whatever way it was given.
func (s Spec) String() string {
	var b strings.Builder
	if s.HostIP.IsValid() {
		if s.HostIP.Is6() {
			b.WriteString("[" + s.HostIP.String() + "]:")
		} else {
			b.WriteString(s.HostIP.String() + ":")
		}
	}
	if s.HostFirst != 0 {
		b.WriteString(rangeString(s.HostFirst, s.HostLast) + ":")
	} else if s.HostIP.IsValid() {
		b.WriteString(":")
	}
	b.WriteString(rangeString(s.First, s.Last) + "/" + s.Proto)
	for i, p := range s.From {
		if i == 0 {
			b.WriteString(",from=")
		} else {
			b.WriteString(",")
		}
		b.WriteString(p.String())
	}
	return b.String()
}

func rangeString(first, last uint16) string {
	if first == last {
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// Parse reads Docker's -p, [IP:][HOSTPORT[-END]:]PORT[-END][/PROTO], with
// ",from=CIDR[,CIDR...]" behind it. IPv6 addresses are best written in brackets,
// without them the last two colons count, as in Docker. Unlike Docker's, a host
// port of 0 is an error. A range is one Spec. Errors name the piece that is wrong,
// in Docker's words.
func Parse(spec string) ([]Spec, error) {
	s, err := parse(spec)
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", strconv.Quote(cut(spec)), err)
	}
	return []Spec{s}, nil
}

func parse(spec string) (Spec, error) {
	s := Spec{Raw: spec}
	binding, options, hasOptions := strings.Cut(spec, ",")
	ip, host, container, err := split(binding)
	if err != nil {
		return s, err
	}
	port, proto, _ := strings.Cut(container, "/")
	if port == "" {
		return s, errors.New("no port specified")
	}
	if s.Proto, err = parseProto(proto); err != nil {
		return s, err
	}
	if ip != "" {
		if s.HostIP, err = parseHostIP(ip); err != nil {
			return s, err
		}
	}
	if s.First, s.Last, err = parseRange(port); err != nil {
		return s, fmt.Errorf("invalid containerPort: %s: %w", piece(port), err)
	}
	if host != "" {
		if s.HostFirst, s.HostLast, err = parseRange(host); err != nil {
			return s, fmt.Errorf("invalid hostPort: %s: %w", piece(host), err)
		}
		if s.First != s.Last && s.HostLast-s.HostFirst != s.Last-s.First {
			return s, fmt.Errorf("invalid ranges specified for container and host Ports: %s and %s", port, host)
		}
	}
	if hasOptions {
		s.From, err = parseFrom(options)
	}
	return s, err
}

// split finds [IP:][HOST:]CONTAINER; each may be empty.
func split(s string) (ip, host, container string, err error) {
	if strings.HasPrefix(s, "[") {
		inside, rest, ok := strings.Cut(s[1:], "]")
		if !ok {
			return "", "", "", fmt.Errorf("invalid IP address: %s: missing ]", piece(s))
		}
		if inside == "" {
			return "", "", "", errors.New("invalid IP address: []")
		}
		if !strings.HasPrefix(rest, ":") || strings.Count(rest, ":") != 2 {
			return "", "", "", fmt.Errorf("invalid port %s: an address is followed by :HOSTPORT:PORT or ::PORT", piece(rest))
		}
		host, container, _ = strings.Cut(rest[1:], ":")
		return inside, host, container, nil
	}
	if i := strings.LastIndexByte(s, ':'); i < 0 {
		container = s
	} else if j := strings.LastIndexByte(s[:i], ':'); j < 0 {
		host, container = s[:i], s[i+1:]
	} else {
		ip, host, container = s[:j], s[j+1:i], s[i+1:]
	}
	return ip, host, container, nil
}

func parseHostIP(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("invalid IP address: %s", piece(s))
	}
	a = a.Unmap()
	if a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Addr{}, fmt.Errorf("invalid IP address: %s: not one host's", a)
	}
	if a.Is6() && a.IsLinkLocalUnicast() {
		return netip.Addr{}, fmt.Errorf("invalid IP address: %s: link-local, which names no interface", a)
	}
	return a, nil
}

func parseProto(s string) (string, error) {
	switch p := strings.ToLower(s); p {
	case "":
		return "tcp", nil
	case "tcp", "udp", "sctp":
		return p, nil
	}
	return "", fmt.Errorf("invalid proto: %s", piece(s))
}

func parseRange(s string) (first, last uint16, err error) {
	a, b, isRange := strings.Cut(s, "-")
	if first, err = parseNumber(a); err != nil || !isRange {
		return first, first, err
	}
	if last, err = parseNumber(b); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("%d is below %d", last, first)
	}
	return first, last, nil
}

func parseNumber(s string) (uint16, error) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, errors.New("not a number")
		}
	}
	if s == "" {
		return 0, errors.New("a number is missing")
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New("not between 1 and 65535")
	}
	return uint16(n), nil
}

func parseFrom(s string) (list []netip.Prefix, err error) {
	rest, ok := strings.CutPrefix(s, "from=")
	if !ok {
		return nil, fmt.Errorf("unknown option: %s", piece(s))
	}
	for item := range strings.SplitSeq(rest, ",") {
		p, err := parsePrefix(strings.TrimPrefix(item, "from="))
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// parsePrefix takes a plain address as a prefix of one, masks host bits, and
// reads v4-mapped IPv6 as IPv4.
func parsePrefix(s string) (netip.Prefix, error) {
	bad := fmt.Errorf("invalid from: %s", piece(s))
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, bad
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, bad
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, bad
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// ParsePort reads PORT[-END][/PROTO], as --expose and port NAME have it; without
// a protocol it is tcp.
func ParsePort(s string) (first, last uint16, proto string, err error) {
	port, proto, _ := strings.Cut(s, "/")
	if proto, err = parseProto(proto); err == nil {
		if first, last, err = parseRange(port); err != nil {
			err = fmt.Errorf("invalid port: %s: %w", piece(port), err)
		}
	}
	if err != nil {
		return 0, 0, "", fmt.Errorf("port %s: %w", strconv.Quote(cut(s)), err)
	}
	return first, last, proto, nil
}

// piece quotes what would not be readable, on one line, without it.
func piece(s string) string {
	if s = cut(s); s == "" {
		return `""`
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return strconv.Quote(s)
		}
	}
	return s
}

func cut(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
