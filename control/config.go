// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"

	"github.com/bpfnet/bpfnet/control/datapath/iptables"
	"github.com/bpfnet/bpfnet/control/ipam"
	"github.com/bpfnet/bpfnet/maps"
)

// DefaultConfigPath is read when it is there; a path that was asked for must be.
const DefaultConfigPath = "/etc/bpfnet/config.json"

const (
	defaultBridge    = "bpfnet0"
	defaultMTU       = 1500
	defaultFlows     = 131072
	defaultHalfOpen  = 32768
	noDefaultNetwork = "none" // of Config.Bridge
	allUplinks       = "all"  // of Config.Uplinks, alone: as if nobody had named any
)

// ReadConfig reads a configuration file: JSON with daemon.json's keys. Unknown
// keys are errors. An empty path is the default one, which may be missing.
func ReadConfig(path string) (*Config, error) {
	optional := path == ""
	if optional {
		path = DefaultConfigPath
	}
	raw, err := os.ReadFile(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return &Config{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c := &Config{}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, fmt.Errorf("configuration %s: %s", path, jsonError(raw, err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("configuration %s: more than one value", path)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// jsonError says in words that know nothing of Go what is wrong with a configuration.
func jsonError(raw []byte, err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.EOF):
		return "is empty; {} sets nothing"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "ends too early"
	case errors.As(err, &syntax):
		return fmt.Sprintf("line %d: %v", 1+bytes.Count(raw[:syntax.Offset], []byte("\n")), syntax)
	case errors.As(err, &kind):
		is := map[string]string{"number": "a number", "string": "text", "bool": "true or false", "array": "a list", "object": "an object"}
		wants := map[reflect.Kind]string{reflect.String: "text", reflect.Bool: "true or false", reflect.Int: "a whole number", reflect.Slice: "a list"}
		text := fmt.Sprintf("is %s, wants %s", cmp.Or(is[kind.Value], kind.Value), cmp.Or(wants[kind.Type.Kind()], "an object"))
		if kind.Field != "" {
			text = kind.Field + ": " + text
		}
		return text
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

// overlay returns base with everything that top sets.
func overlay(base Config, top *Config) (Config, error) {
	if top == nil {
		return base, nil
	}
	raw, err := json.Marshal(top)
	if err != nil {
		return base, err
	}
	return base, json.Unmarshal(raw, &base)
}

// withDefaults fills what nobody said.
func (c Config) withDefaults() Config {
	yes, no := true, false
	if c.Bridge == "" {
		c.Bridge = defaultBridge
	}
	if c.ICC == nil {
		c.ICC = &yes
	}
	if c.IPMasq == nil {
		c.IPMasq = &yes
	}
	if c.IPv6 == nil {
		c.IPv6 = &no
	}
	if c.MTU == 0 {
		c.MTU = defaultMTU
	}
	if c.FlowTableSize == 0 {
		c.FlowTableSize = defaultFlows
	}
	if c.HalfOpenTableSize == 0 {
		c.HalfOpenTableSize = defaultHalfOpen
	}
	if c.Quota == 0 {
		c.Quota = c.FlowTableSize / 4
	}
	return c
}

// check finds the first value that cannot be.
func (c *Config) check() error {
	prefixes := []struct{ key, text string }{{"bip", c.BIP}, {"bip6", c.BIP6}, {"fixed-cidr", c.FixedCIDR}, {"fixed-cidr-v6", c.FixedCIDRv6}}
	for _, p := range prefixes {
		if err := checkFamily(p.key, p.text, strings.HasSuffix(p.key, "6"), true); err != nil {
			return err
		}
	}
	addrs := []struct{ key, text string }{{"default-gateway", c.DefaultGateway}, {"default-gateway-v6", c.DefaultGatewayV6}}
	for _, a := range addrs {
		if err := checkFamily(a.key, a.text, strings.HasSuffix(a.key, "6"), false); err != nil {
			return err
		}
	}
	if c.IP != "" {
		a, err := netip.ParseAddr(c.IP)
		if err != nil {
			return invalid("ip: %q is not an address", c.IP)
		}
		if a.Zone() != "" || a.IsMulticast() || a.IsLinkLocalUnicast() && a.Is6() {
			return invalid("ip: %s is no address that ports can be published on", a)
		}
	}
	for _, s := range c.DNS {
		if err := checkDNS(s); err != nil {
			return err
		}
	}
	if err := checkWords("dns-search", c.DNSSearch); err != nil {
		return err
	}
	if err := checkWords("dns-opts", c.DNSOptions); err != nil {
		return err
	}
	if c.Bridge != "" && c.Bridge != noDefaultNetwork && !validDevice(c.Bridge) {
		return invalid("bridge: %q is no device name", c.Bridge)
	}
	for _, u := range c.Uplinks {
		if !validDevice(u) {
			return invalid("uplinks: %q is no device name", u)
		}
	}
	if err := checkMTU(c.MTU, c.IPv6 != nil && *c.IPv6 || c.BIP6 != ""); err != nil {
		return err
	}
	if c.IPTables != "" && c.IPTables != iptables.NFT && c.IPTables != iptables.Legacy {
		return invalid("iptables-flavour: %q is not %s or %s", c.IPTables, iptables.NFT, iptables.Legacy)
	}
	if c.FlowTableSize != 0 && (c.FlowTableSize < 1024 || c.FlowTableSize > 1<<20) {
		return invalid("flow-table-size: %d is not in 1024-1048576", c.FlowTableSize)
	}
	if c.HalfOpenTableSize != 0 && (c.HalfOpenTableSize < 512 || c.HalfOpenTableSize > 1<<20) {
		return invalid("half-open-table-size: %d is not in 512-1048576", c.HalfOpenTableSize)
	}
	if c.Quota < 0 || c.Quota > 1<<20 {
		return invalid("flow-quota: %d is not in 1-1048576", c.Quota)
	}
	if _, err := c.timeouts(); err != nil {
		return err
	}
	if c.MasqueradePorts != "" {
		if _, err := parsePortRanges(c.MasqueradePorts); err != nil {
			return fmt.Errorf("masquerade-ports: %w", err)
		}
	}
	_, err := c.pools()
	return err
}

func checkFamily(key, text string, v6, prefix bool) error {
	if text == "" {
		return nil
	}
	var addr netip.Addr
	if prefix {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return invalid("%s: %q is not ADDRESS/LENGTH", key, text)
		}
		addr = p.Addr()
	} else {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return invalid("%s: %q is not an address", key, text)
		}
		addr = a
	}
	if addr.Is6() != v6 {
		return invalid("%s: %s is of the wrong family", key, text)
	}
	return nil
}

// checkDNS is for what becomes a line of resolv.conf: netip takes any text for a zone.
func checkDNS(server string) error {
	a, err := netip.ParseAddr(server)
	if err != nil || a.Zone() != "" && !validDevice(a.Zone()) {
		return invalid("dns: %q is not an address", server)
	}
	return nil
}

// checkWords is for what becomes a line of resolv.conf, too.
func checkWords(key string, words []string) error {
	for _, w := range words {
		if w == "" || strings.ContainsAny(w, " \t\r\n") {
			return invalid("%s: %q is no word", key, w)
		}
	}
	return nil
}

// checkMTU knows IPv4's least (RFC 791) and IPv6's (RFC 8200 section 5).
func checkMTU(mtu int, six bool) error {
	if mtu != 0 && (mtu < 68 || mtu > 65535) {
		return invalid("mtu: %d is not in 68-65535", mtu)
	}
	if mtu != 0 && mtu < 1280 && six {
		return invalid("mtu: %d is less than the 1280 that IPv6 needs", mtu)
	}
	return nil
}

// validDevice is the kernel's rule, dev_valid_name.
func validDevice(name string) bool {
	return name != "" && len(name) < 16 && name != "." && name != ".." && !strings.ContainsAny(name, "/: \t\r\n\v\f\x00")
}

// pools are the address pools for IPv4 networks.
func (c *Config) pools() ([]ipam.Pool, error) {
	if len(c.DefaultAddressPools) == 0 {
		return ipam.DefaultPools, nil
	}
	var list []ipam.Pool
	for _, p := range c.DefaultAddressPools {
		base, err := netip.ParsePrefix(p.Base)
		if err != nil {
			return nil, invalid("default-address-pools: %q is not ADDRESS/LENGTH", p.Base)
		}
		if base.Addr().Is4() {
			list = append(list, ipam.Pool{Base: base.Masked(), Size: p.Size})
		}
	}
	if len(list) == 0 {
		return nil, invalid("default-address-pools: none for IPv4")
	}
	return list, ipam.CheckPools(list)
}

// parsePortRanges reads "1024-32767,61000-65535": 1 to 8 ranges in ascending order.
func parsePortRanges(s string) ([]maps.PortRange, error) {
	var out []maps.PortRange
	for _, piece := range strings.Split(s, ",") {
		a, b, ranged := strings.Cut(piece, "-")
		if !ranged {
			b = a
		}
		first, err1 := strconv.ParseUint(a, 10, 16)
		last, err2 := strconv.ParseUint(b, 10, 16)
		if err1 != nil || err2 != nil || first == 0 || first > last {
			return nil, invalid("%q is no range of ports", piece)
		}
		if n := len(out); n > 0 && first <= uint64(out[n-1].Last) {
			return nil, invalid("%q overlaps with the range before it, or is out of order", piece)
		}
		out = append(out, maps.PortRange{First: uint16(first), Last: uint16(last)})
	}
	if len(out) > maps.MaxPortRanges {
		return nil, invalid("%d ranges, at most %d", len(out), maps.MaxPortRanges)
	}
	return out, nil
}

// masqueradeRanges is the pool of source ports: what was asked for, or 1024-65535
// without the ports that the host's own connections are given.
func masqueradeRanges(asked string, hostFirst, hostLast uint16) ([]maps.PortRange, error) {
	if asked != "" {
		return parsePortRanges(asked)
	}
	var out []maps.PortRange
	if hostFirst > 1024 {
		out = append(out, maps.PortRange{First: 1024, Last: hostFirst - 1})
	}
	if hostLast < 65535 {
		out = append(out, maps.PortRange{First: max(1024, hostLast+1), Last: 65535})
	}
	if len(out) == 0 {
		return nil, errors.New("masquerade-ports: ip_local_port_range leaves none; name some with --masquerade-ports")
	}
	return out, nil
}
