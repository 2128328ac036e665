// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker for releases; else it is what the build knows.
var version string

type versionInfo struct {
	Version string `json:"Version"`
	Commit  string `json:"GitCommit"`
	Go      string `json:"GoVersion"`
	Os      string `json:"Os"`
	Arch    string `json:"Arch"`
}

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  bpfnet version\n  bpfnet version -o json",
		Args:    wantsNothing,
		RunE: func(_ *cobra.Command, _ []string) error {
			v := buildVersion()
			if a.json() {
				return a.printJSON(v)
			}
			fmt.Fprintf(a.out, "bpfnet version %s", v.Version)
			if v.Commit != "" {
				fmt.Fprintf(a.out, ", build %s", shortID(v.Commit, false))
			}
			fmt.Fprintln(a.out)
			return nil
		},
	}
}

func buildVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v.Version == "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	return v
}
