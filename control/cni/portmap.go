// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// specs are the Manager's words for port mappings. Runtimes send ranges expanded:
// neighbours become one again, because a range is published at once.
func specs(list []portMapping) ([]string, error) {
	list, err := checked(list)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b portMapping) int {
		return cmp.Or(cmp.Compare(a.HostIP, b.HostIP), cmp.Compare(a.Protocol, b.Protocol),
			cmp.Compare(a.HostPort-a.ContainerPort, b.HostPort-b.ContainerPort), cmp.Compare(a.HostPort, b.HostPort))
	})
	list = slices.Compact(list)
	var out []string
	for i := 0; i < len(list); {
		first, n := list[i], 1
		for i+n < len(list) && list[i+n] == first.after(n) {
			n++
		}
		out = append(out, first.spec(n))
		i += n
	}
	return out, nil
}

// checked are the mappings with what may be left out filled in.
func checked(list []portMapping) ([]portMapping, error) {
	list = slices.Clone(list)
	for i := range list {
		m := &list[i]
		m.Protocol = cmp.Or(strings.ToLower(m.Protocol), "tcp")
		if m.Protocol != "tcp" && m.Protocol != "udp" && m.Protocol != "sctp" {
			return nil, failure(types.ErrInvalidNetworkConfig, "portMappings: protocol %.20q: tcp, udp or sctp", m.Protocol)
		}
		for what, port := range map[string]int{"hostPort": m.HostPort, "containerPort": m.ContainerPort} {
			if port < 1 || port > 65535 {
				return nil, failure(types.ErrInvalidNetworkConfig, "portMappings: %s %d: not 1 to 65535", what, port)
			}
		}
		if m.HostIP != "" {
			a, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return nil, failure(types.ErrInvalidNetworkConfig, "portMappings: hostIP %.60q: no address", m.HostIP)
			}
			m.HostIP = a.Unmap().String()
		}
	}
	return list, nil
}

// after is the mapping n ports up.
func (m portMapping) after(n int) portMapping {
	m.HostPort, m.ContainerPort = m.HostPort+n, m.ContainerPort+n
	return m
}

func (m portMapping) spec(n int) string {
	ip := m.HostIP
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	if ip != "" {
		ip += ":"
	}
	if n == 1 {
		return fmt.Sprintf("%s%d:%d/%s", ip, m.HostPort, m.ContainerPort, m.Protocol)
	}
	return fmt.Sprintf("%s%d-%d:%d-%d/%s", ip, m.HostPort, m.HostPort+n-1, m.ContainerPort, m.ContainerPort+n-1, m.Protocol)
}
