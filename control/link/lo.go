// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/bpfnet/bpfnet/control/netns"
)

// Lo is the state of lo's settings that the host's own connections to published
// ports need: packets from 127.0.0.1 come in by lo with an address of the host as source.
// Both are set on lo alone, where everything comes from the host itself.
type Lo struct {
	RouteLocalnet int `json:"routeLocalnet"`
	AcceptLocal   int `json:"acceptLocal"`
}

const (
	routeLocalnet = "ipv4/conf/lo/route_localnet"
	acceptLocal   = "ipv4/conf/lo/accept_local"
)

// PrepareLo sets route_localnet and accept_local on lo, and says what was there.
func PrepareLo(host *netns.NS) (old Lo, err error) {
	err = host.Do(func() error {
		if old.RouteLocalnet, err = readSysctl(routeLocalnet); err != nil {
			return err
		}
		if old.AcceptLocal, err = readSysctl(acceptLocal); err != nil {
			return err
		}
		return writeLo(Lo{1, 1})
	})
	if err != nil {
		return Lo{}, fmt.Errorf("device lo: %w", err)
	}
	return old, nil
}

// RestoreLo undoes PrepareLo, with what it said.
func RestoreLo(host *netns.NS, old Lo) error {
	if err := host.Do(func() error { return writeLo(old) }); err != nil {
		return fmt.Errorf("device lo: %w", err)
	}
	return nil
}

func writeLo(lo Lo) error {
	return setSysctls([]sysctl{
		{routeLocalnet, strconv.Itoa(lo.RouteLocalnet)},
		{acceptLocal, strconv.Itoa(lo.AcceptLocal)},
	})
}

func readSysctl(key string) (int, error) {
	text, err := os.ReadFile("/proc/sys/net/" + key)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
