// SPDX-License-Identifier: Apache-2.0

package bench

// workload is one kind of load. The zero values are: one CPU for client and server
// together, TCP, as the devices are.
type workload struct {
	name, title string
	unit        string // of what is counted; "" is a command of the control plane
	tool        string // what makes the load: worker, iperf3, wrk
	talk        string // of workers
	udp         bool
	apart       bool // client and server on CPUs of their own
	out         bool // iperf3: the container sends
	small       bool // iperf3: the sender makes packets of 1,500 bytes
	gro         bool // small: and the receivers may join them, where the datapath has that
	short       bool // wrk: a connection for each request
	curve       bool // measured at every scale
}

const (
	toolWorker  = "worker"
	toolIperf   = "iperf3"
	toolWrk     = "wrk"
	toolCommand = "command"
)

// Units.
const (
	unitTransactions = "transactions"
	unitPackets      = "packets"
	unitMegabytes    = "MB"
	unitCommands     = "commands"
)

// Names of the workloads of the control plane.
const (
	workPublish   = "publish"
	workContainer = "container"
)

var workloads = []workload{
	{name: "tcp-rr", title: "TCP request/response", unit: unitTransactions, tool: toolWorker, talk: talkRR, curve: true},
	{name: "tcp-crr", title: "TCP connect-request-response", unit: unitTransactions, tool: toolWorker, talk: talkCRR, curve: true},
	{name: "udp-rr", title: "UDP request/response", unit: unitTransactions, tool: toolWorker, talk: talkRR, udp: true, curve: true},
	{name: "udp-flood", title: "UDP flood, 64-byte frames received", unit: unitPackets, tool: toolWorker, talk: talkFlood, udp: true, apart: true},
	{name: "tcp-in", title: "TCP stream into the container", unit: unitMegabytes, tool: toolIperf, apart: true},
	{name: "tcp-out", title: "TCP stream out of the container", unit: unitMegabytes, tool: toolIperf, apart: true, out: true},
	{name: "tcp-in-1500", title: "TCP stream in, GSO/TSO/GRO off", unit: unitMegabytes, tool: toolIperf, apart: true, small: true},
	{name: "tcp-out-1500", title: "TCP stream out, GSO/TSO/GRO off", unit: unitMegabytes, tool: toolIperf, apart: true, small: true, out: true},
	{name: "tcp-in-gro", title: "TCP stream in, GSO/TSO off, GRO as the datapath has it", unit: unitMegabytes, tool: toolIperf, apart: true, small: true, gro: true},
	{name: "tcp-out-gro", title: "TCP stream out, GSO/TSO off, GRO as the datapath has it", unit: unitMegabytes, tool: toolIperf, apart: true, small: true, gro: true, out: true},
	{name: "http", title: "HTTP, 16 connections kept alive", unit: unitTransactions, tool: toolWrk},
	{name: "http-short", title: "HTTP, a connection a request", unit: unitTransactions, tool: toolWrk, short: true},
	{name: workPublish, title: "publish and unpublish ports", unit: unitCommands, tool: toolCommand, curve: true},
	{name: workContainer, title: "container up and down", unit: unitCommands, tool: toolCommand, curve: true},
}

// Workloads are the names of all, in the order of the report.
func Workloads() []string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}

// cpus are those of client and server, of the CPUs that this process may use: the
// highest ones, since interrupts and everybody else prefer the first.
func (w workload) cpus(all []int) (client, server int) {
	last := all[len(all)-1]
	if w.apart && len(all) > 1 {
		return all[len(all)-2], last
	}
	return last, last
}
