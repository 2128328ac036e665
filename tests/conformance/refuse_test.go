// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// refusal is a command line that cannot be obeyed, and the pieces that its one line names.
type refusal struct {
	line  string // fields are separated by blanks, ~ stands for a blank
	words string // separated by |
	code  int    // 0: 125 for run, 1 for the others
	env   []string
}

func (r refusal) args(values *strings.Replacer) (args []string) {
	for _, f := range strings.Fields(r.line) {
		switch f = strings.ReplaceAll(values.Replace(f), "~", " "); f {
		case "''":
			f = ""
		}
		args = append(args, f)
	}
	return args
}

// status is the exit status that a refusal has.
func (r refusal) status() int {
	switch {
	case r.code != 0:
		return r.code
	case strings.HasPrefix(r.line, "run ") || r.line == "run":
		return 125
	}
	return 1
}

// refuse runs the real program on the lab's host, as edit wants it, and requires one clear line.
func (c *cast) refuse(r refusal, values *strings.Replacer, edit ...func(*syscall.SysProcAttr)) {
	c.t.Helper()
	args := r.args(values)
	cmd := c.Command(lab.Binary(c.t), args...)
	cmd.Env = append(cmd.Env, r.env...)
	for _, e := range edit {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
		e(cmd.SysProcAttr)
	}
	p, err := c.StartCommand(c.Host, cmd)
	require.NoError(c.t, err)
	got := c.ended(p, args)
	if strings.TrimSpace(got.out) == "[]" && strings.Contains(r.line, "inspect ") {
		got.out = "" // as Docker: what was found of it
	}
	clear(c.t, got, args, strings.Split(values.Replace(r.words), "|")...)
	require.Equal(c.t, r.status(), got.code, "bpfnet %s: %s", strings.Join(args, " "), got.err)
	require.Less(c.t, len(got.err), 400)
}

