// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

// psRow has the fields of docker ps --format.
type psRow struct {
	Command    string `json:"Command"`
	CreatedAt  string `json:"CreatedAt"`
	ID         string `json:"ID"`
	Names      string `json:"Names"`
	Networks   string `json:"Networks"`
	PID        int    `json:"Pid"`
	Ports      string `json:"Ports"`
	RunningFor string `json:"RunningFor"`
	State      string `json:"State"`
	Status     string `json:"Status"`
}

var psListing = listing{
	table: `table {{.ID}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}`,
	headers: map[string]string{
		"Command": "COMMAND", "CreatedAt": "CREATED AT", "ID": "CONTAINER ID", "Names": "NAMES", "Networks": "NETWORKS",
		"PID": "PID", "Ports": "PORTS", "RunningFor": "CREATED", "State": "STATE", "Status": "STATUS",
	},
}

func psCommand(a *app) *cobra.Command {
	var (
		all, quiet, latest, noTrunc bool
		last                        int
		format                      string
	)
	cmd := &cobra.Command{
		Use:     "ps [flags]",
		Aliases: []string{"ls", "list"},
		Short:   "List containers",
		Example: `  bpfnet ps -a
  bpfnet ps -q
  bpfnet ps --format 'table {{.Names}}\t{{.Ports}}'
  bpfnet ps -o json`,
		Args: wantsNothing,
		RunE: func(_ *cobra.Command, _ []string) error {
			return a.with(func(m *control.Manager) error {
				containers, err := m.Containers()
				if err != nil {
					return err
				}
				if latest {
					last = 1
				}
				shown := selectContainers(containers, all, last)
				if quiet && format == "" && !a.json() {
					for _, c := range shown {
						fmt.Fprintln(a.out, shortID(c.ID, noTrunc))
					}
					return nil
				}
				rows, err := psRows(m, shown, noTrunc || a.json())
				if err != nil {
					return err
				}
				if a.json() && format == "" {
					return a.printJSON(rows)
				}
				return psListing.print(a.out, format, rows)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "those that do not run, too")
	f.BoolVarP(&quiet, "quiet", "q", false, "IDs only")
	f.BoolVarP(&latest, "latest", "l", false, "the one created last, running or not")
	f.IntVarP(&last, "last", "n", -1, "the `N` created last, running or not")
	f.BoolVar(&noTrunc, "no-trunc", false, "whole IDs and commands")
	f.StringVar(&format, "format", "", "`FORMAT`: table, json, or a Go template")
	return cmd
}

// selectContainers takes those to show, newest first, out of all, oldest first.
func selectContainers(containers []*control.Container, all bool, last int) []*control.Container {
	var shown []*control.Container
	for _, c := range slices.Backward(containers) {
		if last >= 0 && len(shown) == last {
			break
		}
		if all || last >= 0 || c.State == control.StateRunning {
			shown = append(shown, c)
		}
	}
	return shown
}

func psRows(m *control.Manager, containers []*control.Container, whole bool) ([]any, error) {
	networks, err := m.Networks()
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, n := range networks {
		names[n.ID] = n.Name
	}
	rows := []any{}
	for _, c := range containers {
		pubs, err := m.Publications(c.ID)
		if errors.Is(err, control.ErrNotFound) {
			continue // it has ended since, with --rm
		}
		if err != nil {
			return nil, err
		}
		rows = append(rows, psRowOf(c, pubs, names, whole, time.Now()))
	}
	return rows, nil
}

func psRowOf(c *control.Container, pubs []control.Publication, networks map[string]string, whole bool, now time.Time) psRow {
	command := strings.Join(c.Args, " ")
	if c.Attached && c.Engine == "" {
		command = "(attached)"
	}
	if !whole {
		command = ellipsis(command, 20)
	}
	row := psRow{
		Command:    strconv.Quote(command),
		CreatedAt:  c.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"),
		ID:         shortID(c.ID, whole),
		Names:      c.Name,
		Networks:   networksText(c, networks),
		RunningFor: ago(now.Sub(c.Created)) + " ago",
		State:      c.State,
		Status:     statusText(c, now),
	}
	if c.State == control.StateRunning {
		row.PID = c.PID
		row.Ports = portsText(pubs, c.Exposed)
	}
	return row
}

func networksText(c *control.Container, names map[string]string) string {
	switch c.Mode {
	case control.ModeNone, control.ModeHost:
		return c.Mode
	case control.ModeContainer:
		return "container:" + shortID(c.ModeTarget, false)
	}
	var list []string
	for id := range maps.Keys(c.Endpoints) {
		list = append(list, networkName(id, names))
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// networkName is the ID when nobody knows the network any more.
func networkName(id string, names map[string]string) string {
	if name := names[id]; name != "" {
		return name
	}
	return shortID(id, false)
}

// statusText is the column STATUS.
func statusText(c *control.Container, now time.Time) string {
	switch c.State {
	case control.StateRunning:
		since := c.Started
		if since.IsZero() {
			since = c.Created
		}
		return "Up " + ago(now.Sub(since))
	case control.StateCreated:
		return "Created"
	}
	if c.Finished.IsZero() { // nobody was there to see it
		return fmt.Sprintf("Exited (%d)", c.ExitCode)
	}
	return fmt.Sprintf("Exited (%d) %s ago", c.ExitCode, ago(now.Sub(c.Finished)))
}
