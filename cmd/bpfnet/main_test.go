// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/bench"
	"github.com/bpfnet/bpfnet/control/process"
)

// beBpfnet in the environment makes the test binary the program.
const beBpfnet = "BPFNET_TEST_MAIN"

func TestMain(m *testing.M) {
	process.Init()
	bench.Init()
	if os.Getenv(beBpfnet) != "" {
		os.Exit(execute(&app{in: os.Stdin, out: &output{file: os.Stdout}, err: os.Stderr}, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// bpfnet runs a command line in this process.
func bpfnet(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "out"))
	require.NoError(t, err)
	defer out.Close()
	errs, err := os.Create(filepath.Join(dir, "err"))
	require.NoError(t, err)
	defer errs.Close()
	in, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer in.Close()
	code = execute(&app{in: in, out: &output{file: out}, err: errs}, args)
	read := func(f *os.File) string {
		data, err := os.ReadFile(f.Name())
		require.NoError(t, err)
		return string(data)
	}
	return read(out), read(errs), code
}

// words splits a command line; a pair of quotes is an empty word.
func words(line string) []string {
	args := strings.Fields(line)
	for i, arg := range args {
		args[i] = strings.TrimPrefix(arg, "''")
	}
	return args
}

// What cannot be understood is one line, an exit status, and nothing else: none
// of these gets as far as looking at the host.
func TestBadCommandLines(t *testing.T) {
	t.Setenv("BPFNET_ROOT", "/proc/none") // should one get there, it changes nothing
	t.Setenv("BPFNET_NETNS", "/proc/none")
	for _, c := range []struct {
		line string
		code int
		text string
	}{
		{"frobnicate", 1, `no command "frobnicate"; see bpfnet --help`},
		{"pss", 1, `no command "pss", perhaps "ps"`},
		{"network crate x", 1, `network: no command "crate", perhaps "create"`},
		{"''", 1, `no command ""; see bpfnet --help`},
		{"-- ps", 1, "no command before --; see bpfnet --help"},
		{"network -- ls", 1, "network: no command before --; see bpfnet network --help"},
		{"nosuch --help", 1, `no command "nosuch"; see bpfnet --help`},
		{"--debug nosuch -h", 1, `no command "nosuch"; see bpfnet --help`},
		{"network nosuch --help", 1, `network: no command "nosuch"; see bpfnet network --help`},
		{"help nosuch", 1, `no command "nosuch"; see bpfnet --help`},
		{"help pss", 1, `no command "pss", perhaps "ps"`},
		{"help network nosuch", 1, `network: no command "nosuch"; see bpfnet network --help`},
		{"help ps extra", 1, `ps: no command "extra"; see bpfnet ps --help`},
		{"completion bash extra", 1, `completion bash: wants no arguments, got "extra"`},
		{"completion frob", 1, `completion: no command "frob"; see bpfnet completion --help`},
		{"--nonsense ps", 1, "unknown flag: --nonsense; see bpfnet --help"},
		{"ps --nonsense", 1, "ps: unknown flag: --nonsense; see bpfnet ps --help"},
		{"ps extra", 1, `ps: wants no arguments, got "extra"`},
		{"ps -n x", 1, `ps: --last "x": not a number; see bpfnet ps --help`},
		{"ps -n 99999999999999999999", 1, `ps: --last "99999999999999999999": too large; see`},
		{"ps --all=maybe", 1, `ps: --all "maybe": not true or false; see`},
		{"-o xml ps", 1, `--output "xml": text or json`},
		{"run", 125, "run: wants a command; see bpfnet run --help"},
		{"run --nonsense true", 125, "run: unknown flag: --nonsense"},
		{"run --ip 10.0.0.300 true", 125, `--ip "10.0.0.300": not an IPv4 address`},
		{"run --ip fd00::1 true", 125, `not an IPv4 address`},
		{"run --ip6 10.0.0.3 true", 125, `--ip6 "10.0.0.3": not an IPv6 address`},
		{"run --ip6 fe80::1%eth0 true", 125, `not an IPv6 address`},
		{"run -e =x true", 125, `--env "=x": no name before =`},
		{"run -w tmp true", 125, `--workdir "tmp": not an absolute path`},
		{"run -it true", 125, "-it: the input is no terminal"},
		{"exec", 1, "exec: wants NAME COMMAND"},
		{"exec web", 1, "exec: wants NAME COMMAND"},
		{"exec web --", 1, "exec: wants a command; see bpfnet exec --help"},
		{"exec web ''", 1, "exec: wants a command; see bpfnet exec --help"},
		{"exec web -- ''", 1, "exec: wants a command; see bpfnet exec --help"},
		{"exec '' true", 1, "exec: wants NAME COMMAND, got an empty name; see bpfnet exec --help"},
		{"run ''", 125, "run: wants a command; see bpfnet run --help"},
		{"exec -it web sh", 1, "-it: the input is no terminal"},
		{"attach web", 1, "attach: wants NAME and pid:N, netns:PATH or docker:NAME"},
		{"attach web 4711", 1, `attach "4711": pid:N, netns:PATH or docker:NAME`},
		{"attach web pid:", 1, `attach "pid:"`},
		{"attach '' netns:/x", 1, `attach: wants NAME and pid:N, netns:PATH or docker:NAME, got an empty name; see bpfnet attach --help`},
		{"stop", 1, "stop: wants NAME..."},
		{"stop ''", 1, "stop: wants NAME..., got an empty name; see"},
		{"stop -t soon web", 1, `stop: --time "soon": not a number; see`},
		{"rm", 1, "rm: wants NAME..."},
		{"rm -f web ''", 1, "rm: wants NAME..., got an empty name; see bpfnet rm --help"},
		{"inspect ''", 1, "inspect: wants NAME..., got an empty name; see"},
		{"logs", 1, "logs: wants NAME"},
		{"logs --tail x web", 1, `--tail "x": a number of lines, or all`},
		{"port", 1, "port: wants NAME [PORT[/PROTO]]"},
		{"port '' 80", 1, "port: wants NAME [PORT[/PROTO]], got an empty name"},
		{"network connect mynet ''", 1, "network connect: wants NETWORK CONTAINER, got an empty name"},
		{"link web ''", 1, "link: wants NAME TARGET[:ALIAS], got an empty name"},
		{"publish web", 1, "publish: wants NAME SPEC..."},
		{"link web", 1, "link: wants NAME TARGET[:ALIAS]"},
		{"network create", 1, "network create: wants NAME"},
		{"network create ''", 1, "network create: wants NAME, got an empty name"},
		{"network rm ''", 1, "network rm: wants NAME..., got an empty name; see"},
		{"network create -d macvlan x", 1, `driver "macvlan": bridge is the only one`},
		{"network create --subnet 10.0.0.0 x", 1, `--subnet "10.0.0.0": not ADDRESS/LENGTH`},
		{"network create --subnet 10.0.0.1/24 x", 1, "perhaps 10.0.0.0/24"},
		{"network create --gateway x y", 1, `--gateway "x": not an address`},
		{"network create --gateway-mode bridge x", 1, `--gateway-mode "bridge": nat or routed`},
		{"network create --label =x y", 1, "no name before ="},
		{"network create --opt com.docker.network.bridge.enable_icc=maybe x", 1, "true or false"},
		{"network create --opt com.docker.network.driver.mtu=big x", 1, `mtu=big: not a number`},
		{"network create --mtu 1400 --opt com.docker.network.driver.mtu=1500 x", 1, "--opt com.docker.network.driver.mtu=1500: --mtu says otherwise"},
		{"network create --bridge br8 --opt com.docker.network.bridge.name=br9 x", 1, "--opt com.docker.network.bridge.name=br9: --bridge says otherwise"},
		{"network create --icc=false --opt com.docker.network.bridge.enable_icc=true x", 1, "enable_icc=true: --icc says otherwise"},
		{"network create --ip-masq=false --opt com.docker.network.bridge.enable_ip_masquerade=true x", 1, "--ip-masq says otherwise"},
		{"network create --gateway-mode nat --opt com.docker.network.bridge.gateway_mode_ipv4=routed x", 1, "--gateway-mode says otherwise"},
		{"network create --opt com.docker.network.bridge.gateway_mode_ipv4=routed --opt com.docker.network.bridge.gateway_mode_ipv6=nat x", 1,
			"gateway_mode_ipv6=nat: another than IPv4's; a network has one mode for both"},
		{"network create --opt com.example=1 x", 1, "--opt com.example: not known"},
		{"network connect mynet", 1, "network connect: wants NETWORK CONTAINER"},
		{"network connect --ip x mynet web", 1, `--ip "x": not an IPv4 address`},
		{"init now", 1, "init: wants no arguments"},
		{"init --mtu big", 1, `init: --mtu "big": not a number; see`},
		{"init --icc=maybe", 1, `init: --icc "maybe": not true or false; see`},
		{"init --default-address-pool 10.0.0.0/8", 1, "base=CIDR,size=LENGTH"},
		{"init --default-address-pool base=10.0.0.0/8,size=x", 1, "not a number"},
		{"flows --proto tpc", 1, `--proto "tpc": tcp, udp, sctp, icmp or icmpv6`},
		{"flows --port 65536", 1, `flows: --port "65536": not a port, 1-65535; see`},
		{"flows --port 0", 1, `--port 0: not a port, 1-65535`},
		{"flows flush --container ''", 1, `--container "": no name`},
		{"bench now", 1, "bench: wants no arguments"},
		{"bench --workload tcp", 1, `workload "tcp": one of tcp-rr, `},
		{"bench --flow out", 1, `flow "out": one of published, `},
		{"bench --contender nft", 1, `contender "nft": one of bpf, iptables, `},
		{"bench --scale 10", 1, `--scale "10": not PORTSxCONTAINERS`},
		{"bench --scale 10x10x10", 1, "not PORTSxCONTAINERS"},
		{"bench --scale 0x1", 1, "scale 0x1: 1 to 63977 ports, 1 to 1000 containers"},
		{"bench --rounds -1", 1, "bench: rounds -1: "},
		{"bench --time soon", 1, `bench: --time "soon": not a time such as 250ms; see`},
		{"bench --time 1ms", 1, "bench: time 1ms: "},
		{"supervise x", 1, "supervise: is for bpfnet itself"},
	} {
		t.Run(c.line, func(t *testing.T) {
			out, errs, code := bpfnet(t, words(c.line)...)
			require.Equal(t, c.code, code, errs)
			require.Empty(t, out)
			require.True(t, strings.HasPrefix(errs, "bpfnet: "), errs)
			require.Contains(t, errs, c.text)
			require.Equal(t, 1, strings.Count(errs, "\n"), errs)
		})
	}
}

func TestEnvironmentOfGlobalFlags(t *testing.T) {
	t.Setenv("BPFNET_OUTPUT", "json")
	out, _, code := bpfnet(t, "version")
	require.Zero(t, code)
	require.True(t, strings.HasPrefix(out, "{"), out)

	out, _, code = bpfnet(t, "-o", "text", "version")
	require.Zero(t, code, "what is given goes before the environment")
	require.True(t, strings.HasPrefix(out, "bpfnet version "), out)

	t.Setenv("BPFNET_OUTPUT", "text")
	t.Setenv("BPFNET_DEBUG", "perhaps")
	_, errs, code := bpfnet(t, "version")
	require.Equal(t, 1, code)
	require.Equal(t, "bpfnet: BPFNET_DEBUG=perhaps: not true or false\n", errs)

	t.Setenv("BPFNET_DEBUG", "false")
	for _, f := range []string{"root", "bpffs", "netns", "cgroup", "datapath", "config"} {
		t.Setenv("BPFNET_"+strings.ToUpper(f), "/env/"+f)
	}
	a := &app{}
	root := a.root()
	require.NoError(t, root.PersistentFlags().Set("netns", "/given/netns"))
	require.NoError(t, a.prepare(root))
	require.Equal(t, []string{
		"--root=/env/root", "--bpffs=/env/bpffs", "--netns=/given/netns",
		"--cgroup=/env/cgroup", "--datapath=/env/datapath", "--config=/env/config",
	}, a.globalArgs())
}

func TestNotRoot(t *testing.T) {
	for _, args := range [][]string{{"ps"}, {"run", "true"}, {"network", "ls"}, {"status"}, {"bench"},
		{"rm", "-f", "a", "b", "c"}, {"stop", "a", "b", "c"}, {"daemon", "--docker"}, {"version"}, {"completion", "bash"}, {"--help"}} {
		cmd := exec.Command("/proc/self/exe", args...)
		cmd.Dir = "/"
		cmd.Env = []string{beBpfnet + "=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		switch args[0] {
		case "version", "completion", "--help":
			require.NoError(t, err, "%v: %s", args, errs.String())
			require.NotEmpty(t, out.String())
		default:
			require.Error(t, err)
			want := 1
			if args[0] == "run" {
				want = 125
			}
			require.Equal(t, want, cmd.ProcessState.ExitCode())
			require.Equal(t, 1, strings.Count(errs.String(), "root is needed"), errs.String())
			require.Equal(t, 1, strings.Count(errs.String(), "\n"), errs.String())
		}
	}
}

// Everything that the command line promises is there, and explains itself.
func TestCommands(t *testing.T) {
	root := (&app{}).root()
	for _, line := range []string{
		"init", "run", "attach", "exec", "ps", "logs", "start", "restart", "stop", "rm", "inspect", "port", "publish", "unpublish",
		"link", "unlink", "network create", "network ls", "network inspect", "network rm", "network prune", "network connect",
		"network disconnect", "bridge ls", "status", "flows", "flows flush", "reconcile", "uninstall", "demo", "bench", "version",
		"container ls", "container ps", "container port", "container run", "container rm", "container logs", "network list",
	} {
		words := strings.Fields(line)
		cmd, rest, err := root.Find(words)
		require.NoError(t, err, line)
		require.Empty(t, rest, line)
		last := words[len(words)-1]
		require.True(t, cmd.Name() == last || cmd.HasAlias(last), line)
	}
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		require.NotEmpty(t, cmd.Short, cmd.CommandPath())
		require.NotEmpty(t, cmd.Example, cmd.CommandPath())
		out, errs, code := bpfnet(t, append(strings.Fields(cmd.CommandPath())[1:], "--help")...)
		require.Zero(t, code, cmd.CommandPath())
		require.Empty(t, errs)
		require.Contains(t, out, "Examples:")
		help, errs, code := bpfnet(t, append([]string{"help"}, strings.Fields(cmd.CommandPath())[1:]...)...)
		require.Zero(t, code, errs)
		require.Equal(t, out, help)
		checkUsage(t, cmd, out)
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// checkUsage wants a usage line with "[flags]" or with each of the command's own flags, and for
// the values of flags words that are neither Go's types nor one of the values.
func checkUsage(t *testing.T, cmd *cobra.Command, help string) {
	_, usage, _ := strings.Cut(help, "Usage:\n")
	usage, _, _ = strings.Cut(usage, "\n")
	named := true
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			short := f.Shorthand != "" && strings.Contains(usage, "[-"+f.Shorthand)
			named = named && (short || strings.Contains(usage, "[--"+f.Name))
		}
	})
	require.Equal(t, !named, strings.Contains(usage, "[flags]"), usage)
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		placeholder, _ := pflag.UnquoteUsage(f)
		require.NotContains(t, []string{f.Value.Type(), "string", "strings", "uint", "bpf", "text", "nat", "nft", "IPv6", "bridge"}, placeholder, "%s: --%s", cmd.CommandPath(), f.Name)
	})
}

