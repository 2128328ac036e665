// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// stream is a UDP client that keeps sending from one socket, numbered datagrams, whether
// anybody answers or not; it is not connected, so that it does not hear of ports that are closed.
type stream struct {
	t    testing.TB
	what string
	mu   sync.Mutex
	sent int64
	got  map[int64]string // who answered
}

// streaming starts one from a namespace to a port.
func (c *cast) streaming(from *netns.NS, to string) *stream {
	c.t.Helper()
	to = detour(to)
	dst := netip.MustParseAddrPort(to)
	network := "udp6"
	if dst.Addr().Is4() {
		network = "udp4"
	}
	var conn *net.UDPConn
	require.NoError(c.t, from.Do(func() error {
		lc := net.ListenConfig{Control: lab.Roomy}
		p, err := lc.ListenPacket(context.Background(), network, ":0")
		if err == nil {
			conn = p.(*net.UDPConn)
		}
		return err
	}))
	k := &stream{t: c.t, what: fmt.Sprintf("stream from %s to %s", from, to), got: make(map[int64]string)}
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for buf := make([]byte, 1<<12); ; {
			n, _, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if r, err := lab.ParseReply(string(buf[:n])); err == nil {
				i, _ := strconv.ParseInt(strings.TrimPrefix(r.Payload, "number "), 10, 64)
				k.mu.Lock()
				k.got[i] = r.Server
				k.mu.Unlock()
			}
		}
	})
	running.Go(func() {
		pace := time.NewTicker(talkPace)
		defer pace.Stop()
		for {
			k.mu.Lock()
			i := k.sent
			k.sent++
			k.mu.Unlock()
			conn.WriteToUDPAddrPort(fmt.Appendf(nil, "number %d", i), dst)
			select {
			case <-stop:
				return
			case <-pace.C:
			}
		}
	})
	c.t.Cleanup(func() { close(stop); conn.Close(); running.Wait() })
	return k
}

// next is the number of the first datagram that has not been sent yet.
func (k *stream) next() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sent
}

// flows waits until n more have been sent.
func (k *stream) flows(n int64) {
	k.t.Helper()
	want := k.next() + n
	require.True(k.t, soon(func() bool { return k.next() >= want }), k.what)
}

// answered requires that server answers each of n datagrams from the first on.
func (k *stream) answered(first, n int64, server string) {
	k.t.Helper()
	missing := func() (list []int64) {
		k.mu.Lock()
		defer k.mu.Unlock()
		for i := first; i < first+n; i++ {
			if k.got[i] != server {
				list = append(list, i)
			}
		}
		return list
	}
	soon(func() bool { return len(missing()) == 0 })
	require.Empty(k.t, missing(), "%s: from %d on not answered by %s", k.what, first, server)
}

// nextAnswered requires that server answers each of the next n datagrams of every stream.
func nextAnswered(streams []*stream, n int64, server string) {
	first := make([]int64, len(streams))
	for i, k := range streams {
		first[i] = k.next()
	}
	for i, k := range streams {
		k.t.Helper()
		k.answered(first[i], n, server)
	}
}

// unanswered requires that nobody answered any so far.
func (k *stream) unanswered() {
	k.t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	require.Empty(k.t, k.got, k.what)
}

// unheard requires that a server answered none so far.
func (k *stream) unheard(server string) {
	k.t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, who := range k.got {
		if who == server {
			require.Fail(k.t, k.what, "%s answered number %d", server, i)
		}
	}
}