// exact is what the inventory leaves out or abstracts: every byte of the store's records (but where
// the search for the next free number or address goes on), the files below root with mode and
// contents, and all settings of the host's.
func (c *cast) exact() []string {
	c.t.Helper()
	list := c.inventory()
	db, err := store.OpenRead(filepath.Join(c.Root, "store.db"))
	require.NoError(c.t, err)
	defer db.Close()
	require.NoError(c.t, db.View(func(tx *store.Tx) error {
		for _, bucket := range []string{"host", "networks", "network-names", "containers", "names", "addresses", "members",
			"slots", "ports", "links", "linked-by", "hosts", "netns"} {
			err := store.Each(tx, bucket, func(key string, v json.RawMessage) error {
				list = append(list, fmt.Sprintf("record %s %s %s", bucket, key, v))
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}))
	list = append(list, contents(c.Root)...)
	require.NoError(c.t, c.Host.Do(func() error {
		for _, family := range []string{"ipv4", "ipv6", "core"} {
			err := filepath.WalkDir("/proc/sys/net/"+family, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					value, _ := os.ReadFile(path)
					list = append(list, fmt.Sprintf("setting %s %s", path, value))
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

// contents is each file below a directory.
func contents(dir string) (list []string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		sum := ""
		if d.Type().IsRegular() && filepath.Base(path) != "store.db" {
			raw, _ := os.ReadFile(path)
			sum = fmt.Sprintf("%x", sha256.Sum256(raw))
		}
		list = append(list, fmt.Sprint("contents ", path, " ", info.Mode(), " ", sum))
		return nil
	})
	return list
}

// badLines are told to a host on which things run: see TestBadInput.
var badLines = []refusal{
	// Commands and flags.
	{line: "frobnicate", words: "frobnicate"}, {line: "netwrok ls", words: "netwrok|network"}, {line: "network frob", words: "frob"},
	{line: "container frob", words: "frob"}, {line: "bridge frob", words: "frob"}, {line: "--frob ps", words: "--frob"}, {line: "ps --frob", words: "--frob"},
	{line: "run --frob -- true", words: "--frob"}, {line: "run -p", words: "-p"}, {line: "run", words: "run|a command"}, {line: "run --", words: "a command"},
	{line: "attach", words: "NAME"}, {line: "attach new", words: "NAME"}, {line: "exec srv", words: "COMMAND"}, {line: "logs", words: "NAME"}, {line: "rm", words: "NAME"},
	{line: "stop", words: "NAME"}, {line: "start", words: "NAME"}, {line: "publish srv", words: "SPEC"}, {line: "link srv", words: "TARGET"}, {line: "port", words: "NAME"},
	{line: "network create", words: "NAME"}, {line: "network create a b", words: "NAME"}, {line: "network connect n1", words: "CONTAINER"}, {line: "network rm", words: "NAME"},
	{line: "ps extra", words: "extra"}, {line: "status extra", words: "extra"}, {line: "init extra", words: "extra"}, {line: "reconcile extra", words: "extra"},
	{line: "uninstall extra", words: "extra"}, {line: "demo extra", words: "extra"}, {line: "version extra", words: "extra"}, {line: "network ls extra", words: "extra"},
	{line: "network prune extra", words: "extra"}, {line: "bridge ls extra", words: "extra"}, {line: "completion frob", words: "frob"}, {line: "supervise ID", words: "supervise"},
	{line: "-o xml ps", words: "xml"}, {line: "--debug=maybe ps", words: "maybe"}, {line: "ps", words: "BPFNET_OUTPUT|xml", env: []string{"BPFNET_OUTPUT=xml"}},
	{line: "ps", words: "BPFNET_DEBUG|maybe", env: []string{"BPFNET_DEBUG=maybe"}}, {line: "stop -t x srv", words: "x"}, {line: "logs --tail x job", words: "--tail|x"},
	{line: "flows --port x", words: "--port|x"}, {line: "flows --port 70000", words: "70000"}, {line: "flows --proto frob", words: "frob"}, {line: "flows --container nobody", words: "nobody"},
	{line: "ps --format {{", words: "--format"}, {line: "network ls --format {{.Nope}}", words: "--format"}, {line: "inspect -f {{ srv", words: "--format"},
	{line: "inspect -f {{.Nope}} srv", words: "--format"},
	// Which host.
	{line: "--root FILE ps", words: "FILE"}, {line: "--root FILE/x ps", words: "FILE/x"}, {line: "--netns NONE ps", words: "--netns"}, {line: "--bpffs NONE ps", words: "--bpffs"},
	{line: "--cgroup NONE ps", words: "--cgroup"}, {line: "--datapath frob ps", words: "frob"}, {line: "--datapath iptables ps", words: "iptables"}, {line: "--datapath frob init", words: "frob"},
	{line: "--config NONE init", words: "NONE"}, {line: "--config FILE init", words: "FILE"}, {line: "--config UNKNOWN init", words: "UNKNOWN|frob"},
	{line: "--config WRONG init", words: "WRONG|mtu"},
	{line: "--root DIR/r2 --bpffs DIR/b2 init", words: "another bpfnet|uninstall"}, // a second one in one namespace
	// Configuration.
	{line: "init --bip x", words: "bip|x"}, {line: "init --bip 10.9.0.1", words: "bip|10.9.0.1"}, {line: "init --bip fd00::1/64", words: "bip|fd00::1/64"},
	{line: "init --fixed-cidr x", words: "fixed-cidr|x"}, {line: "init --bip 10.9.0.1/24 --fixed-cidr 10.8.0.0/24", words: "ip-range|10.8.0.0/24"},
	{line: "init --mtu 5", words: "mtu|5"}, {line: "init --mtu x", words: "--mtu|x"}, {line: "init --dns x", words: "dns|x"}, {line: "init --dns-search a~b", words: "dns-search|a b"},
	{line: "init --default-address-pool x", words: "--default-address-pool|x"}, {line: "init --default-address-pool base=10.0.0.0/8,size=99", words: "99"},
	{line: "init --default-address-pool base=10.0.0.0/16,size=8", words: "8"}, {line: "init --masquerade-ports x", words: "masquerade-ports|x"},
	{line: "init --masquerade-ports 5-4", words: "5-4"}, {line: "init --masquerade-ports 70000", words: "70000"}, {line: "init --flow-table-size 5", words: "flow-table-size|5"},
	{line: "init --flow-quota -1", words: "flow-quota|-1"}, {line: "init --ip x", words: "ip|x"},
	{line: "init --default-gateway x", words: "default-gateway|x"}, {line: "init --bridge a/b", words: "bridge|a/b"}, {line: "init --bridge eth0", words: "eth0"}, {line: "init --icc=maybe", words: "--icc|maybe"},
	// Networks: names, devices, CIDRs.
	{line: "network create a~b", words: "a b"}, {line: "network create n1", words: "n1"}, {line: "network create bridge", words: "bridge"}, {line: "network create host", words: "host"},
	{line: "network create none", words: "none"}, {line: "network create ''", words: "name"}, {line: "network create --bridge sixteencharacters n9", words: "sixteencharacters"},
	{line: "network create --bridge eth0 n9", words: "eth0"}, {line: "network create --bridge lo n9", words: "lo"}, {line: "network create --bridge a/b n9", words: "a/b"},
	{line: "network create --subnet x n9", words: "--subnet|x"}, {line: "network create --subnet 10.9.0.0 n9", words: "10.9.0.0"}, {line: "network create --subnet 10.9.0.1/24 n9", words: "10.9.0.1/24|10.9.0.0/24"},
	{line: "network create --subnet 10.9.0.0/33 n9", words: "10.9.0.0/33"}, {line: "network create --subnet 10.9.0.0/32 n9", words: "10.9.0.0/32"}, {line: "network create --subnet 10.1.0.0/16 n9", words: "10.1.0.0/16"},
	{line: "network create --subnet 10.1.0.128/25 n9", words: "10.1.0.128/25"}, {line: "network create --subnet 127.0.0.0/24 n9", words: "127.0.0.0/24"},
	{line: "network create --subnet 224.0.0.0/24 n9", words: "224.0.0.0/24"}, {line: "network create --subnet 0.0.0.0/0 n9", words: "0.0.0.0/0"},
	{line: "network create --subnet fe80::/64 n9", words: "fe80::/64"}, {line: "network create --subnet ff02::/64 n9", words: "ff02::/64"}, {line: "network create --subnet ::ffff:10.0.0.0/120 n9", words: "::ffff:10.0.0.0/120"},
	{line: "network create --subnet 10.8.0.0/24 --subnet 10.9.0.0/24 n9", words: "subnet"}, {line: "network create --subnet 10.9.0.0/24 --gateway x n9", words: "--gateway|x"},
	{line: "network create --subnet 10.9.0.0/24 --gateway 10.8.0.1 n9", words: "10.8.0.1"}, {line: "network create --subnet 10.9.0.0/24 --gateway 10.9.0.0 n9", words: "10.9.0.0"},
	{line: "network create --subnet 10.9.0.0/24 --gateway 10.9.0.255 n9", words: "10.9.0.255"}, {line: "network create --subnet 10.9.0.0/24 --gateway fd00::1 n9", words: "fd00::1"},
	{line: "network create --gateway 10.9.0.1 n9", words: "10.9.0.1"}, {line: "network create --subnet 10.9.0.0/24 --ip-range x n9", words: "--ip-range|x"},
	{line: "network create --subnet 10.9.0.0/24 --ip-range 10.8.0.0/25 n9", words: "10.8.0.0/25"}, {line: "network create --subnet 10.9.0.0/24 --ip-range 10.9.0.0/16 n9", words: "10.9.0.0/16"},
	{line: "network create --ip-range 10.9.0.0/25 n9", words: "10.9.0.0/25"}, {line: "network create --mtu 10 n9", words: "mtu|10"}, {line: "network create --mtu -1 n9", words: "-1"},
	{line: "network create --mtu 99999 n9", words: "99999"}, {line: "network create --mtu x n9", words: "--mtu|x"}, {line: "network create --gateway-mode frob n9", words: "--gateway-mode|frob"},
	{line: "network create -d macvlan n9", words: "macvlan"}, {line: "network create --opt frob=1 n9", words: "--opt|frob"}, {line: "network create --opt com.docker.network.driver.mtu=x n9", words: "com.docker.network.driver.mtu|x"},
	{line: "network create --opt com.docker.network.bridge.host_binding_ipv4=x n9", words: "x"}, {line: "network create --label =x n9", words: "--label|=x"}, {line: "network create --icc=maybe n9", words: "--icc|maybe"},
	{line: "network inspect nosuch", words: "nosuch"}, {line: "network rm nosuch", words: "nosuch"}, {line: "network rm n1", words: "n1|srv"}, {line: "network connect nosuch srv", words: "nosuch"},
	{line: "network connect n2 nobody", words: "nobody"}, {line: "network connect n1 srv", words: "srv|n1"}, {line: "network connect --ip x n2 srv", words: "--ip|x"}, {line: "network connect --ip 10.1.0.9 n2 srv", words: "10.1.0.9"},
	{line: "network connect --mac-address x n2 srv", words: "x"}, {line: "network connect --ifname a/b n2 srv", words: "a/b"}, {line: "network connect --ifname sixteencharacters n2 srv", words: "sixteencharacters"},
	{line: "network connect --ifname eth0 n2 srv", words: "eth0"}, {line: "network connect --ifname lo n2 srv", words: "lo"}, {line: "network connect --alias a~b n2 srv", words: "a b"},
	{line: "network connect --link nobody n2 srv", words: "nobody"}, {line: "network disconnect n2 srv", words: "srv|n2"}, {line: "network disconnect nosuch srv", words: "nosuch"}, {line: "network disconnect n1 nobody", words: "nobody"},
	// Containers: names, addresses, files.
	{line: "run --name a~b -- true", words: "a b"}, {line: "run --name a/b -- true", words: "a/b"}, {line: "run --name .. -- true", words: ".."}, {line: "run --name srv -- true", words: "srv"},
	{line: "run --net nosuch -- true", words: "nosuch"}, {line: "run --net container: -- true", words: "container"}, {line: "run --net container:nobody -- true", words: "nobody"},
	{line: "run --net container:srv -p 80 -- true", words: "port publishing"}, {line: "run --net none --ip 10.1.0.9 -- true", words: "--ip and --net none"},
	{line: "run --net host --network-alias x -- true", words: "--network-alias and --net host"}, {line: "run --net container:srv --ip6 fd00:1::9 -- true", words: "--ip6 and --net container:srv"},
	{line: "network create --subnet 203.0.113.0/25 other", words: "203.0.113.1|eth0"}, {line: "init --uplink etho", words: "etho|eth0"}, {line: "init --mtu 1000 --ipv6", words: "1000|1280"},
	{line: "unpublish srv 8080:80,from=10.0.0.0/8", words: "8080:80,from=10.0.0.0/8"},
	{line: "run --net n1 --ip x -- true", words: "--ip|x"}, {line: "run --net n1 --ip 10.1.0.300 -- true", words: "10.1.0.300"},
	{line: "run --net n1 --ip 10.2.0.9 -- true", words: "10.2.0.9"}, {line: "run --net n1 --ip 10.1.0.1 -- true", words: "10.1.0.1"}, {line: "run --net n1 --ip 10.1.0.0 -- true", words: "10.1.0.0"},
	{line: "run --net n1 --ip 10.1.0.255 -- true", words: "10.1.0.255"}, {line: "run --net n1 --ip SRV4 -- true", words: "SRV4"}, {line: "run --net n1 --ip fd00:1::9 -- true", words: "--ip|fd00:1::9"},
	{line: "run --net n1 --ip6 10.1.0.9 -- true", words: "--ip6|10.1.0.9"}, {line: "run --net n2 --ip6 fd00:9::9 -- true", words: "family"}, {line: "run --mac-address x -- true", words: "x"},
	{line: "run --mac-address 01:00:5e:00:00:01 -- true", words: "01:00:5e:00:00:01"}, {line: "run --mac-address 00:00:00:00:00:00 -- true", words: "00:00:00:00:00:00"},
	{line: "run --mac-address 02:00:00:00:00:00:00:01 -- true", words: "02:00:00:00:00:00:00:01"}, {line: "run -h a~b -- true", words: "a b"}, {line: "run --net-alias a~b --net n1 -- true", words: "a b"},
	{line: "run --dns x -- true", words: "dns|x"}, {line: "run --dns-search a~b -- true", words: "a b"}, {line: "run --add-host x -- true", words: "x"}, {line: "run --add-host a:b -- true", words: "add-host|b"},
	{line: "run --add-host :1.2.3.4 -- true", words: ":1.2.3.4"}, {line: "run -e =x -- true", words: "--env|=x"}, {line: "run --expose 0 -- true", words: "0"}, {line: "run --expose x -- true", words: "x"},
	{line: "run --expose 90-80 -- true", words: "80"}, {line: "run --link nobody -- true", words: "nobody"}, {line: "run --link srv:a:b -- true", words: "srv:a:b"}, {line: "run --net n2 --link srv -- true", words: "srv"},
	{line: "run --workdir relative -- true", words: "--workdir|relative"}, {line: "run --workdir NONE -- true", words: "NONE"}, {line: "run --rootfs NONE -- true", words: "NONE"},
	{line: "run --rootfs FILE -- true", words: "FILE"}, {line: "run -it -- true", words: "-it|terminal"}, {line: "run -- NONE", words: "NONE", code: 127}, {line: "run -- nosuchcommand", words: "nosuchcommand", code: 127},
	{line: "run -- FILE", words: "FILE", code: 126}, {line: "run -d -- nosuchcommand", words: "nosuchcommand", code: 127}, {line: "run -d --name new -p 7300:73 -- FILE", words: "FILE", code: 126},
	{line: "attach new pid:0", words: "0"}, {line: "attach new pid:x", words: "x"}, {line: "attach new pid:99999999", words: "99999999"}, {line: "attach new netns:NONE", words: "NONE"},
	{line: "attach new netns:FILE", words: "FILE"}, {line: "attach new netns:", words: "netns:"}, {line: "attach new frob:x", words: "frob:x"}, {line: "attach new x", words: "x"},
	{line: "attach srv netns:SPARE", words: "srv"}, {line: "attach a~b netns:SPARE", words: "a b"}, {line: "attach new netns:HOST", words: "HOST|host's own"}, {line: "attach new netns:TAKEN", words: "srv"},
	{line: "attach --net nosuch new netns:SPARE", words: "nosuch"}, {line: "attach --net n1 --ip SRV4 new netns:SPARE", words: "SRV4"},
	// Ports.
	{line: "run -p 7000:80 -- true", words: "7000"}, {line: "run -p 6999-7001:80-82 -- true", words: "7000"}, {line: "run -p 203.0.113.99:7100:80 -- true", words: "203.0.113.99"}, {line: "run -p 7100:80 -p x -- true", words: "x"},
	{line: "publish srv 7100:80 7000:80", words: "7000"}, {line: "publish srv 7200:80", words: "7200"}, {line: "publish nobody 80", words: "nobody"}, {line: "publish srv 7100:80 70000:80", words: "70000"},
	{line: "unpublish nobody 80", words: "nobody"}, {line: "unpublish srv 7000:70 7100:80", words: "7100:80"}, {line: "port nobody", words: "nobody"}, {line: "port srv x", words: "x"}, {line: "port srv 99", words: "99/tcp"},
	{line: "port srv 70/icmp", words: "icmp"},
	// What is there, and what is not.
	{line: "exec nobody true", words: "nobody"}, {line: "exec job nosuchcommand", words: "nosuchcommand", code: 127}, {line: "exec job FILE", words: "FILE", code: 126}, {line: "exec -w NONE job true", words: "NONE", code: 125},
	{line: "exec -e =x job true", words: "=x"}, {line: "logs nobody", words: "nobody"}, {line: "start nobody", words: "nobody"}, {line: "start srv", words: "srv"}, {line: "stop nobody", words: "nobody"}, {line: "stop srv", words: "srv"},
	{line: "restart nobody", words: "nobody"}, {line: "restart srv", words: "srv"}, {line: "rm nobody", words: "nobody"}, {line: "rm job", words: "job"}, {line: "inspect nobody", words: "nobody"},
	{line: "link nobody srv", words: "nobody"}, {line: "link srv nobody", words: "nobody"}, {line: "link srv srv", words: "srv"}, {line: "link srv other", words: "other"}, {line: "link srv a:b:c", words: "a:b:c"},
	{line: "unlink srv peer", words: "peer"}, {line: "unlink nobody srv", words: "nobody"},
}

// Bad input: one clear line that names the piece, a status that is not 0, nothing changed; on a
// host that has something to lose.
//
//	X ── H ─┬─ n1 10.1.0.0/24, fd00:1::/64 ─┬─ srv    (7000:70, 127.0.0.1:7001:70/udp), attached
//	        │                               ├─ peer   attached
//	        │                               └─ job    (7002:80), started by run -d
//	        ├─ n2 10.2.0.0/24 ─── other
//	        └─ a socket of the host's own on port 7200
func TestBadInput(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	c.network("n2", 2, false)
	s := c.container("srv", "n1", publish("7000:70", "127.0.0.1:7001:70/udp"))
	c.container("peer", "n1")
	c.container("other", "n2")
	c.serve(s, 70)
	c.must(append([]string{"run", "-d", "--name", "job", "--net", "n1", "-p", "7002:80", "--"}, lab.Self("serve", "job", ":80")...)...)
	c.must("run", "--rm", "--", "true") // the default network is made when it is first needed, and stays
	c.MustBind(t, c.Host, "tcp", "0.0.0.0:7200")
	spare, sparePath := c.namespace("spare")

	dir := filepath.Join(c.Dir, "bad")
	require.NoError(t, os.Mkdir(dir, 0o755))
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	values := strings.NewReplacer("FILE", file("file", "no JSON"), "UNKNOWN", file("unknown", `{"frob": 1}`), "WRONG", file("wrong", `{"mtu": "x"}`),
		"NONE", filepath.Join(dir, "none"), "DIR", dir, "SPARE", sparePath, "HOST", c.NetnsPath, "TAKEN", filepath.Join(filepath.Dir(sparePath), "srv"), "SRV4", s.ip4.String())
	whole := func() []string { return append(append(c.exact(), c.litter(spare)...), contents(dir)...) }
	before := whole()
	light := c.litter(spare)
	for _, r := range badLines {
		t.Run(r.line, func(t *testing.T) {
			c := c.in(t)
			defer func() {
				if t.Failed() { // the next one is judged by itself
					light = c.litter(spare)
				}
			}()
			c.refuse(r, values)
			require.Empty(t, difference(light, c.litter(spare)))
		})
	}
	require.Empty(t, difference(before, whole()))
	for _, port := range []int{7000, 7002} {
		_, err := ask(c.Client, "tcp", "", at(lab.HostIPv4, port), wait)
		require.NoError(t, err, "what ran goes on")
	}
	c.must("publish", "srv", "7100:70")
	c.answersBy("tcp", c.Client, "", at(lab.HostIPv4, 7100), "srv", lab.ClientIPv4)
	c.must("rm", "-f", "job")
}
