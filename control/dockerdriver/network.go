// SPDX-License-Identifier: Apache-2.0

package dockerdriver

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/bpfnet/bpfnet/control"
)

// Keys of a network's options: what the Engine says, and below generic the user's -o.
const (
	keyGeneric  = "com.docker.network.generic"
	keyInternal = "com.docker.network.internal"
	keyIPv6     = "com.docker.network.enable_ipv6"
)

// settings are what -o can say; the values come as text.
var settings = map[string]func(o *control.NetworkOptions, v string) error{
	"com.docker.network.bridge.enable_icc":           func(o *control.NetworkOptions, v string) error { return setBool(&o.ICC, v) },
	"com.docker.network.bridge.enable_ip_masquerade": func(o *control.NetworkOptions, v string) error { return setBool(&o.Masquerade, v) },
	"com.docker.network.bridge.host_binding_ipv4":    setBinding,
	"com.docker.network.bridge.name":                 func(o *control.NetworkOptions, v string) error { o.Bridge = v; return nil },
	"com.docker.network.driver.mtu":                  setMTU,
	"bpfnet.isolate":                                 func(o *control.NetworkOptions, v string) error { return setBool(&o.Isolate, v) },
	"bpfnet.full_cone":                               setFlag(func(o *control.NetworkOptions) *bool { return &o.FullCone }),
	"bpfnet.allow_dhcp_server":                       setFlag(func(o *control.NetworkOptions) *bool { return &o.AllowDHCPServer }),
	"bpfnet.gateway_mode":                            setGatewayMode,
	"bpfnet.name":                                    func(o *control.NetworkOptions, v string) error { o.Name = v; return nil },
}

func setBool(to **bool, v string) error {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return fmt.Errorf("%.40q: not true or false", v)
	}
	*to = &b
	return nil
}

func setFlag(of func(*control.NetworkOptions) *bool) func(*control.NetworkOptions, string) error {
	return func(o *control.NetworkOptions, v string) error {
		var b *bool
		err := setBool(&b, v)
		if err == nil {
			*of(o) = *b
		}
		return err
	}
}

func setBinding(o *control.NetworkOptions, v string) error {
	a, err := netip.ParseAddr(v)
	if err != nil || !a.Is4() {
		return fmt.Errorf("%.40q: no IPv4 address", v)
	}
	o.BindAddress = v
	return nil
}

func setMTU(o *control.NetworkOptions, v string) (err error) {
	if o.MTU, err = strconv.Atoi(v); err != nil {
		return fmt.Errorf("%.40q: not a number", v)
	}
	return nil
}

func setGatewayMode(o *control.NetworkOptions, v string) error {
	if v != "nat" && v != "routed" {
		return fmt.Errorf("%.40q: nat or routed", v)
	}
	o.Routed = v == "routed"
	return nil
}

func (s *server) createNetwork(r *networkRequest) (any, error) {
	opts, err := r.network()
	if err != nil {
		return nil, err
	}
	_, err = s.m.AddDriverNetwork(driver, r.NetworkID, opts)
	return empty{}, err
}

func (s *server) deleteNetwork(r *networkRequest) (any, error) {
	return empty{}, s.m.RemoveDriverNetwork(driver, r.NetworkID)
}

// network reads what a network is to be.
func (r *networkRequest) network() (o control.NetworkOptions, err error) {
	var given map[string]any
	if err := r.Options.read(keyGeneric, &given); err != nil {
		return o, err
	}
	keys := make([]string, 0, len(given))
	for key := range given {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		set, known := settings[key]
		if !known {
			return o, fmt.Errorf("option %.80s: not known to bpfnet", key)
		}
		text, ok := given[key].(string)
		if b, isBool := given[key].(bool); isBool {
			text, ok = strconv.FormatBool(b), true
		}
		if !ok {
			return o, fmt.Errorf("option %s: not text", key)
		}
		if err := set(&o, text); err != nil {
			return o, fmt.Errorf("option %s: %w", key, err)
		}
	}
	if err := r.Options.read(keyInternal, &o.Internal); err != nil {
		return o, err
	}
	if err := r.Options.read(keyIPv6, &o.IPv6); err != nil {
		return o, err
	}
	if o.IPv6 && len(r.IPv6Data) == 0 {
		return o, fmt.Errorf("ipv6: the Engine gives no pool of addresses: name one with --subnet")
	}
	for _, d := range slices.Concat(r.IPv4Data, r.IPv6Data) {
		if err := d.addTo(&o); err != nil {
			return o, err
		}
	}
	return o, nil
}

func (d *ipamData) addTo(o *control.NetworkOptions) error {
	pool, err := netip.ParsePrefix(d.Pool)
	if err != nil {
		return fmt.Errorf("subnet %.60q: not valid", d.Pool)
	}
	o.Subnets = append(o.Subnets, pool)
	if d.Gateway == "" {
		return nil
	}
	gw, err := netip.ParsePrefix(d.Gateway)
	if err != nil {
		return fmt.Errorf("gateway %.60q: not valid", d.Gateway)
	}
	o.Gateways = append(o.Gateways, gw.Addr())
	return nil
}

// read takes one option, if it is there.
func (o options) read(key string, into any) error {
	raw, ok := o[key]
	if !ok || string(raw) == "null" {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("option %s: not understood: %.200s", key, err)
	}
	return nil
}
