// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// dialogue is a conversation that goes on beside what is tested: a question at a time,
// each asked once, each of which must be answered.
type dialogue struct {
	t        testing.TB
	what     string
	answered atomic.Int64
	stop     chan struct{}
	done     chan struct{}
	err      error // once done is closed
}

// talkPace is between two questions: it leaves the processor to the others. callPace is between
// two connections: a closed one's port rests for 60 s, and there are 28,232 (one in 2.1 ms).
const (
	talkPace = time.Millisecond
	callPace = 3 * time.Millisecond
)

// talking asks server at to over one socket, by "tcp" or "udp", until the talk is ended.
func (c *cast) talking(proto string, from *netns.NS, to, server string) *dialogue {
	c.t.Helper()
	to = detour(to)
	conn, err := lab.Dial(from, proto, "", to, wait)
	require.NoError(c.t, err, "%s to %s", proto, to)
	return c.talk(fmt.Sprintf("%s to %s", proto, to), talkPace, func(i int64) error {
		payload := fmt.Sprintf("question %d", i)
		line, err := conn.Ask(payload, wait)
		return heard(line, err, server, payload)
	}, conn.Close)
}

// calling asks server at to over a new socket each time.
func (c *cast) calling(proto string, from *netns.NS, to, server string) *dialogue {
	c.t.Helper()
	return c.talk(fmt.Sprintf("new %s to %s", proto, to), callPace, func(int64) error {
		reply, err := ask(from, proto, "", to, wait)
		if err == nil && reply.Server != server {
			err = fmt.Errorf("answered by %s", reply.Server)
		}
		return err
	}, func() error { return nil })
}

// pinging sends echo requests.
func (c *cast) pinging(from *netns.NS, to string) *dialogue {
	c.t.Helper()
	return c.talk("ping of "+to, talkPace, func(i int64) error {
		_, err := lab.Echo{To: to, ID: 0x7a1c, Seq: uint16(i), Wait: wait}.Send(from)
		return err
	}, func() error { return nil })
}

func heard(line string, err error, server, payload string) error {
	if err != nil {
		return err
	}
	reply, err := lab.ParseReply(line)
	if err == nil && (reply.Server != server || reply.Payload != payload) {
		err = fmt.Errorf("%s answered %q to %q", reply.Server, reply.Payload, payload)
	}
	return err
}

func (c *cast) talk(what string, pause time.Duration, question func(i int64) error, end func() error) *dialogue {
	k := &dialogue{t: c.t, what: what, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(k.done)
		defer end()
		pace := time.NewTicker(pause)
		defer pace.Stop()
		for {
			if err := question(k.answered.Load()); err != nil {
				k.err = fmt.Errorf("%s: after %d answers: %w", what, k.answered.Load(), err)
				return
			}
			k.answered.Add(1)
			select {
			case <-k.stop:
				return
			case <-pace.C:
			}
		}
	}()
	c.t.Cleanup(func() { k.end() })
	k.more(1)
	return k
}

// more waits until n more questions have been answered.
func (k *dialogue) more(n int64) {
	k.t.Helper()
	k.reaches(k.answered.Load()+n, time.Duration(n)*time.Second+2*wait)
}

// reaches waits until so many have been answered.
func (k *dialogue) reaches(want int64, limit time.Duration) {
	k.t.Helper()
	for late := time.After(limit); k.answered.Load() < want; {
		tick := time.NewTimer(talkPace)
		select {
		case <-k.done:
			require.NoError(k.t, k.err)
			require.Fail(k.t, k.what+": ended")
		case <-late:
			require.Fail(k.t, k.what+": too slow", "%d of %d", k.answered.Load(), want)
		case <-tick.C:
		}
		tick.Stop()
	}
}

func (k *dialogue) end() error {
	select {
	case <-k.stop:
	default:
		close(k.stop)
	}
	<-k.done
	return k.err
}

// unharmed requires that every one of the talks still goes on and lost nothing.
func unharmed(talks ...*dialogue) {
	const more = 3
	want := make([]int64, len(talks)) // of all at once: they talk side by side
	for i, k := range talks {
		want[i] = k.answered.Load() + more
	}
	for i, k := range talks {
		k.t.Helper()
		k.reaches(want[i], more*time.Second+2*wait)
	}
}

// over ends the talks, which lost nothing to the end.
func over(talks ...*dialogue) {
	for _, k := range talks {
		k.t.Helper()
		require.NoError(k.t, k.end())
	}
}
