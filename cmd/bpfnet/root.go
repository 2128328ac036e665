// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
)

// app is what all commands share: the global flags and the standard streams.
type app struct {
	options  control.Options
	output   string
	debug    bool
	prepared bool

	in, err *os.File
	out     *output
	noHelp  error // that --help was asked of a command that there is not
}

// extra are commands that only some builds have.
var extra []func(*app) *cobra.Command

// execute runs a command line and returns its exit status.
func execute(a *app, args []string) int {
	// A reader that goes must not end a command halfway. Not ignored: commands that are
	// started would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	return a.report(cmd, cmp.Or(err, a.noHelp))
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "bpfnet",
		Short: "Docker-style container networking with the packet path in eBPF",
		Long: `bpfnet gives this host Docker-style container networking: bridge networks,
published ports, masquerade, links. The packets' path is eBPF; no iptables, no
connection tracking, no proxy and no daemon take part in it.`,
		Example: `  bpfnet run -d --name web -p 8080:80 -- python3 -m http.server 80
  bpfnet ps
  bpfnet port web
  bpfnet rm -f web`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.prepare(cmd) },
	}
	root.SetIn(a.in)
	root.SetOut(a.out) // before completion's commands are made: they keep it
	root.SetErr(a.err)
	group(root)
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&a.options.Root, "root", "", "`directory` of the store, container files and logs (default /var/lib/bpfnet)")
	f.StringVar(&a.options.BPFFS, "bpffs", "", "`directory` of the pins (default /sys/fs/bpf/bpfnet)")
	f.StringVar(&a.options.Netns, "netns", "", "`path` of the network namespace that plays the host (default the caller's)")
	f.StringVar(&a.options.Cgroup, "cgroup", "", "cgroup v2 `directory` that the bind guard attaches to (default the mount of cgroup v2)")
	f.StringVar(&a.options.Datapath, "datapath", "", "`kind` of packets' path, bpf or iptables, chosen when the host is first set up (default bpf)")
	f.StringVar(&a.options.Config, "config", "", "configuration `file` with daemon.json's keys (default /etc/bpfnet/config.json)")
	f.StringVarP(&a.output, "output", "o", "text", "`format` of what is printed: text or json")
	f.BoolVar(&a.debug, "debug", false, "say more on standard error")

	complete(root, "output", values("text", "json"))
	complete(root, "datapath", values(control.DatapathBPF, control.DatapathIPTables))
	complete(root, "netns", anyFile)
	complete(root, "config", anyFile)
	for _, flag := range []string{"root", "bpffs", "cgroup"} {
		complete(root, flag, directories)
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)

	root.SetFlagErrorFunc(flagError)
	root.AddCommand(containerCommands(a)...)
	root.AddCommand(
		containerGroup(a), networkGroup(a), bridgeGroup(a),
		initCommand(a), statusCommand(a), flowsCommand(a), reconcileCommand(a), daemonCommand(a), uninstallCommand(a),
		demoCommand(a), benchCommand(a), cniCommand(a), netavarkCommand(a), versionCommand(a), superviseCommand(a),
	)
	for _, make := range extra {
		root.AddCommand(make(a))
	}
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "completion":
			completionGroup(c)
		case "help":
			helpCommand(c)
		}
	}
	a.helpOnlyOfWhatIs(root)
	plainUsage(root)
	return root
}

// containerCommands are those that stand both alone and below "container".
func containerCommands(a *app) []*cobra.Command {
	return []*cobra.Command{
		runCommand(a), attachCommand(a), execCommand(a), psCommand(a), logsCommand(a),
		startCommand(a), stopCommand(a), restartCommand(a), rmCommand(a), inspectCommand(a),
		portCommand(a), publishCommand(a), unpublishCommand(a), linkCommand(a), unlinkCommand(a),
	}
}

func containerGroup(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:     "container",
		Short:   "The commands for containers, under Docker's other spelling",
		Example: "  bpfnet container ls -a\n  bpfnet container port web",
	})
	c.AddCommand(containerCommands(a)...)
	return c
}

// prepare fills global flags that were not given from the environment.
func (a *app) prepare(cmd *cobra.Command) error {
	if a.prepared {
		return nil
	}
	a.prepared = true
	outputFrom := "--output "
	err := fromEnvironment(cmd, func(f *pflag.Flag, key string) {
		if f.Name == "output" {
			outputFrom = key + "="
		}
	})
	if err != nil {
		return err
	}
	if a.output != "text" && a.output != "json" {
		return fmt.Errorf("%s%q: text or json", outputFrom, a.output)
	}
	if a.debug {
		slog.SetDefault(slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelDebug})))
	}
	a.options.Warn = func(line string) { fmt.Fprintf(a.err, "bpfnet: warning: %s\n", oneLine(line)) }
	return nil
}

// fromEnvironment sets the global flags that were not given and that the environment has;
// seen is told each.
func fromEnvironment(cmd *cobra.Command, seen func(f *pflag.Flag, key string)) (err error) {
	cmd.Root().PersistentFlags().VisitAll(func(f *pflag.Flag) {
		key := "BPFNET_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := os.LookupEnv(key)
		if !ok || f.Changed || err != nil {
			return
		}
		if bad := f.Value.Set(value); bad != nil {
			err = fmt.Errorf("%s=%s: %s", key, value, expected(f, bad))
		}
		seen(f, key)
	})
	return err
}

func (a *app) json() bool { return a.output == "json" }

// globalArgs gives another bpfnet process the same host.
func (a *app) globalArgs() []string {
	var args []string
	for _, f := range []struct{ name, value string }{
		{"root", a.options.Root}, {"bpffs", a.options.BPFFS}, {"netns", a.options.Netns},
		{"cgroup", a.options.Cgroup}, {"datapath", a.options.Datapath}, {"config", a.options.Config},
	} {
		if f.value != "" {
			args = append(args, "--"+f.name+"="+f.value)
		}
	}
	return args
}

// open is how every command that touches the host begins.
func (a *app) open() (*control.Manager, error) {
	if os.Geteuid() != 0 {
		return nil, control.ErrNotRoot
	}
	return control.Open(a.options)
}

// with runs fn on a Manager.
func (a *app) with(fn func(*control.Manager) error) error {
	m, err := a.open()
	if err != nil {
		return err
	}
	defer m.Close()
	return fn(m)
}
