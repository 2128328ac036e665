// SPDX-License-Identifier: Apache-2.0

package link

import (
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What a bridge is set to, by hand: the netlink package does not know all of it and changes
// no existing bridge, and /sys belongs to the namespace in which it was mounted. Both
// functions are called on a thread inside the namespace.

// SetBridgeData changes settings of a bridge (IFLA_BR_* of include/uapi/linux/if_link.h);
// the others stay. ENODEV: there is no such device.
func SetBridgeData(ifindex int, settings ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(ifindex)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	for _, s := range settings {
		data.AddChild(s)
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return os.NewSyscallError("change bridge", err)
}

// BridgeData are the settings of a bridge, by IFLA_BR_*; empty for a device of another kind.
func BridgeData(ifindex int) (map[uint16][]byte, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(ifindex)
	req.AddData(msg)
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, os.NewSyscallError("read bridge", err)
	}
	settings := make(map[uint16][]byte)
	for _, answer := range answers {
		if len(answer) < unix.SizeofIfInfomsg {
			continue
		}
		info, err := within(answer[unix.SizeofIfInfomsg:], unix.IFLA_LINKINFO)
		if err != nil {
			return nil, err
		}
		data, err := within(info, nl.IFLA_INFO_DATA)
		if err != nil {
			return nil, err
		}
		list, err := nl.ParseRouteAttr(data)
		if err != nil {
			return nil, err
		}
		for _, a := range list {
			settings[a.Attr.Type] = a.Value
		}
	}
	return settings, nil
}

// within is the value of the attribute of a kind; empty if there is none.
func within(attrs []byte, kind uint16) ([]byte, error) {
	list, err := nl.ParseRouteAttr(attrs)
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if a.Attr.Type == kind {
			return a.Value, nil
		}
	}
	return nil, nil
}
