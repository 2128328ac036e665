// SPDX-License-Identifier: Apache-2.0

// Package systemd has a real systemd, PID 1 in the host of a lab, install the Debian package,
// run its unit and remove it. The root is a copy of this machine's files. make test-engines
// runs it.
package systemd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/lab"
	"github.com/bpfnet/bpfnet/tests/needs"
)

// TestUnit has a real systemd install the package, run its unit, and remove it.
func TestUnit(t *testing.T) {
	needs.Engines(t)
	deb := lab.Deb(t, "1.2.3~test")
	d := newDisk(t)
	s := start(t, d)
	s.put("/proc/self/exe", "/bpfnet-test/lab")
	s.put(deb, "/bpfnet-test/bpfnet.deb")
	serve := strings.Join(lab.Self("serve", "web", "0.0.0.0:80")[1:], " ")

	var asking *traffic
	step := func(name string, fn func(s *system)) {
		t.Helper()
		require.True(t, t.Run(name, func(t *testing.T) {
			fn(s.in(t))
			if asking != nil {
				asking.goesOn(t)
			}
		}), name)
	}
	step("installed", func(s *system) {
		// Its man pages are looked at by TestDeb, in which the index of all takes most of the time.
		s.sh("rm -f /var/lib/man-db/auto-update; dpkg -i /bpfnet-test/bpfnet.deb")
		require.Equal(s.t, "disabled", s.fails("systemctl is-enabled bpfnet"))
		require.Equal(s.t, "inactive", s.fails("systemctl is-active bpfnet"))
	})
	step("enabled", func(s *system) {
		s.sh("systemctl enable --now bpfnet")
		require.True(s.t, s.attached(s.X.Device))
		require.Equal(s.t, "enabled", s.sh("systemctl is-enabled bpfnet"))
		require.Equal(s.t, "active", s.sh("systemctl is-active bpfnet"))
		s.said("following /var/lib/bpfnet")
	})
	step("hardened", func(s *system) { s.hardened() })
	step("used", func(s *system) {
		s.sh("bpfnet run -d --name web -p 8080:80 -p 8080:80/udp -- /bpfnet-test/lab " + serve)
		s.sh("ip netns add other; bpfnet network create lan; bpfnet attach --net lan other netns:/run/netns/other; bpfnet publish other 8081:80 8081:80/udp")
		s.sh("nsenter --net=/run/netns/other setsid /bpfnet-test/lab " + strings.ReplaceAll(serve, "web", "other") + " >/dev/null 2>&1 </dev/null &")
		s.comes("8080", "web")
		s.comes("8081", "other")
	})
	asking = s.keepAsking("8080")
	step("follows", func(s *system) { s.follows("late") })
	// It takes the address away that the talk has, and gives it back.
	step("networkd", func(s *system) {
		s.write("/etc/systemd/network/uplink.network", "[Match]\nName="+s.X.Device+"\n[Network]\nIPv6AcceptRA=no\n"+
			"Address="+lab.HostIPv4+"/24\nAddress="+lab.HostIPv6+"/64\nGateway="+lab.ClientIPv4+"\n")
		s.sh("systemctl enable --now systemd-networkd; systemctl restart systemd-networkd; networkctl reconfigure " + s.X.Device)
		s.sh("/lib/systemd/systemd-networkd-wait-online --timeout=30 --interface=" + s.X.Device)
	})
	step("restores", func(s *system) {
		// What only a daemon puts back that may go into a container's namespace.
		s.sh("ip link delete $(bpfnet bridge ls | awk '/other/ {print $4}')")
		s.comes("8081", "other")
	})
	step("reloaded", func(s *system) {
		pid := s.show("MainPID")
		s.sh("systemctl daemon-reload; systemctl daemon-reexec")
		require.Equal(s.t, pid, s.show("MainPID"))
		require.Equal(s.t, "active", s.sh("systemctl is-active bpfnet"))
	})
	step("restarted", func(s *system) {
		pid := s.show("MainPID")
		s.sh("systemctl restart bpfnet")
		require.NotEqual(s.t, pid, s.show("MainPID"))
		s.follows("late1")
	})
	step("killed", func(s *system) {
		pid := s.show("MainPID")
		s.sh("systemctl kill --signal=KILL bpfnet")
		s.eventually("it is started again", func() bool {
			now := s.show("MainPID")
			return now != "0" && now != pid && s.show("ActiveState") == "active"
		})
		require.Equal(s.t, "1", s.show("NRestarts"))
		s.follows("late2")
	})
	step("upgraded", func(s *system) {
		pid := s.show("MainPID")
		s.sh(`cd /bpfnet-test; dpkg-deb -R bpfnet.deb tree; sed -i 's/1.2.3~test/1.2.4~test/' tree/DEBIAN/control
			dpkg-deb -b -Znone tree bpfnet.deb; rm -r tree; dpkg -i bpfnet.deb`)
		now := s.show("MainPID")
		require.NotEqual(s.t, pid, now)
		require.Equal(s.t, "/usr/bin/bpfnet", s.sh("readlink /proc/"+now+"/exe")) // the old one is deleted
		s.follows("late3")
	})
	step("options", func(s *system) {
		s.write("/etc/default/bpfnet", "DAEMON_ARGS=--docker-driver\n")
		// Started is ready.
		s.sh("systemctl reset-failed bpfnet; systemctl restart bpfnet; test -S /run/docker/plugins/bpfnet.sock")
		require.Contains(s.t, s.sh(`curl -sS --unix-socket /run/docker/plugins/bpfnet.sock -X POST http://x/Plugin.Activate`), "NetworkDriver")
		s.write("/etc/default/bpfnet", "DAEMON_ARGS=--no-such-option\n")
		s.fails("systemctl restart bpfnet")
		s.write("/etc/default/bpfnet", "DAEMON_ARGS=\n")
		s.sh("systemctl reset-failed bpfnet; systemctl restart bpfnet; test ! -e /run/docker/plugins/bpfnet.sock")
	})
	step("stopped", func(s *system) {
		s.sh("systemctl stop bpfnet")
		require.Equal(s.t, "inactive", s.fails("systemctl is-active bpfnet"))
		s.answers("8080", "web")
		s.answers("8081", "other")
		s.sh("systemctl start bpfnet")
		s.follows("late4")
	})
	asking.stop(t)
	asking = nil
	step("iptables", func(s *system) {
		s.sh("bpfnet init --datapath iptables")
		s.answers("8080", "web")
		// The daemon runs iptables, which is bound by the unit, too.
		s.sh("iptables -t nat -F")
		s.comes("8080", "web")
		s.sh("bpfnet init --datapath bpf")
		s.answers("8080", "web")
	})
	step("docker", func(s *system) {
		s.write("/etc/docker/daemon.json", `{"iptables": false, "ip6tables": false, "userland-proxy": false, "ip-forward": false}`)
		s.write("/etc/default/bpfnet", "DAEMON_ARGS=--docker\n")
		s.sh("systemctl reset-failed bpfnet; systemctl restart bpfnet; systemctl enable --now docker")
		s.sh("cd /bpfnet-test; tar -c lab | docker import - box")
		s.sh("docker run -d --name boxed --cap-add NET_ADMIN --cap-add SYS_ADMIN --restart always -p 8082:80 -p 8082:80/udp box /" + strings.ReplaceAll("lab "+serve, "web", "boxed"))
		s.adopted()
		s.comes("8082", "boxed")
	})

	step("rebooted", func(s *system) {
		_, _ = s.try("systemctl reboot")                               // ends the session that asks for it, too
		require.ErrorContains(s.t, s.one.Wait(wait), "signal: hangup") // how a PID namespace says reboot
	})
	s = start(t, d)
	step("booted", func(s *system) {
		require.Equal(s.t, "active", s.sh("systemctl is-active bpfnet"))
		require.True(s.t, s.attached(s.X.Device))
		require.Contains(s.t, s.sh("bpfnet network ls"), "lan")
		s.sh("bpfnet start web")
		s.comes("8080", "web")
		// The Engine has started its container again, after the daemon.
		s.adopted()
		s.comes("8082", "boxed")
		s.sh("docker rm -f boxed; systemctl disable --now docker.service docker.socket containerd; ip link delete docker0")
	})
	step("removed", func(s *system) {
		s.sh("dpkg -r bpfnet")
		require.Equal(s.t, "inactive", s.fails("systemctl is-active bpfnet"))
		s.sh("test ! -L /etc/systemd/system/multi-user.target.wants/bpfnet.service")
		require.Equal(s.t, "not-found", s.show("LoadState"))
		require.Empty(s.t, s.sh("find /sys/fs/bpf -mindepth 1 ! -name '*.debug'"))
		s.sh("systemctl --failed --quiet; test -e /etc/default/bpfnet; dpkg -P bpfnet; rm -r /bpfnet-test")
		require.Empty(s.t, s.sh("systemctl list-units --all --plain --no-legend | grep bpfnet | grep -v bpfnet-test || true"))
		var left []string
		require.NoError(s.t, filepath.WalkDir(string(d), func(path string, entry os.DirEntry, err error) error {
			if err == nil && strings.Contains(entry.Name(), "bpfnet") {
				left = append(left, path)
			}
			return err
		}))
		require.Empty(s.t, left)
		for _, line := range s.Leftovers(s.t) {
			require.Regexp(s.t, "^process ", line) // systemd's
		}
	})
}

