// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/datapath/iptables"
)

// netfilterLab is a lab that is set up with the iptables datapath.
func netfilterLab(t testing.TB, flavour string) *lab {
	l := newLab(t)
	l.o.Datapath = DatapathIPTables
	var err error
	l.m, err = Open(l.o)
	require.NoError(t, err)
	require.NoError(t, l.m.Init(&Config{IPTables: flavour}))
	return l
}

// inHost runs a program in the host's namespace and says what it printed.
func (l *lab) inHost(stdin string, args ...string) string {
	l.t.Helper()
	var out []byte
	require.NoError(l.t, l.host.Do(func() (err error) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err = cmd.CombinedOutput()
		return err
	}), "%v: %s", args, out)
	return string(out)
}

var unimportant = regexp.MustCompile(`(?m)^#.*\n| \[\d+:\d+\]$`)

// rules are those of both families, without counters.
func (l *lab) rules(flavour string) string {
	l.t.Helper()
	text := ""
	for _, family := range []string{"iptables", "ip6tables"} {
		text += unimportant.ReplaceAllString(l.inHost("", family+"-"+flavour+"-save"), "")
	}
	return text
}

// settings are all of the host's that the network has, but for devices that come and go.
func (l *lab) settings() (list []string) {
	l.t.Helper()
	require.NoError(l.t, l.host.Do(func() error {
		for _, family := range []string{"ipv4", "ipv6", "bridge"} {
			err := filepath.WalkDir("/proc/sys/net/"+family, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					value, _ := os.ReadFile(path)
					list = append(list, path+" "+string(value))
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}))
	return list
}

var flavours = []string{iptables.NFT, iptables.Legacy}

// Somebody else's rules, and the host's settings, are as they were once bpfnet is gone; so is the
// administrator's chain if it has rules.
func TestIPTablesLeavesNothing(t *testing.T) {
	for _, flavour := range flavours {
		t.Run(flavour, func(t *testing.T) {
			l := newLab(t)
			foreign := "*nat\n:THEIRS - [0:0]\n-A PREROUTING -p tcp --dport 99 -j THEIRS\n-A POSTROUTING -s 10.99.0.0/16 -j MASQUERADE\nCOMMIT\n" +
				"*filter\n-P FORWARD DROP\n-A FORWARD -i eth7 -j ACCEPT\n-A OUTPUT -d 192.0.2.99 -j DROP\nCOMMIT\n*raw\n-A PREROUTING -i eth8 -j ACCEPT\nCOMMIT\n"
			l.inHost(foreign, "iptables-"+flavour+"-restore", "--noflush")
			l.inHost("*filter\n-A FORWARD -i eth7 -j ACCEPT\nCOMMIT\n*raw\n-A PREROUTING -i eth8 -j ACCEPT\nCOMMIT\n*nat\n-A PREROUTING -i eth8 -j ACCEPT\nCOMMIT\n", "ip6tables-"+flavour+"-restore", "--noflush")
			before, settings := l.rules(flavour), l.settings()

			l.o.Datapath = DatapathIPTables
			var err error
			l.m, err = Open(l.o)
			require.NoError(t, err)
			yes := true
			require.NoError(t, l.m.Init(&Config{IPTables: flavour, IPv6: &yes}))
			l.container("web", ContainerOptions{Publish: []string{"8080:80", "127.0.0.1:8081:80", "9000-9010:90-100/udp,from=192.0.2.0/24"}})
			during := l.rules(flavour)
			require.Contains(t, during, "-A BPFNET-PORTS -p tcp -m tcp --dport 8080 -j DNAT")
			require.Contains(t, during, "-A BPFNET-PORTS -p udp -m udp --dport 9000:9010 -j DNAT --to-destination 172.17.0.2:90-100/9000")
			require.NotEqual(t, settings, l.settings())
			for line := range strings.Lines(before) { // theirs are there, too
				require.Contains(t, during, line)
			}
			st, err := l.m.Status()
			require.NoError(t, err)
			require.Empty(t, st.Problems)
			for _, h := range st.Hooks {
				require.True(t, h.OK, h)
				require.Equal(t, flavour, h.Kind)
			}

			l.inHost("", "iptables-"+flavour, "-A", "BPFNET-USER", "-s", "192.0.2.77", "-j", "DROP")
			_, err = l.m.Reconcile()
			require.NoError(t, err)
			require.Contains(t, l.rules(flavour), "-A BPFNET-USER -s 192.0.2.77/32 -j DROP")
			require.NoError(t, l.m.Uninstall())
			require.Equal(t, ":BPFNET-USER -\n-A BPFNET-USER -s 192.0.2.77/32 -j DROP\n", unlike(l.rules(flavour), before))
			require.Equal(t, settings, l.settings())
		})
	}
}

// unlike is the lines of a that b has not.
func unlike(a, b string) (more string) {
	have := make(map[string]bool)
	for line := range strings.Lines(b) {
		have[line] = true
	}
	for line := range strings.Lines(a) {
		if !have[line] {
			more += line
		}
	}
	return more
}

// counted puts programs in front of iptables' that count how often they are called.
func counted(t testing.TB, flavour string) (calls func() int) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"restore", "save"} {
			name := family + "-" + flavour + "-" + verb
			real, err := exec.LookPath(name)
			require.NoError(t, err)
			script := fmt.Sprintf("#!/bin/sh\necho %s >>%s\nexec %s \"$@\"\n", name, log, real)
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() int {
		raw, _ := os.ReadFile(log)
		_ = os.Remove(log)
		return strings.Count(string(raw), "\n")
	}
}

// A command calls one program or two for each family that changes, however many ports it is about; 60,000 ports in a row
// are one rule.
func TestIPTablesManyPorts(t *testing.T) {
	for _, flavour := range flavours {
		t.Run(flavour, func(t *testing.T) {
			count := counted(t, flavour)
			l := netfilterLab(t, flavour)
			l.container("web", ContainerOptions{})
			calls := func(of func()) int {
				count()
				of()
				return count()
			}
			publish := func(specs ...string) func() {
				return func() {
					_, err := l.m.Publish("web", specs...)
					require.NoError(t, err)
				}
			}
			unpublish := func(specs ...string) func() { return func() { require.NoError(t, l.m.Unpublish("web", specs...)) } }
			rules := func() int { return strings.Count(l.rules(flavour), "-A BPFNET-PORTS") }

			require.Equal(t, 1, calls(publish("2000-61999:2000-61999", "1000-1499:500-999/udp")), "only IPv4 has rules that change")
			require.Equal(t, 2, rules())
			require.Equal(t, 1, calls(unpublish("2000-61999:2000-61999")))
			require.Equal(t, 1, rules())
			var specs []string
			for port := range 2000 {
				specs = append(specs, fmt.Sprintf("%d:80", 20000+port))
			}
			require.Equal(t, 1, calls(publish(specs...)))
			require.Equal(t, 2001, rules())
			require.Zero(t, calls(func() {
				_, err := l.m.Publish("web", "20000-21999:1-2000")
				require.ErrorContains(t, err, "port is already allocated")
			}))
			require.Equal(t, 2, calls(unpublish(specs...)), "all rules are read and written anew")
			require.Equal(t, 1, rules())
		})
	}
}

// What somebody's hand has removed or added in our chains the next command or reconcile mends.
func TestIPTablesRepair(t *testing.T) {
	for _, flavour := range flavours {
		t.Run(flavour, func(t *testing.T) {
			l := netfilterLab(t, flavour)
			l.container("web", ContainerOptions{Publish: []string{"8080:80"}})
			want := l.rules(flavour)
			run := func(args ...string) func() {
				return func() { l.inHost("", append([]string{"iptables-" + flavour}, args...)...) }
			}
			for name, harm := range map[string]func(){
				"jump gone":      run("-D", "FORWARD", "-m", "comment", "--comment", "bpfnet", "-j", "BPFNET-FORWARD"),
				"rule gone":      run("-t", "nat", "-F", "BPFNET-PORTS"),
				"rule too many":  run("-I", "BPFNET-FORWARD", "-j", "ACCEPT"),
				"a table's all":  run("-t", "nat", "-F"),
				"forwarding off": func() { require.NoError(t, l.host.Do(func() error { return writeSysctl("ipv4/ip_forward", "0") })) },
			} {
				harm()
				st, err := l.m.Status()
				require.NoError(t, err)
				require.NotEmpty(t, st.Problems, name)
				_, err = l.m.Reconcile()
				require.NoError(t, err)
				require.Equal(t, want, l.rules(flavour), name)
				st, err = l.m.Status()
				require.NoError(t, err)
				require.Empty(t, st.Problems, name)
			}
			// A command finds that what it wants to change is not there, and writes all.
			run("-t", "nat", "-F", "BPFNET-PORTS")()
			require.NoError(t, l.m.Unpublish("web", "8080:80"))
			_, err := l.m.Publish("web", "8080:80")
			require.NoError(t, err)
			require.Equal(t, want, l.rules(flavour))
		})
	}
}

// The daemon puts back what somebody has flushed.
func TestIPTablesDaemon(t *testing.T) {
	l := netfilterLab(t, iptables.NFT)
	l.container("web", ContainerOptions{Publish: []string{"8080:80"}})
	want := l.rules(iptables.NFT)
	ctx, stop := context.WithCancel(context.Background())
	ended, following := make(chan error, 1), make(chan bool)
	go func() { ended <- l.m.Daemon(ctx, func(string) {}, func() { close(following) }) }()
	<-following
	for _, harm := range [][]string{{"iptables-nft", "-t", "nat", "-F"}, {"nft", "flush", "ruleset"}} {
		l.inHost("", harm...)
		require.Eventually(t, func() bool { return l.rules(iptables.NFT) == want }, 20*time.Second, 100*time.Millisecond, harm)
	}
	stop()
	require.NoError(t, <-ended)
}

// A command that fails leaves the rules as they were.
func TestIPTablesUndo(t *testing.T) {
	l := netfilterLab(t, iptables.NFT)
	l.container("web", ContainerOptions{Publish: []string{"8080:80"}})
	want := l.rules(iptables.NFT)
	_, err := l.m.Publish("web", "8081:80", "8080:80")
	require.ErrorContains(t, err, "port is already allocated")
	require.Equal(t, want, l.rules(iptables.NFT))
	_, err = l.m.CreateNetwork(NetworkOptions{Name: "bad", Bridge: "b+"})
	require.ErrorContains(t, err, "pattern")
	require.Equal(t, want, l.rules(iptables.NFT))
	// Rules that iptables refuses: nothing of the command stays.
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		path := filepath.Join(dir, family+"-nft-restore")
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\necho 'line 7 failed' >&2\nexit 1\n"), 0o755))
	}
	path := os.Getenv("PATH")
	t.Setenv("PATH", dir+":"+path)
	_, err = l.m.Publish("web", "8081:80")
	require.ErrorContains(t, err, "iptables-nft-restore: line 7 failed")
	require.NotContains(t, err.Error(), "\n")
	no := false
	err = l.m.Init(&Config{ICC: &no})
	require.ErrorContains(t, err, "iptables-nft-restore: line 7 failed")
	t.Setenv("PATH", path)
	require.Equal(t, want, l.rules(iptables.NFT))
	list, err := l.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, list, 1)
}

