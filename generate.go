// SPDX-License-Identifier: Apache-2.0

// Package bpfnet is Docker-style container networking for a Linux host with the
// packet path in TC eBPF programs: see README.md for the picture, bpf/lib/types.h
// for what the programs remember, and control.Manager for what fills it.
//
// The rooms, and the one way in which they may know each other:
//
//	cmd/bpfnet → control/{docker,dockerdriver,cni,netavark} (for others' engines) → control
//	cmd/bpfnet → control → control/{ipam,ports,link,netns,store,process,watch}, maps
//	             control → control/datapath/{bpf,iptables} → control/datapath, maps
//	             control/datapath/bpf → loader
//	maps → loader (its generated types)
package bpfnet

//go:generate sh -c "cd loader && go tool bpf2go -go-package loader -target bpfel -tags linux -type addr -type clock -type ref -type tuple -type seed -type verdict -type flow_state -type flow_kind -type flow_flags -type flow -type endpoint -type endpoint_flags -type network_flags -type network -type rule_kind -type rule_flags -type rule -type port_slot -type proto_index -type port_key -type device -type device_kind -type endpoint_key -type member_key -type prefix -type source_key -type route_key -type route -type link_key -type port_range -type timeout_kind -type config -type reason -type drop_key -type counter -type slot -type limits -type zone -type sweeper BPF ../bpf/bpfnet.c -- -O2 -g -Wall -Werror -mcpu=v3 -I../bpf/headers -nostdinc"