// in is the system for a test within the test.
func (s *system) in(t testing.TB) *system {
	inner := *s
	inner.t = t
	return &inner
}

// fails is what a script says that has to fail.
func (s *system) fails(script string) string {
	s.t.Helper()
	out, err := s.try(script)
	require.Error(s.t, err, out)
	return out
}

// hardened compares what the daemon's process has with what the unit asks for.
func (s *system) hardened() {
	s.t.Helper()
	pid := s.show("MainPID")
	status := make(map[string]string)
	for line := range strings.Lines(s.sh("cat /proc/" + pid + "/status")) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(value)
	}
	for line := range strings.Lines(s.sh("cat /usr/lib/systemd/system/bpfnet.service")) {
		if key, on := strings.CutSuffix(strings.TrimSpace(line), "=yes"); on {
			require.Equal(s.t, "yes", s.show(key), key)
		}
	}
	require.Equal(s.t, "1", status["NoNewPrivs"])
	require.Equal(s.t, strconv.Itoa(unix.SECCOMP_MODE_FILTER), status["Seccomp"])
	// All of the unit's that this system has, and no other.
	bound := func(of string) uint64 {
		text := s.sh("sed -n 's/^CapBnd:[[:space:]]*//p' /proc/" + of + "/status")
		bits, err := strconv.ParseUint(text, 16, 64)
		require.NoError(s.t, err)
		return bits
	}
	var want uint64
	for line := range strings.Lines(s.sh("systemd-analyze capability " + s.show("CapabilityBoundingSet"))) {
		if f := strings.Fields(line); f[0] != "NAME" {
			bit, err := strconv.Atoi(f[1])
			require.NoError(s.t, err)
			want |= 1 << bit
		}
	}
	require.Equal(s.t, want&bound("1"), bound(pid))
	require.NotEqual(s.t, bound("1"), bound(pid))
	require.Equal(s.t, status["CapBnd"], status["CapEff"])
	// It is in the namespaces of the host.
	require.Equal(s.t, s.sh("readlink /proc/1/ns/mnt"), s.sh("readlink /proc/"+pid+"/ns/mnt"))
}

