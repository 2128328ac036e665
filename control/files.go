// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Files of a container's directory that its /etc gets, bind-mounted: they are
// always written in place, never renamed over.
const (
	fileHosts    = "hosts"
	fileHostname = "hostname"
	fileResolv   = "resolv.conf"
)

const hostGateway = "host-gateway" // in --add-host: the host's address on the container's network

var (
	hostnameRule = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?$`)
	hostWordRule = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]*$`)
)

// ContainerDir is the directory of a container's hosts, hostname, resolv.conf and log.
func (m *Manager) ContainerDir(id string) string {
	return filepath.Join(m.root, dirContainers, id)
}

func checkHostname(name string) error {
	if len(name) > 64 || !hostnameRule.MatchString(name) { // HOST_NAME_MAX, sethostname(2)
		return invalid("invalid hostname %q: letters, digits, - and ., at most 64", name)
	}
	return nil
}

// parseAddHost splits HOST:IP, or HOST=IP as Docker also takes it.
func parseAddHost(s string) (host, ip string, err error) {
	host, ip, ok := strings.Cut(s, "=")
	if !ok {
		host, ip, ok = strings.Cut(s, ":")
	}
	if !ok || !hostWordRule.MatchString(host) {
		return "", "", invalid("bad format for add-host: %q", s)
	}
	if ip == hostGateway {
		return host, ip, nil
	}
	addr, err := netip.ParseAddr(strings.Trim(ip, "[]"))
	if err != nil || addr.Zone() != "" {
		return "", "", invalid("invalid IP address in add-host: %q", ip)
	}
	return host, addr.String(), nil
}

// hostsEntry is one line of /etc/hosts.
type hostsEntry struct {
	addr  netip.Addr
	names string // separated by blanks
}

// hostsLines is Docker's /etc/hosts: the fixed part, --add-host and links, then
// the container's own addresses.
func hostsLines(entries []hostsEntry, ipv6 bool) []string {
	lines := []string{"127.0.0.1\tlocalhost"}
	if ipv6 {
		lines = append(lines,
			"::1\tlocalhost ip6-localhost ip6-loopback",
			"fe00::\tip6-localnet",
			"ff00::\tip6-mcastprefix",
			"ff02::1\tip6-allnodes",
			"ff02::2\tip6-allrouters")
	}
	for _, e := range entries {
		lines = append(lines, e.addr.String()+"\t"+e.names)
	}
	return lines
}

// ownNames is what a container calls itself: a qualified hostname also by its
// first label.
func ownNames(hostname string) string {
	if short, _, qualified := strings.Cut(hostname, "."); qualified {
		return hostname + " " + short
	}
	return hostname
}

// mergeLines replaces the lines in before by those in after and keeps all
// others: what was edited inside the running container stays.
func mergeLines(current []byte, before, after []string) []byte {
	old := make(map[string]bool, len(before))
	for _, l := range before {
		old[l] = true
	}
	for _, l := range after {
		old[l] = true
	}
	var out bytes.Buffer
	for _, l := range after {
		out.WriteString(l + "\n")
	}
	for l := range strings.Lines(string(current)) {
		if l = strings.TrimRight(l, "\n"); !old[l] {
			out.WriteString(l + "\n")
		}
	}
	return out.Bytes()
}

var (
	publicDNS4 = []string{"8.8.8.8", "8.8.4.4"}
	publicDNS6 = []string{"2001:4860:4860::8888", "2001:4860:4860::8844"}
)

// resolvConf is Docker's /etc/resolv.conf of the default network: the host's
// without resolvers on its loopback (and without IPv6 ones for a container that
// has none), public ones when nothing is left; each part replaced by what was asked for.
func resolvConf(host []byte, servers, search, options []string, ipv6 bool) []byte {
	var hostServers, hostSearch, hostOptions []string
	for line := range strings.Lines(string(host)) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], ";") {
			continue
		}
		switch f[0] {
		case "nameserver":
			addr, err := netip.ParseAddr(f[1])
			if err == nil && !addr.IsLoopback() && (addr.Is4() || ipv6) {
				hostServers = append(hostServers, addr.String())
			}
		case "search", "domain":
			hostSearch = f[1:]
		case "options":
			hostOptions = f[1:]
		}
	}
	if len(servers) == 0 {
		servers = hostServers
	}
	if len(servers) == 0 {
		servers = publicDNS4
		if ipv6 {
			servers = append(servers[:len(servers):len(servers)], publicDNS6...)
		}
	}
	if len(search) == 0 {
		search = hostSearch
	}
	if len(options) == 0 {
		options = hostOptions
	}
	var out bytes.Buffer
	for _, s := range servers {
		fmt.Fprintf(&out, "nameserver %s\n", s)
	}
	if len(search) > 0 && (len(search) != 1 || search[0] != ".") {
		fmt.Fprintf(&out, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&out, "options %s\n", strings.Join(options, " "))
	}
	return out.Bytes()
}

// hostResolvConf reads the host's resolv.conf; behind systemd-resolved's stub
// the file with the real servers, as Docker does.
func hostResolvConf() []byte {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	servers := 0
	stub := false
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			servers++
			stub = f[1] == "127.0.0.53"
		}
	}
	if servers == 1 && stub {
		if real, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
			return real
		}
	}
	return b
}

// fileLimit is how much of a container's file is kept, in bytes: it writes into them, too.
const fileLimit = 1 << 20

// readFile reads a file of a container's /etc. Of one that is larger than anybody needs
// nothing is kept.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, fileLimit+1))
	if len(data) > fileLimit {
		data = nil
	}
	return data, err
}

// writeFile writes a file of a container's /etc in place and registers the old
// content for undo.
func (o *op) writeFile(path string, content []byte) error {
	old, err := readFile(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	if !missing && bytes.Equal(old, content) {
		return nil
	}
	o.undo.add(path, func() error {
		if missing {
			return removeIfThere(path)
		}
		return writeInPlace(path, old)
	})
	return writeInPlace(path, content)
}

func writeInPlace(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil { // whatever the umask
		_ = f.Close()
		return err
	}
	if _, err := f.Write(content); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
