// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Refused says whether err is what a client gets where nobody listens.
func Refused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

// Timeout says whether err is that of a client that got no answer in time.
func Timeout(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}

// Unreachable requires that ask gets nothing through, and that control, which does the
// same where it is allowed, does: before, and once more afterwards. An ask that fails
// for a reason of its own (no route, a bad address, no such device) fails the test: it
// shows nothing. The error of ask is returned.
func Unreachable(t testing.TB, what string, ask, control func() error) error {
	t.Helper()
	if err := control(); err != nil {
		t.Fatalf("%s: the positive control fails, so nothing is shown: %v", what, err)
	}
	err := ask()
	if err == nil {
		t.Errorf("%s: got through", what)
		return nil
	}
	if !blocked(err) {
		t.Errorf("%s: fails for another reason: %v", what, err)
	}
	if err := control(); err != nil {
		t.Fatalf("%s: the positive control fails afterwards: %v", what, err)
	}
	return err
}

// blocked lists what the network does to a packet, as its sender sees it:
// EHOSTUNREACH is also that a neighbour's address was not resolved.
func blocked(err error) bool {
	var icmp *ICMPError
	for _, e := range []error{unix.EHOSTUNREACH, unix.ECONNRESET, unix.EACCES, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return Timeout(err) || Refused(err) || errors.As(err, &icmp)
}