// follows gives the host a device and requires that the daemon attaches to it.
func (s *system) follows(device string) {
	s.t.Helper()
	s.sh(fmt.Sprintf("ip link add %s type veth peer name %s-peer; ip link set %[1]s up; ip link set %[2]s up", device, device))
	s.eventually(device+" is attached to", func() bool { return s.attached(device) })
}

// adopted waits until the daemon carries the Engine's container.
func (s *system) adopted() {
	s.t.Helper()
	s.eventually("docker/boxed is adopted", func() bool {
		return strings.Contains(s.sh("bpfnet ps | grep Up || true"), "docker/boxed")
	})
}

// traffic is what goes on all the time.
type traffic struct {
	end   context.CancelFunc
	ended chan error
	asked atomic.Int64
}

// keepAsking asks by one connection that stays, and by new ones, in turns, until something is
// not answered.
func (s *system) keepAsking(port string) *traffic {
	s.t.Helper()
	to := lab.HostIPv4 + ":" + port
	open, err := lab.Dial(s.Client, "tcp", "", to, wait/6)
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	f := &traffic{end: cancel, ended: make(chan error, 1)}
	go func() {
		defer open.Close()
		for err == nil && ctx.Err() == nil {
			if _, err = open.Ask("on", wait/6); err == nil {
				_, err = lab.AskTCP(s.Client, "", to, "new", wait/6)
			}
			f.asked.Add(1)
			time.Sleep(5 * time.Millisecond) // the machine is for others, too
		}
		f.ended <- err
	}()
	return f
}

// goesOn requires that all has been answered, and that more is.
func (f *traffic) goesOn(t *testing.T) {
	t.Helper()
	for more := f.asked.Load() + 10; f.asked.Load() < more; {
		select {
		case err := <-f.ended:
			t.Fatalf("after %d answers: %v", f.asked.Load(), err)
		case <-time.After(time.Millisecond):
		}
	}
}

func (f *traffic) stop(t *testing.T) {
	t.Helper()
	f.end()
	require.NoError(t, <-f.ended)
}
