// SPDX-License-Identifier: Apache-2.0

package readme

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// document is README.md in pieces: text as it is, and the steps of console blocks.
type document struct {
	pieces []fmt.Stringer
	steps  []*step
}

type prose string

func (p prose) String() string { return string(p) }

// step is a command of a console block and what the README shows as its output.
// Words behind "console" say what else than normal's rules may differ in the block:
//
//	any-order   the lines' order, and how often one comes: who asks a second time
//	            leaves one more flow
//	numbers     every number that is no address
type step struct {
	line     int
	client   bool   // prompt "client$ ": in X
	command  string // more lines than one where "> " goes on
	output   string
	anyOrder bool
	numbers  bool
}

const clientPrompt, hostPrompt, more = "client$ ", "$ ", "> "

func (s *step) String() string {
	prompt := hostPrompt
	if s.client {
		prompt = clientPrompt
	}
	return prompt + strings.ReplaceAll(s.command, "\n", "\n"+more) + "\n" + s.output
}

func (d *document) String() string {
	var b strings.Builder
	for _, p := range d.pieces {
		b.WriteString(p.String())
	}
	return b.String()
}

func parse(text string) (*document, error) {
	d := &document{}
	var now *step // within a block, once it has begun
	var block []string
	inside, outputYet := false, false
	for i, line := range strings.SplitAfter(text, "\n") {
		switch {
		case !inside:
			d.pieces = append(d.pieces, prose(line))
			if info, ok := strings.CutPrefix(line, "```console"); ok {
				inside, now, block = true, nil, strings.Fields(info)
			}
		case line == "```\n":
			d.pieces = append(d.pieces, prose(line))
			inside = false
		case strings.HasPrefix(line, hostPrompt), strings.HasPrefix(line, clientPrompt):
			command, client := strings.CutPrefix(line, clientPrompt)
			now = &step{line: i + 1, client: client, command: strings.TrimSuffix(strings.TrimPrefix(command, hostPrompt), "\n"),
				anyOrder: slices.Contains(block, "any-order"), numbers: slices.Contains(block, "numbers")}
			outputYet = false
			d.pieces, d.steps = append(d.pieces, now), append(d.steps, now)
		case now == nil:
			return nil, fmt.Errorf("line %d: output without a command", i+1)
		case !outputYet && strings.HasPrefix(line, more):
			now.command += "\n" + strings.TrimSuffix(line[len(more):], "\n")
		default:
			now.output += line
			outputYet = true
		}
	}
	if inside {
		return nil, fmt.Errorf("line %d: block without an end", now.line)
	}
	return d, nil
}

// What may differ from run to run, and what is compared in its place.
var volatile = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "<id>"},
	{regexp.MustCompile(`\bbpfv[0-9a-f]{10}\b`), "<veth>"},
	{regexp.MustCompile(`\bbpfn-[0-9a-f]{10}\b`), "<bridge>"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "<id>"},
	{regexp.MustCompile(`\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b`), "<mac>"},
	{regexp.MustCompile(`\bfd[0-9a-f]{2}(:[0-9a-f]{1,4}){2}:`), "<ula>:"},
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\dT[0-9:.]+Z\b`), "<date>"},
	{regexp.MustCompile(`\b(\d+|Less than a|About an?) (second|minute|hour)s?\b`), "<time>"},
	{regexp.MustCompile(`\bafter [\d.]+(µs|ms|s)\b`), "after <time>"},
	{regexp.MustCompile(`curl: \((\d+)\).*`), "curl: ($1)"}, // its words change with its version
	{regexp.MustCompile(`@if\d+\b`), "@if<n>"},
	{regexp.MustCompile(`^Kernel:.*`), "Kernel: <kernel>"},
	// The last packets of a connection may still be on their way.
	{regexp.MustCompile(`\btcp +(established|closing)\b`), "tcp <state>"},
	// What Linux gives out by itself: ip_local_port_range.
	{regexp.MustCompile(`([:\]])(3276[89]|327[7-9]\d|32[89]\d\d|3[3-9]\d{3}|[45]\d{4}|60\d{3})\b`), "$1<port>"},
	{regexp.MustCompile(`[ \t]+`), " "}, // columns are as wide as what stands in them
}

// address is tried first where both could begin.
var (
	number  = regexp.MustCompile(address.String() + `|\d+(\.\d+)?`)
	address = regexp.MustCompile(`\d+(?:\.\d+){3}|[0-9a-f]*:[0-9a-f:]*:[0-9a-f:]*`)
)

// normal is the lines of an output without what may differ.
func (s *step) normal(output string) []string {
	var lines []string
	for _, line := range strings.Split(strings.TrimRight(output, "\n"), "\n") {
		for _, v := range volatile {
			line = v.what.ReplaceAllString(line, v.by)
		}
		if s.numbers {
			line = number.ReplaceAllStringFunc(line, func(n string) string {
				if address.MatchString(n) {
					return n
				}
				return "<n>"
			})
		}
		lines = append(lines, strings.TrimRight(line, " "))
	}
	if s.anyOrder {
		slices.Sort(lines)
		lines = slices.Compact(lines)
	}
	return lines
}

// diff is empty when an output is what the README shows.
func (s *step) diff(got string) string {
	want, have := s.normal(s.output), s.normal(got)
	if slices.Equal(want, have) {
		return ""
	}
	var b strings.Builder
	for i := range max(len(want), len(have)) {
		switch {
		case i < len(want) && i < len(have) && want[i] == have[i]:
			fmt.Fprintf(&b, "    %s\n", want[i])
			continue
		case i < len(want):
			fmt.Fprintf(&b, "  - %s\n", want[i])
		}
		if i < len(have) {
			fmt.Fprintf(&b, "  + %s\n", have[i])
		}
	}
	return b.String()
}
