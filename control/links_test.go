// SPDX-License-Identifier: Apache-2.0

package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/maps"
)

func (l *lab) file(c *Container, name string) string {
	l.t.Helper()
	raw, err := os.ReadFile(filepath.Join(l.m.ContainerDir(c.ID), name))
	require.NoError(l.t, err)
	return string(raw)
}

func (l *lab) linkEntries() (list map[maps.Link]uint32) {
	l.t.Helper()
	_, err := l.m.view(func(o *op) error {
		t, err := o.tables()
		if err == nil {
			list, err = t.Links.List()
		}
		return err
	})
	require.NoError(l.t, err)
	return list
}

func TestLinks(t *testing.T) {
	l := newLab(t)
	db, _ := l.container("db", ContainerOptions{Expose: []string{"5432"}, Publish: []string{"8080:80/udp"}})
	web, _ := l.container("web", ContainerOptions{Links: []string{"db:store"}})
	require.Contains(t, l.file(web, "hosts"), "172.17.0.2\tstore "+db.Hostname+" db\n")
	require.Len(t, l.linkEntries(), 3)
	for k := range l.linkEntries() {
		if k.Port != 0 {
			require.Contains(t, []maps.Link{{Client: k.Client, Server: k.Server, Proto: maps.TCP, Port: 5432}, {Client: k.Client, Server: k.Server, Proto: maps.UDP, Port: 80}}, k)
		}
	}
	rule := func() (r uint32) {
		for _, r = range l.linkEntries() {
		}
		return r
	}
	first := rule()
	_, err := l.m.Publish("db", "8081:81")
	require.NoError(t, err)
	require.Len(t, l.linkEntries(), 4, "a port published later")
	same := rule()
	require.Equal(t, first, same, "a port more ends no flow of the others")
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)
	require.Equal(t, same, rule(), "reconcile ends no flow")

	require.ErrorContains(t, l.m.Link("web", "web:x"), "cannot link to itself")
	require.ErrorIs(t, l.m.Link("web", "nobody"), ErrNotFound)
	require.ErrorIs(t, l.m.Link("web", "db:a:b"), ErrInvalid)

	// What was edited inside stays.
	path := filepath.Join(l.m.ContainerDir(web.ID), "hosts")
	inode := func() os.FileInfo { st, err := os.Stat(path); require.NoError(t, err); return st }
	was := inode()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("10.0.0.1\tmine\n")
	require.NoError(t, err)
	require.NoError(t, f.Close())

	require.NoError(t, l.m.Unlink("web", "db"))
	require.Empty(t, l.linkEntries())
	require.NotContains(t, l.file(web, "hosts"), "store")
	require.Contains(t, l.file(web, "hosts"), "10.0.0.1\tmine\n")
	require.True(t, os.SameFile(was, inode()), "written in place")
	require.ErrorIs(t, l.m.Unlink("web", "db"), ErrNotFound)

	require.NoError(t, l.m.Link("web", "db"))
	require.Contains(t, l.file(web, "hosts"), "172.17.0.2\tdb "+db.Hostname+"\n")
	require.NoError(t, l.m.RemoveContainer("db"))
	require.Empty(t, l.linkEntries())
	require.NotContains(t, l.file(web, "hosts"), "172.17.0.2\t")
	c, err := l.m.Container("web")
	require.NoError(t, err)
	require.Empty(t, c.Links)
}

// A target that comes back with another address is followed.
func TestLinkFollows(t *testing.T) {
	l := newLab(t)
	db, err := l.m.CreateContainer(ContainerOptions{Name: "db", Expose: []string{"5432"}, Args: []string{"x"}})
	require.NoError(t, err)
	web, _ := l.container("web", ContainerOptions{Links: []string{"db"}})
	require.Contains(t, l.file(web, "hosts"), "172.17.0.2\tdb")
	require.NoError(t, l.m.Finished(db.ID, 0, 3))
	require.Empty(t, l.linkEntries())
	l.container("taker", ContainerOptions{Endpoint: EndpointOptions{IPv4: prefixes("172.17.0.2/32")[0].Addr()}})
	_, err = l.m.CreateContainer(ContainerOptions{Name: "late", Links: []string{"db"}})
	require.ErrorContains(t, err, "Cannot link to a non running container: /db AS /late/db")

	db, err = l.m.PrepareStart("db")
	require.NoError(t, err)
	for _, ep := range db.Endpoints {
		require.Equal(t, "172.17.0.4", ep.IPv4.Addr().String(), "its own is taken")
	}
	require.Len(t, l.linkEntries(), 2)
	require.Contains(t, l.file(web, "hosts"), "172.17.0.4\tdb")
	require.Equal(t, 1, strings.Count(l.file(web, "hosts"), "\tdb"))
}

