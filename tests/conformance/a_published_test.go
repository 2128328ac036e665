package conformance

import (
	"testing"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// A1: X reaches a published port; the server sees X.
func TestA1(t *testing.T) {
	c, _, _, _ := mainCast(t)
	c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
	c.answers(c.Client, at(lab.HostIPv6, 8080), "srv", lab.ClientIPv6)
}

// A2: the host reaches it on 127.0.0.1; the server sees the gateway.
func TestA2(t *testing.T) {
	c, _, _, _ := mainCast(t)
	c.answers(c.Host, "127.0.0.1:8080", "srv", "10.1.0.1")
	c.answers(c.Host, "[::1]:8080", "srv", "fd00:1::1")
}
