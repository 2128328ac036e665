// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// rule is one of the host's, of ip-rule(8), as far as it is about packets that come
// from a device and have no mark.
type rule struct {
	priority uint32
	action   uint8
	table    int
	target   uint32       // of a goto: the priority to go on with
	from, to netip.Prefix // zero: any
	iif      string       // "": any
	invert   bool
	suppress int  // a route of a prefix this long or shorter does not count; -1: all do
	never    bool // one of its selectors is of no packet of a container's
}

// Actions of rules: include/uapi/linux/fib_rules.h.
const (
	actTable = 1
	actGoto  = 2
)

// Selectors that package nl has no names for.
const (
	fraDSCP      = 25
	fraFlowlabel = 26
)

// readRules lists the rules of all families the host has, in the order in which the
// kernel tries them.
func readRules(host *netns.NS) (byFamily map[int][]rule, err error) {
	var messages [][]byte
	err = host.Do(func() error {
		messages, err = dump(func() ([][]byte, error) {
			req := nl.NewNetlinkRequest(unix.RTM_GETRULE, unix.NLM_F_DUMP)
			req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
			return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWRULE)
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	byFamily = make(map[int][]rule)
	for _, m := range messages {
		if len(m) < unix.SizeofRtMsg {
			return nil, errors.New("rules: message too short")
		}
		r, err := parseRule(m)
		if err != nil {
			return nil, fmt.Errorf("rules: %w", err)
		}
		byFamily[int(m[0])] = append(byFamily[int(m[0])], r)
	}
	return byFamily, nil
}

// parseRule reads a struct fib_rule_hdr, which is laid out as a struct rtmsg, and what
// follows it.
func parseRule(m []byte) (r rule, err error) {
	h := nl.DeserializeRtMsg(m)
	attrs, err := nl.ParseRouteAttr(m[h.Len():])
	if err != nil {
		return r, err
	}
	r = rule{action: h.Type, table: int(h.Table), invert: h.Flags&netlink.FibRuleInvert != 0, suppress: -1, never: h.Tos != 0}
	var mark, mask uint32
	for _, a := range attrs {
		v := a.Value
		word := func() uint32 {
			if len(v) < 4 {
				err = fmt.Errorf("attribute %d: too short", a.Attr.Type)
				return 0
			}
			return binary.NativeEndian.Uint32(v)
		}
		switch a.Attr.Type {
		case nl.FRA_PRIORITY:
			r.priority = word()
		case nl.FRA_TABLE:
			r.table = int(word())
		case nl.FRA_GOTO:
			r.target = word()
		case nl.FRA_SRC:
			r.from = rulePrefix(v, h.Src_len)
		case nl.FRA_DST:
			r.to = rulePrefix(v, h.Dst_len)
		case nl.FRA_IIFNAME:
			r.iif = unix.ByteSliceToString(v)
		case nl.FRA_SUPPRESS_PREFIXLEN:
			if n := word(); n != 0xffffffff {
				r.suppress = int(n)
			}
		case nl.FRA_FWMARK:
			mark = word()
		case nl.FRA_FWMASK:
			mask = word()
		case nl.FRA_UID_RANGE:
			r.never = r.never || word() != 0 // forwarded packets have user 0
		case nl.FRA_TUN_ID:
			r.never = r.never || len(v) == 8 && binary.NativeEndian.Uint64(v) != 0
		case nl.FRA_L3MDEV:
			r.never = r.never || len(v) > 0 && v[0] != 0
		case nl.FRA_IP_PROTO, nl.FRA_SPORT_RANGE, nl.FRA_DPORT_RANGE, nl.FRA_OIFNAME, fraDSCP, fraFlowlabel:
			r.never = true
		}
	}
	r.never = r.never || mark&mask != 0
	return r, err
}

func rulePrefix(raw []byte, bits uint8) netip.Prefix {
	a, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(a, int(bits)).Masked()
}

// matches says whether the rule is tried for packets from src that come by iif, and
// for which destinations: those in to, or if outside is set, all others. to is zero
// when all are meant.
func (r *rule) matches(iif string, src netip.Addr) (yes bool, to netip.Prefix, outside bool) {
	yes = !r.never && (r.iif == "" || r.iif == iif) && (!r.from.IsValid() || r.from.Contains(src))
	switch {
	case !r.invert:
		return yes, r.to, false
	case !yes:
		return true, netip.Prefix{}, false
	default: // all selectors but "to" hold: it matches where that one does not
		return r.to.IsValid(), r.to, true
	}
}
