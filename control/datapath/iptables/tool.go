// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bpfnet/bpfnet/control/netns"
)

// Flavours of iptables: in which of the kernel's two packet filters its rules are.
const (
	NFT    = "nft"
	Legacy = "legacy"
)

// sbin is where the programs are when PATH does not say: cron's has no sbin.
var sbin = []string{"/usr/sbin", "/sbin", "/usr/local/sbin"}

// tool runs the programs of one flavour, in the host's namespace: a process has the one of
// the thread that starts it.
type tool struct {
	ns      *netns.NS
	flavour string
}

// families are IPv4 and IPv6, and how the programs are called.
var families = [2]string{"iptables", "ip6tables"}

const (
	v4 = iota
	v6
)

// lockWait bounds, in seconds, the wait for others who change rules (/run/xtables.lock).
const lockWait = "10"

// findFlavour takes the flavour that was asked for, else the one whose rules are in the
// namespace already, else the distribution's default. It runs on a thread in the namespace.
func findFlavour(asked string) (string, error) {
	switch asked {
	case NFT, Legacy:
		_, err := program(families[v4], asked, "restore")
		return asked, err
	case "":
	default:
		return "", fmt.Errorf("iptables %q: %s or %s", asked, NFT, Legacy)
	}
	if names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names"); err == nil && len(bytes.TrimSpace(names)) > 0 {
		if _, err := program(families[v4], Legacy, "restore"); err == nil {
			return Legacy, nil
		}
	}
	path, err := program(families[v4], "", "restore")
	if err != nil {
		for _, f := range []string{NFT, Legacy} {
			if _, err := program(families[v4], f, "restore"); err == nil {
				return f, nil
			}
		}
		return "", err
	}
	out, err := exec.Command(path, "--version").Output()
	if err == nil && bytes.Contains(out, []byte("legacy")) {
		return Legacy, nil
	}
	return NFT, nil
}

// program finds iptables-nft-restore, or iptables-restore where that is of the flavour.
func program(family, flavour, verb string) (string, error) {
	name := family + "-" + flavour + "-" + verb
	if flavour == "" {
		name = family + "-" + verb
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range sbin {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w: install the package iptables, or choose --datapath bpf", name, fs.ErrNotExist)
}

// path is the program of the tool's flavour, under its own name or as the default.
func (t *tool) path(family int, verb string) (string, error) {
	path, err := program(families[family], t.flavour, verb)
	if err == nil {
		return path, nil
	}
	if other, err2 := program(families[family], "", verb); err2 == nil {
		out, _ := exec.Command(other, "--version").Output()
		if legacy := bytes.Contains(out, []byte("legacy")); legacy == (t.flavour == Legacy) {
			return other, nil
		}
	}
	return "", err
}

// restore puts a script in force: all of a table or nothing.
func (t *tool) restore(family int, script string) error {
	path, err := t.path(family, "restore")
	if err != nil {
		return err
	}
	cmd := exec.Command(path, "--noflush", "-w", lockWait)
	cmd.Stdin = strings.NewReader(script)
	_, err = t.run(cmd)
	return err
}

// save is all rules of a family, with counters.
func (t *tool) save(family int) (string, error) {
	path, err := t.path(family, "save")
	if err != nil {
		return "", err
	}
	out, err := t.run(exec.Command(path, "-c"))
	return string(out), err
}

func (t *tool) run(cmd *exec.Cmd) ([]byte, error) {
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	err := t.ns.Do(func() error { return cmd.Run() })
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("%s: %s", filepath.Base(cmd.Path), cmpText(oneLine(said.String()), err.Error()))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
	}
	return out.Bytes(), nil
}

// oneLine is what a program said, without its name and the advice to read its help.
func oneLine(said string) string {
	var words []string
	for line := range strings.Lines(said) {
		if !strings.HasPrefix(line, "Try `") {
			words = append(words, strings.Fields(line)...)
		}
	}
	text := strings.Join(words, " ")
	if _, rest, ok := strings.Cut(text, "): "); ok && strings.HasPrefix(text, "ip") {
		text = rest
	}
	return text
}

func cmpText(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
