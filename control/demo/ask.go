// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/bpfnet/bpfnet/control/netns"
)

// masqueraded connects from peer to the client, which tells whom it saw.
func (d *demo) masqueraded() (string, error) {
	var listener net.Listener
	err := d.lab.Client.Do(func() (err error) {
		listener, err = net.Listen("tcp4", "203.0.113.2:7")
		return err
	})
	if err != nil {
		return "", err
	}
	defer listener.Close()
	err = d.peerNS.Do(func() error {
		conn, err := net.DialTimeout("tcp4", "203.0.113.2:7", wait)
		if err == nil {
			d.lab.OnClose(conn.Close)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	conn, err := listener.Accept()
	if err != nil {
		return "", err
	}
	d.lab.OnClose(conn.Close)
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	return host, err
}

// ping sends one echo request from inside ns and waits for its answer.
func ping(ns *netns.NS, to string, limit time.Duration) (took time.Duration, err error) {
	err = ns.Do(func() error {
		conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
		if err != nil {
			return err
		}
		defer conn.Close()
		message := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: []byte("bpfnet")}}
		b, err := message.Marshal(nil)
		if err != nil {
			return err
		}
		begun := time.Now()
		if _, err := conn.WriteTo(b, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(begun.Add(limit)); err != nil {
			return err
		}
		buf := make([]byte, 1500)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return fmt.Errorf("ping %s: %w", to, err)
			}
			reply, err := icmp.ParseMessage(1, buf[:n])
			if err == nil && reply.Type == ipv4.ICMPTypeEchoReply {
				took = time.Since(begun)
				return nil
			}
		}
	})
	return took, err
}