// A link whose two ends have no network in common any more rests, and so does one whose target
// has ended: neither keeps the client from joining and leaving networks.
func TestLinkRests(t *testing.T) {
	l := newLab(t)
	for _, name := range []string{"n1", "n2"} {
		_, err := l.m.CreateNetwork(NetworkOptions{Name: name})
		require.NoError(t, err)
	}
	l.container("db", ContainerOptions{Network: "n1", Expose: []string{"5432"}})
	job, err := l.m.CreateContainer(ContainerOptions{Name: "job", Network: "n1", Expose: []string{"99"}, Args: []string{"x"}})
	require.NoError(t, err)
	web, _ := l.container("web", ContainerOptions{Network: "n1", Links: []string{"db:store", "job"}})
	inForce := func(n int) {
		t.Helper()
		require.Len(t, l.linkEntries(), 2*n) // a port each, and its answers
		require.Equal(t, n, strings.Count(l.file(web, "hosts"), "\tstore ")+strings.Count(l.file(web, "hosts"), "\tjob "))
		lines, err := l.m.Reconcile()
		require.NoError(t, err)
		require.Empty(t, lines)
	}
	inForce(2)
	require.NoError(t, l.m.Disconnect("n1", "web"))
	inForce(0)
	require.NoError(t, l.m.Connect("n2", "web", EndpointOptions{}))
	inForce(0)
	require.ErrorContains(t, l.m.Link("web", "db:again"), "cannot link to db: it is on no network that web is on")
	before := l.state()
	_, err = l.m.CreateContainer(ContainerOptions{Name: "late", Network: "n2", Links: []string{"db"}, Args: []string{"x"}})
	require.ErrorContains(t, err, "cannot link to db: it is on no network that late is on")
	require.Equal(t, before, l.state())
	require.NoError(t, l.m.Connect("n2", "db", EndpointOptions{}))
	inForce(1)
	require.NoError(t, l.m.Connect("n1", "web", EndpointOptions{}))
	require.NoError(t, l.m.Disconnect("n2", "web"))
	inForce(2)

	require.NoError(t, l.m.Finished(job.ID, 0, 0))
	require.NoError(t, l.m.Connect("n2", "web", EndpointOptions{}))
	require.NoError(t, l.m.Disconnect("n2", "web"))
	require.NoError(t, l.m.Link("web", "db:more"))
	require.NoError(t, l.m.Unlink("web", "db:more"))
	inForce(1)
	_, err = l.m.PrepareStart("job")
	require.NoError(t, err)
	inForce(2)
}

func TestFiles(t *testing.T) {
	l := newLab(t)
	require.NoError(t, l.m.Init(&Config{DNS: []string{"9.9.9.9"}}))
	c, _ := l.container("web", ContainerOptions{Hostname: "www.example.org", AddHosts: []string{"a:10.0.0.9", "gw:host-gateway"},
		DNSSearch: []string{"example.org"}})
	require.Equal(t, `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
10.0.0.9	a
172.17.0.1	gw
172.17.0.2	www.example.org www
`, l.file(c, "hosts"))
	require.Equal(t, "www.example.org\n", l.file(c, "hostname"))
	require.Contains(t, l.file(c, "resolv.conf"), "nameserver 9.9.9.9\nsearch example.org\n")

	shared, err := l.m.CreateContainer(ContainerOptions{Name: "shared", Network: "container:web"})
	require.NoError(t, err)
	require.Equal(t, c.Netns, shared.Netns)
	require.Equal(t, l.file(c, "hosts"), l.file(shared, "hosts"))
	none, err := l.m.CreateContainer(ContainerOptions{Name: "none", Network: "none"})
	require.NoError(t, err)
	require.NotContains(t, l.file(none, "hosts"), "172.17.")
	host, err := l.m.CreateContainer(ContainerOptions{Name: "host", Network: "host", Publish: []string{"80:80"}})
	require.NoError(t, err)
	require.Equal(t, l.o.Netns, host.Netns)
	require.Contains(t, l.warns, "Published ports are discarded when using host network mode")
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)
	for _, ref := range []string{"shared", "none", "host"} {
		c, err := l.m.Container(ref)
		require.NoError(t, err)
		require.NoError(t, l.m.Finished(c.ID, 0, 0))
		require.NoError(t, l.m.RemoveContainer(ref))
	}

	for spec, o := range map[string]ContainerOptions{
		"port publishing and the container type": {Network: "container:web", Publish: []string{"80"}},
		"container type network can't be used":   {Network: "container:web", Links: []string{"web"}},
		"hostname and the network mode":          {Network: "container:web", Hostname: "x"},
		"host type networking can't be used":     {Network: "host", Links: []string{"web"}},
		"No such container: nobody":              {Network: "container:nobody"},
		"network nothing not found":              {Network: "nothing"},
		"bad format for add-host":                {AddHosts: []string{"x"}},
		"invalid hostname":                       {Hostname: "a b"},
		"invalid container name":                 {Name: "a"},
		`The container name "/web" is already`:   {Name: "web"},
		"bad format for links":                   {Links: []string{":"}},
	} {
		before := l.state()
		_, err := l.m.CreateContainer(o)
		require.ErrorContains(t, err, spec)
		require.Equal(t, before, l.state())
	}
}

func TestResolvConf(t *testing.T) {
	host := "# comment\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver fd00::53\nsearch a b\noptions ndots:2\n"
	require.Equal(t, "nameserver 10.0.0.1\nsearch a b\noptions ndots:2\n", string(resolvConf([]byte(host), nil, nil, nil, false)))
	require.Equal(t, "nameserver 10.0.0.1\nnameserver fd00::53\nsearch a b\noptions ndots:2\n", string(resolvConf([]byte(host), nil, nil, nil, true)))
	require.Equal(t, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", string(resolvConf([]byte("nameserver ::1\n"), nil, []string{"."}, nil, false)))
	require.Equal(t, "nameserver 1.1.1.1\nsearch x\n", string(resolvConf([]byte(host[:40]), []string{"1.1.1.1"}, []string{"x"}, nil, false)))
}