// init --datapath switches a host with all that runs on it, there and back, and so does the
// flavour of iptables.
func TestSwitch(t *testing.T) {
	l := newLab(t)
	yes, no := true, false
	require.NoError(t, l.m.Init(&Config{IPv6: &yes, ICC: &no, MTU: 1400}))
	l.container("web", ContainerOptions{Publish: []string{"8080:80", "80"}, Expose: []string{"5432"}})
	l.container("client", ContainerOptions{Links: []string{"web:db"}})
	pins := func() (list []string) {
		list, _ = filepath.Glob(filepath.Join(l.o.BPFFS, "links", "*"))
		return list
	}
	containers, err := l.m.Containers()
	require.NoError(t, err)
	doors, err := l.m.Publications("web")
	require.NoError(t, err)
	programs, settings := pins(), l.settings()
	require.NotEmpty(t, programs)
	to := func(path, flavour string) {
		t.Helper()
		o := l.o
		o.Datapath = path
		m, err := Open(o)
		require.NoError(t, err)
		st, err := l.m.Status()
		require.NoError(t, err)
		if st.Datapath != path {
			_, err = m.Publish("web", "9999:80")
			require.ErrorContains(t, err, "init --datapath "+path+" switches")
		}
		require.NoError(t, m.Init(&Config{IPTables: flavour}))
		st, err = l.m.Status()
		require.NoError(t, err)
		require.Equal(t, path, st.Datapath)
		require.Empty(t, st.Problems)
		have, err := l.m.Containers()
		require.NoError(t, err)
		require.Equal(t, containers, have)
		open, err := l.m.Publications("web")
		require.NoError(t, err)
		require.Equal(t, doors, open)
	}
	to(DatapathIPTables, iptables.NFT)
	require.Empty(t, pins())
	require.Contains(t, l.rules(iptables.NFT), "--dport 8080 -j DNAT")
	require.NotContains(t, l.rules(iptables.Legacy), "BPFNET")
	rules := l.rules(iptables.NFT)
	to(DatapathIPTables, iptables.Legacy)
	require.NotContains(t, l.rules(iptables.NFT), "BPFNET")
	require.ElementsMatch(t, strings.Split(rules, "\n"), strings.Split(l.rules(iptables.Legacy), "\n"))
	to(DatapathBPF, "")
	require.ElementsMatch(t, programs, pins())
	require.NotContains(t, l.rules(iptables.Legacy), "BPFNET")
	require.Equal(t, settings, l.settings())
}

// Where another engine has come to use the kernel's forwarding, it stays on.
func TestIPTablesForwardingStays(t *testing.T) {
	l := netfilterLab(t, iptables.NFT)
	l.container("web", ContainerOptions{})
	l.inHost("", "iptables-nft", "-A", "FORWARD", "-i", "other0", "-j", "ACCEPT")
	require.NoError(t, l.m.Uninstall())
	require.NoError(t, l.host.Do(func() error {
		on, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		require.Equal(t, "1\n", string(on))
		return err
	}))
	require.Len(t, l.warns, 1)
	require.Contains(t, l.warns[0], "ip_forward stays 1")
	require.NotContains(t, l.rules(iptables.NFT), "BPFNET")
}

// What conntrack does in its own way is not accepted without a word.
func TestIPTablesLimits(t *testing.T) {
	l := netfilterLab(t, iptables.NFT)
	l.container("web", ContainerOptions{})
	require.NoError(t, l.m.Init(nil))
	require.Empty(t, l.warns)
	require.NoError(t, l.m.Init(&Config{Quota: 7, TimeoutUDP: "90s"}))
	require.Len(t, l.warns, 1)
	require.Contains(t, l.warns[0], "flow-quota, timeout-udp: kept for --datapath bpf, and not in force")
}
