// SPDX-License-Identifier: Apache-2.0

// Package readme runs what README.md shows and compares.
//
//	   X, prompt "client$ "           H, prompt "$ "            containers of the walk
//	┌──────────────────────┐      ┌─────────────────────┐      ┌──────────────────────┐
//	│ 203.0.113.2          ├──────┤ 203.0.113.1         ├──────┤ web, peer, …         │
//	│ 2001:db8:113::2      │ eth0 │ 2001:db8:113::1     │ veth │                      │
//	└──────────────────────┘      └─────────────────────┘      └──────────────────────┘
package readme

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

const path = "../../README.md"

var update = flag.Bool("update", false, "write the real output into README.md where it differs")

// TestReadme runs all commands of all console blocks, in order, in one lab.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(doc.steps) < 50 {
		t.Fatalf("%s: %d commands found: is that the walk?", path, len(doc.steps))
	}
	w := newWalk(t)
	changed := false
	for _, s := range doc.steps {
		got := w.run(t, s)
		diff := s.diff(got)
		switch {
		case diff == "":
		case *update:
			s.output, changed = got, true
			t.Logf("README.md:%d: %s: updated", s.line, s.command)
		default:
			t.Errorf("README.md:%d: %s\n%s", s.line, s.command, diff)
		}
	}
	if t.Failed() {
		t.Log("if the new output is right: make readme")
	}
	if changed {
		if err := os.WriteFile(path, []byte(doc.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// walk is the lab, a directory that the commands work in, and the binary.
type walk struct {
	lab   *lab.Lab
	dir   string
	env   []string
	paths *strings.Replacer // the lab's directories to the product's defaults
}

func newWalk(t *testing.T) *walk {
	t.Helper()
	for _, tool := range []string{"bash", "curl", "ip", "nginx", "nsenter", "socat", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: make deps installs it", err)
		}
	}
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin+"/bpfnet", "../../cmd/bpfnet").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	l := lab.New(t, lab.HostDefault())
	w := &walk{lab: l, dir: filepath.Join(l.Dir, "walk"),
		env: []string{"PATH=" + bin + ":/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=/root"},
		paths: strings.NewReplacer(l.Root, "/var/lib/bpfnet", l.BPFFS, "/sys/fs/bpf/bpfnet", l.Cgroup, "/sys/fs/cgroup",
			l.NetnsPath, "/proc/self/ns/net", filepath.Join(l.Dir, "walk"), "/root/walk")}
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return w
}

// notYet is curl's refusal, socat's silence or refusal, an empty log: what was started a
// line before may not be ready yet.
var notYet = regexp.MustCompile(`curl: \(7\)|socat -t .*\n$|socat\[.*Connection refused\n$|bpfnet logs .*\n$`)

// run gives what a command wrote, stdout and stderr together. One that only asks is
// asked again while there is no answer but an answer is expected.
func (w *walk) run(t *testing.T, s *step) string {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); ; {
		got := w.once(t, s)
		if !notYet.MatchString(s.command+"\n"+got) || s.diff(got) == "" || time.Now().After(until) {
			return got
		}
	}
}

func (w *walk) once(t *testing.T, s *step) string {
	t.Helper()
	out, err := os.CreateTemp(w.lab.Dir, "output")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer os.Remove(out.Name())
	cmd := w.lab.Command("/bin/bash", "-c", s.command)
	cmd.Env = append(cmd.Env, w.env...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.dir, out, out
	p, err := w.lab.StartCommand(w.namespace(s), cmd)
	if err != nil {
		t.Fatalf("README.md:%d: %s: %v", s.line, s.command, err)
	}
	if err := p.Wait(20 * time.Second); err != nil && cmd.ProcessState.ExitCode() < 0 {
		t.Fatalf("README.md:%d: %s: %v", s.line, s.command, err)
	}
	got, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return w.usual(string(got))
}

func (w *walk) namespace(s *step) *netns.NS {
	if s.client {
		return w.lab.Client
	}
	return w.lab.Host
}

// TestNormal shows what counts as the same, and that a difference is one.
func TestNormal(t *testing.T) {
	s := &step{output: "12ab34cd56ef   web   Up 2 seconds   0.0.0.0:32768->80/tcp\n"}
	for _, same := range []string{
		"ba21dc43fe65   web   Up Less than a second   0.0.0.0:40001->80/tcp\n",
		"ba21dc43fe65 web  Up About a minute   0.0.0.0:60999->80/tcp\n",
	} {
		if d := s.diff(same); d != "" {
			t.Errorf("%q: a difference: %s", same, d)
		}
	}
	for _, other := range []string{
		"ba21dc43fe65   web   Up 2 seconds   0.0.0.0:8080->80/tcp\n",
		"ba21dc43fe65   web   Exited (0) 2 seconds ago   0.0.0.0:32768->80/tcp\n",
		"ba21dc43fe65   web   Up 2 seconds   127.0.0.1:32768->80/tcp\n",
		"",
	} {
		if s.diff(other) == "" {
			t.Errorf("%q: no difference", other)
		}
	}
	s = &step{numbers: true, output: "an answer after 845µs\n"}
	if d := s.diff("an answer after 1.04ms\n"); d != "" {
		t.Errorf("a difference: %s", d)
	}
	if s.diff("no answer after 1.04ms\n") == "" {
		t.Error("no answer: no difference")
	}
	s = &step{numbers: true, anyOrder: true, output: "tcp  closing  10.0.0.1:1024 > [::1]:80  3m59s\nend\n"}
	if d := s.diff("end\ntcp  established  10.0.0.1:61000 > [::1]:80  4m0s\n"); d != "" {
		t.Errorf("a difference: %s", d)
	}
	if s.diff("end\ntcp  closing  10.0.0.2:1024 > [::1]:80  3m59s\n") == "" || s.diff("end\ntcp  closing  10.0.0.1:1024 > [::2]:80  3m59s\n") == "" {
		t.Error("another address: no difference")
	}
	if _, err := parse("```console\nno prompt\n```\n"); err == nil {
		t.Error("output without a command: no error")
	}
	text := "a\n```console any-order\n$ x <<E\n> y\n> E\nz\n\nclient$ v\n```\nb\n"
	doc, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if doc.String() != text {
		t.Errorf("parsed and written again: %q", doc.String())
	}
	if got := fmt.Sprintf("%q %q %v %v", doc.steps[0].command, doc.steps[0].output, doc.steps[1].client, doc.steps[1].anyOrder); got != `"x <<E\ny\nE" "z\n\n" true true` {
		t.Error(got)
	}
}

// usual gives an output the product's default directories instead of the lab's,
// and tables in which they stood their width. Such a table has no empty cells. The
// kernel's version goes without what its builder added.
func (w *walk) usual(output string) string {
	output = kernel.ReplaceAllString(output, "$1")
	paragraphs := strings.Split(output, "\n\n")
	for i, old := range paragraphs {
		p := w.paths.Replace(old)
		if p != old && strings.HasPrefix(p, "DEVICE ") {
			p = tabulate(p)
		}
		paragraphs[i] = p
	}
	return strings.Join(paragraphs, "\n\n")
}

var (
	kernel  = regexp.MustCompile(`(?m)^(Kernel: +[\d.]+).*$`)
	columns = regexp.MustCompile(`  +`)
)

func tabulate(table string) string {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for i, line := range strings.Split(table, "\n") {
		if i > 0 {
			fmt.Fprintln(tw)
		}
		fmt.Fprint(tw, strings.Join(columns.Split(line, -1), "\t"))
	}
	tw.Flush()
	return b.String()
}
