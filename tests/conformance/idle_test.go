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
		}
		conns[i] = conn
	})
	c.t.Cleanup(func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	})
	if err := failed.Load(); err != nil {
		require.NoError(c.t, err.(error))
	}
	return conns
}

// alive asks once over each and says how many are answered.
func alive(conns []*lab.Conn) int {
	var n atomic.Int64
	atOnce(len(conns), func(i int) {
		if _, err := conns[i].Ask("still there?", 3*wait); err == nil {
			n.Add(1)
		}
	})
	return int(n.Load())
}

// atOnce calls f with 0 to n-1, some at a time.
func atOnce(n int, f func(i int)) {
	var all sync.WaitGroup
	next := atomic.Int64{}
	for range min(n, 32) {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	all.Wait()
}
