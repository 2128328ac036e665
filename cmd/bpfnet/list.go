// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"
	"unicode/utf8"
)

// listing is what ps and network ls have in common: rows of strings, printed as
// a table, by a template, or as JSON.
type listing struct {
	table   string            // default format, as --format takes it: "table {{.A}}\t{{.B}}"
	headers map[string]string // by field
}

// print writes rows (structs with the fields of headers) in a format: "" is the
// table, "json" an object a line, "table TEMPLATE" with a header, else a template a line.
// With an error it writes nothing.
func (l listing) print(w io.Writer, format string, rows []any) error {
	switch format {
	case "", "table":
		format = l.table
	case "json":
		format = "{{json .}}"
	}
	format, table := strings.CutPrefix(format, "table ")
	format = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format)
	fields := "there are " + strings.Join(slices.Sorted(maps.Keys(l.headers)), ", ")
	t, err := parseTemplate(format)
	if err != nil {
		return templateError(err, fields)
	}
	if table { // Docker's own way: the template, run over the names of the columns
		rows = append([]any{l.headers}, rows...)
	}
	var out bytes.Buffer
	tw := tabwriter.NewWriter(&out, 10, 1, 3, ' ', 0)
	for _, row := range rows {
		if err := t.Execute(tw, row); err != nil {
			return templateError(err, fields)
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
	_, err = out.WriteTo(w)
	return err
}

func parseTemplate(text string) (*template.Template, error) {
	return template.New("").Funcs(templateFuncs).Option("missingkey=error").Parse(text)
}

var (
	templatePlace = regexp.MustCompile(`^template: :\d+:(\d+:)? (executing "" at )?`)
	noField       = regexp.MustCompile(`(?:no entry for key "|can't evaluate field |nil pointer evaluating .*\.)(\w+)`)
)

// templateError is an error of a template's in words that know nothing of Go; fields says
// which names there are.
func templateError(err error, fields string) error {
	if missing := noField.FindStringSubmatch(err.Error()); missing != nil {
		return fmt.Errorf("--format: no field %s; %s", missing[1], fields)
	}
	return fmt.Errorf("--format: %s", templatePlace.ReplaceAllString(err.Error(), ""))
}

// templateFuncs are Docker's.
var templateFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		err := e.Encode(v)
		return strings.TrimSpace(b.String()), err
	},
	"join": func(list any, sep string) (string, error) {
		switch list := list.(type) {
		case []string:
			return strings.Join(list, sep), nil
		case []any: // of inspect's JSON
			texts := make([]string, len(list))
			for i, v := range list {
				texts[i] = fmt.Sprint(v)
			}
			return strings.Join(texts, sep), nil
		}
		return "", errors.New("not a list")
	},
	"split": strings.Split,
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
	"title": func(s string) string {
		r, n := utf8.DecodeRuneInString(s)
		if n == 0 {
			return s
		}
		return strings.ToUpper(string(r)) + s[n:]
	},
	"pad": func(s string, before, after int) string {
		if s == "" {
			return s
		}
		return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
	},
	"truncate": func(s string, n int) string {
		if r := []rune(s); len(r) > n {
			return string(r[:n])
		}
		return s
	},
}

// printJSON prints what -o json asks for: indented, lists never null.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "    ")
	return e.Encode(v)
}

// table prints columns without a template.
func (a *app) table(header []string, rows [][]string) {
	tw := tabwriter.NewWriter(a.out, 10, 1, 3, ' ', 0)
	fmt.Fprintln(tw, strings.Join(header, "\t"))
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	tw.Flush()
}

// shortID is what is printed of an ID: 12 digits of 64.
func shortID(id string, whole bool) string {
	if !whole && len(id) > 12 {
		return id[:12]
	}
	return id
}

// ellipsis shortens a text as Docker does.
func ellipsis(s string, max int) string {
	if r := []rune(s); len(r) > max {
		return string(r[:max-1]) + "…"
	}
	return s
}

// ago words a span of time as Docker does.
func ago(d time.Duration) string {
	seconds, minutes, hours := int(d.Seconds()), int(d.Minutes()), int(d.Hours()+0.5)
	switch {
	case seconds < 1:
		return "Less than a second"
	case seconds == 1:
		return "1 second"
	case seconds < 60:
		return fmt.Sprintf("%d seconds", seconds)
	case minutes == 1:
		return "About a minute"
	case minutes < 60:
		return fmt.Sprintf("%d minutes", minutes)
	case hours == 1:
		return "About an hour"
	case hours < 48:
		return fmt.Sprintf("%d hours", hours)
	case hours < 24*7*2:
		return fmt.Sprintf("%d days", hours/24)
	case hours < 24*30*2:
		return fmt.Sprintf("%d weeks", hours/24/7)
	case hours < 24*365*2:
		return fmt.Sprintf("%d months", hours/24/30)
	}
	return fmt.Sprintf("%d years", int(d.Hours())/24/365)
}
