// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
)

// readiness tells a systemd that waits for it (Type=notify, sd_notify(3)) that all parts of
// the daemon are ready: what is ordered after the unit is started then.
type readiness struct {
	missing atomic.Int32
	socket  string // "": nobody waits
	log     func(line string)
}

// awaitedReadiness takes the socket out of the environment: it is not the children's.
func awaitedReadiness(log func(line string)) *readiness {
	r := &readiness{socket: os.Getenv("NOTIFY_SOCKET"), log: log}
	os.Unsetenv("NOTIFY_SOCKET")
	return r
}

// part is to be called once when one more part is ready.
func (r *readiness) part() (ready func()) {
	r.missing.Add(1)
	return func() {
		if r.missing.Add(-1) > 0 || r.socket == "" {
			return
		}
		if err := sayReady(r.socket); err != nil {
			r.log(fmt.Sprintf("systemd: %v", err))
		}
	}
}

func sayReady(socket string) error {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"}) // @: an abstract one
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("READY=1"))
	return err
}
