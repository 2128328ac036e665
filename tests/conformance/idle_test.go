// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// idle opens n conversations that have proved themselves, and leaves them alone.
func (c *cast) idle(proto string, from *netns.NS, to string, n int) []*lab.Conn {
	c.t.Helper()
	conns, err := openIdle(proto, from, to, n)
	c.t.Cleanup(func() { closeAll(conns) })
	require.NoError(c.t, err)
	return conns
}

// openIdle opens as many of the n as it can; the others are nil, and one of them the error.
func openIdle(proto string, from *netns.NS, to string, n int) ([]*lab.Conn, error) {
	conns := make([]*lab.Conn, n)
	var failed atomic.Value
	atOnce(n, func(i int) {
		conn, err := lab.Dial(from, proto, "", to, wait)
		for range 2 { // UDP proves itself by its second packet after an answer
			if err == nil {
				_, err = conn.Ask("hello", wait)
			}
		}
		if err != nil {
			failed.Store(fmt.Errorf("%s to %s, %d: %w", proto, to, i, err))
			if conn != nil {
				conn.Close()
			}
			return
		}
		conns[i] = conn
	})
	if err := failed.Load(); err != nil {
		return conns, err.(error)
	}
	return conns, nil
}

func closeAll(conns []*lab.Conn) {
	for _, conn := range conns {
		if conn != nil {
			conn.Close()
		}
	}
}

// alive asks once over each and says how many are answered.
func alive(conns []*lab.Conn) int {
	var n atomic.Int64
	atOnce(len(conns), func(i int) {
		if conns[i] == nil {
			return
		}
		if _, err := conns[i].Ask("still there?", 3*wait); err == nil {
			n.Add(1)
		}
	})
	return int(n.Load())
}

// atOnce calls f with 0 to n-1, so many at a time that what they send fits into one socket.
func atOnce(n int, f func(i int)) {
	var all sync.WaitGroup
	next := atomic.Int64{}
	for range min(n, 8) {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	all.Wait()
}