func TestDockerSpellings(t *testing.T) {
	parse := func(command string, args ...string) (*cobra.Command, []string) {
		cmd, _, err := (&app{}).root().Find([]string{command})
		require.NoError(t, err)
		require.NoError(t, cmd.ParseFlags(args))
		return cmd, cmd.Flags().Args()
	}
	cmd, rest := parse("run", "-it", "--rm", "--net", "n", "--net-alias", "a", "--network-alias", "b", "-h", "host", "-P",
		"--publish", "80", "-p", "8080:80,from=203.0.113.0/24,2001:db8::/32", "--expose", "80-90", "-e", "A=b,c", "--", "sh", "-c", "x", "-h")
	get := func(name string) string { return cmd.Flags().Lookup(name).Value.String() }
	require.Equal(t, []string{"sh", "-c", "x", "-h"}, rest)
	require.Equal(t, "n", get("network"))
	require.Equal(t, "host", get("hostname"))
	require.Equal(t, "true", get("publish-all"))
	require.Equal(t, "true", get("interactive"))
	list, err := cmd.Flags().GetStringArray("publish")
	require.NoError(t, err)
	require.Equal(t, []string{"80", "8080:80,from=203.0.113.0/24,2001:db8::/32"}, list, "a comma ends nothing")
	list, err = cmd.Flags().GetStringArray("network-alias")
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, list)

	_, rest = parse("run", "-d", "sleep", "-p", "1")
	require.Equal(t, []string{"sleep", "-p", "1"}, rest, "flags end where the command begins")
	_, rest = parse("exec", "-it", "web", "--", "ls", "-l")
	require.Equal(t, []string{"web", "--", "ls", "-l"}, rest)
	cmd, rest = parse("attach", "web", "pid:1", "-p", "80", "-h", "host")
	require.Equal(t, []string{"web", "pid:1"}, rest)
	require.Equal(t, "host", get("hostname"))
	for _, line := range []string{"ps -aql --no-trunc --format {{.ID}}", "logs --tail 5 -f web", "stop --timeout 3 web", "stop -t 3 web"} {
		f := strings.Fields(line)
		parse(f[0], f[1:]...)
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	require.Equal(t, "a; b", oneLine("a\nb\n"))
	require.Equal(t, "name?[31m", oneLine("name\x1b[31m"))
	require.Equal(t, "é", oneLine("é"))
}
