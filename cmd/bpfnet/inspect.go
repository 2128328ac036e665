// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func inspectCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "inspect [-f TEMPLATE] NAME...",
		Short: "Print all that is known of containers or networks",
		Long: `Print containers or networks as JSON in Docker's shape, or what a Go template
takes out of it. The template sees the names of the JSON.`,
		Example: `  bpfnet inspect web
  bpfnet inspect -f '{{.NetworkSettings.IPAddress}}' web
  bpfnet inspect -f '{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}' web
  bpfnet inspect -f '{{json .NetworkSettings.Ports}}' web`,
		Args: wants(1, -1, "NAME..."),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.with(func(m *control.Manager) error {
				return a.inspect(args, format, func(name string) (any, error) {
					c, err := m.Container(name)
					if err == nil {
						return containerView(m, c)
					}
					if !errors.Is(err, control.ErrNotFound) {
						return nil, err
					}
					n, err := m.Network(name)
					if errors.Is(err, control.ErrNotFound) {
						return nil, fmt.Errorf("%s: no such container or network", name)
					}
					if err != nil {
						return nil, err
					}
					return networkView(m, n)
				})
			})
		},
		ValidArgsFunction: containerNames,
	}
	formatFlag(cmd, &format)
	return cmd
}

func formatFlag(cmd *cobra.Command, format *string) {
	cmd.Flags().StringVarP(format, "format", "f", "", "`TEMPLATE` of Go for each, or json")
}

// allFields is where the names are that a template can use.
const allFields = "inspect without it shows all"

// inspect prints what find has for all names that it finds, then fails for the others.
func (a *app) inspect(names []string, format string, find func(string) (any, error)) error {
	var t *template.Template
	if format != "" && format != "json" {
		var err error
		if t, err = parseTemplate(format); err != nil {
			return templateError(err, allFields)
		}
	}
	views := []any{}
	missing := each(names, func(name string) error {
		v, err := find(name)
		if err == nil {
			views = append(views, v)
		}
		return err
	})
	switch {
	case format == "json":
		text, err := json.Marshal(views)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s\n", text)
	case t == nil:
		if err := a.printJSON(views); err != nil {
			return err
		}
	default:
		var out bytes.Buffer
		for _, v := range views {
			if err := render(&out, t, v); err != nil {
				return templateError(err, allFields)
			}
			out.WriteByte('\n')
		}
		out.WriteTo(a.out)
	}
	return missing
}

// render runs a template over the names that the JSON of v has.
func render(w io.Writer, t *template.Template, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var raw any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&raw); err != nil {
		return err
	}
	raw = plainNumbers(raw)
	if m, ok := raw.(map[string]any); ok {
		m["ID"] = m["Id"] // as Docker's templates may also say
	}
	return t.Execute(w, raw)
}

// plainNumbers makes whole numbers what a template can compare with its own.
func plainNumbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = plainNumbers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = plainNumbers(v[i])
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return int(n)
		}
	}
	return v
}
