// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestReadIperf(t *testing.T) {
	for _, c := range []struct{ name, json, err string }{
		{"whole", `{"start": {}, "end": {"sum_sent": {"bytes": 3000000, "seconds": 1}, "sum_received": {"bytes": 2500000, "seconds": 1.25}},
			"server_output_json": {"start": {"accepted_connection": {"host": "203.0.113.2", "port": 5}}}}`, ""},
		{"mapped address", `{"end": {"sum_received": {"bytes": 2500000, "seconds": 1.25}}, "server_output_json": {"start": {"accepted_connection": {"host": "::ffff:203.0.113.2"}}}}`, ""},
		{"refused", `{"end": {}, "error": "unable to connect to server: Connection refused"}`, "iperf3: unable to connect to server: Connection refused"},
		{"without the server's part", `{"end": {"sum_received": {"bytes": 1, "seconds": 1}}}`, "whom the server saw"},
		{"none", `iperf3: error`, "invalid character"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o outcome
			err := o.readIperf([]byte(c.json))
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, outcome{ops: 2.5, payload: 2500000, elapsed: 1250 * time.Millisecond, seen: netip.MustParseAddr("203.0.113.2")}, o)
		})
	}
}

func TestReadWrk(t *testing.T) {
	const head = "Running 1s test @ http://203.0.113.1:65000/\n  1 threads and 16 connections\n"
	for _, c := range []struct {
		name, text, err string
		took            time.Duration
	}{
		{"seconds", head + "  33403 requests in 1.01s, 5.29MB read\nRequests/sec:  33073.53\n", "", 1010 * time.Millisecond},
		{"a minute", head + "  33403 requests in 1.50m, 5.29MB read\n", "", 90 * time.Second},
		{"milliseconds", head + "  33403 requests in 999.12ms, 5.29MB read\n", "", 999120 * time.Microsecond},
		{"errors", head + "  33403 requests in 1.01s, 5.29MB read\n  Socket errors: connect 0, read 3, write 0, timeout 0\n", "wrk: Socket errors: connect 0, read 3", 0},
		{"another page", head + "  33403 requests in 1.01s, 5.29MB read\n  Non-2xx or 3xx responses: 7\n", "wrk: Non-2xx or 3xx responses: 7", 0},
		{"none", "unable to connect to 203.0.113.1:65000 Connection refused\n", "wrk: said \"unable to connect", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o outcome
			err := o.readWrk(c.text)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, outcome{ops: 33403, payload: 33403 * answerSize, elapsed: c.took}, o)
		})
	}
}

// Every port of a scale is published once, the measured one by the last container.
func TestSpecs(t *testing.T) {
	for _, s := range append(WholeScales, Scale{3, 2}, Scale{1, 7}, Scale{mostPorts, mostContainers}) {
		require.NoError(t, s.check(), s)
		seen := make(map[string]bool)
		for i := range s.Containers {
			for _, spec := range s.specs(i) {
				require.False(t, seen[spec], "%s: %s twice", s, spec)
				seen[spec] = true
				if spec == "65000:65000/tcp" || spec == "65000:65000/udp" {
					require.Equal(t, s.Containers-1, i, s)
				}
			}
		}
		require.Len(t, seen, s.Ports+1, s)
		require.True(t, seen["65000:65000/tcp"] && seen["65000:65000/udp"], s)
	}
	require.Error(t, Scale{mostPorts + 1, 1}.check())
	require.Error(t, Scale{1, 0}.check())
}

// What proves a path refuses what took another one.
func TestProve(t *testing.T) {
	p := &place{path: path{seen: netip.MustParseAddr("10.0.0.1"), device: "eth0"}, client: 1, server: 0}
	good := Measurement{Seen: p.seen, Bytes: 1000, Frame: 1514}
	o := outcome{payload: 1000, pinned: [2]string{"1", "0"}, ran: [2]int{1, -1}}
	require.NoError(t, p.prove(&good, o, workload{small: true}))
	for _, c := range []struct {
		err    string
		change func(*Measurement, *outcome)
	}{
		{"the server saw 10.0.0.2, not 10.0.0.1", func(m *Measurement, _ *outcome) { m.Seen = netip.MustParseAddr("10.0.0.2") }},
		{"1000 bytes were exchanged, eth0 saw 999", func(m *Measurement, _ *outcome) { m.Bytes = 999 }},
		{"packets of 1515 bytes on eth0", func(m *Measurement, _ *outcome) { m.Frame = 1515 }},
		{"allowed on CPUs 0-1, not on 0", func(_ *Measurement, o *outcome) { o.pinned[1] = "0-1" }},
		{"ran on CPU 0, not on 1", func(_ *Measurement, o *outcome) { o.ran[0] = 0 }},
	} {
		m, o := good, o
		c.change(&m, &o)
		require.ErrorContains(t, p.prove(&m, o, workload{small: true}), c.err)
	}
}
