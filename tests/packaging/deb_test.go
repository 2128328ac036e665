// SPDX-License-Identifier: Apache-2.0

// Package packaging installs the Debian package, uses what it brought, and removes it:
// in a copy of this machine's files that is gone afterwards, with a host of the lab's.
package packaging

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// inside runs in a mount namespace of its own: $1 is the package, $2 an empty directory,
// $3 the script to run with what is installed, $4 the lab's cgroup.
const inside = `set -eu
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$2/upper,workdir=$2/work" "$2/root"
mkdir "$2/root/bpfnet-test"
cp "$1" "$2/root/bpfnet-test/bpfnet.deb"
cp "$3" "$2/root/bpfnet-test/script"
mount --rbind /proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
mount -t sysfs sysfs "$2/root/sys"
mount -t bpf bpf "$2/root/sys/fs/bpf"
mount --bind "$4" "$2/root/mnt"
unset BPFNET_NETNS BPFNET_ROOT BPFNET_BPFFS
export BPFNET_CGROUP=/mnt PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive
chroot "$2/root" sh -eu /bpfnet-test/script
echo "left:"
cd "$2/upper"
find . -path ./bpfnet-test -prune -o -name '*bpfnet*' -print
`

const use = `
say() { printf '%s: ' "$1"; shift; "$@"; }
dpkg -i /bpfnet-test/bpfnet.deb >/dev/null
say status dpkg-query -W -f '${Status}\n' bpfnet
say version bpfnet version
for page in bpfnet bpfnet-run bpfnet-network-create; do man -w $page >/dev/null; done
gzip -t /usr/share/man/man1/bpfnet.1.gz
say bash bash -n /usr/share/bash-completion/completions/bpfnet && echo fine
systemd-analyze verify --man=no bpfnet.service && echo "unit: fine"
systemctl enable bpfnet 2>/dev/null
say enabled systemctl is-enabled bpfnet

# The daemon with no more than the unit gives it.
bound=$(sed -n 's/^CapabilityBoundingSet=//p' /usr/lib/systemd/system/bpfnet.service |
	tr ' ' '\n' | sed 's/^CAP_/+/' | tr 'A-Z\n' 'a-z,' | sed 's/,$//')
setpriv --no-new-privs --inh-caps=-all --bounding-set="-all,$bound" bpfnet daemon 2>/bpfnet-test/log &
daemon=$!
trap 'kill $daemon 2>/dev/null; cat /bpfnet-test/log' EXIT
# Hosts of which nobody has heard before it runs: it attaches to one that comes later.
wait_for() {
	for i in $(seq 300); do "$@" && return; sleep 0.1; done
	echo "waited in vain: $*"; bpfnet status; exit 1
}
uplink() { bpfnet status -o json | grep -q '"'$1'"'; }
wait_for uplink eth0
ip link add late type veth peer name other
ip link set late up; ip link set other up
wait_for uplink late
bpfnet run -d --name web -p 8080:80 -- socat TCP-LISTEN:80,fork,reuseaddr EXEC:'echo hello' >/dev/null
ask() { answer=$(socat -T5 - TCP:127.0.0.1:8080,connect-timeout=5 </dev/null 2>/dev/null) && [ "$answer" = hello ]; }
wait_for ask
say answer echo $answer
bpfnet rm -f web >/dev/null
say before sh -c 'ls -A /sys/fs/bpf | grep -c bpfnet'
kill $daemon
wait $daemon && echo "daemon: ended"
trap - EXIT

dpkg -r bpfnet >/dev/null
say removed dpkg-query -W -f '${Status}\n' bpfnet
say devices sh -c 'ip -d link | grep -c bpfnet || true'
say pins sh -c 'ls -A /sys/fs/bpf | grep -c bpfnet || true'
dpkg -P bpfnet >/dev/null
say purged dpkg-query -W -f '${Status}\n' bpfnet || echo gone
`

func TestDeb(t *testing.T) {
	l := lab.New(t)
	deb, dir := lab.Deb(t, "1.2.3~test"), t.TempDir()
	script := filepath.Join(dir, "script")
	require.NoError(t, os.WriteFile(script, []byte(use), 0o600))
	room := filepath.Join(dir, "room")
	require.NoError(t, os.Mkdir(room, 0o700))
	text, err := l.Run(l.Host, "unshare", "--mount", "--propagation", "private",
		"sh", "-c", inside, "inside", deb, room, script, l.Cgroup)
	require.NoError(t, err, "%s", text)
	for _, line := range []string{
		"status: install ok installed",
		"version: bpfnet version 1.2.3~test",
		"unit: fine",
		"enabled: enabled",
		"answer: hello",
		"daemon: ended",
		"removed: deinstall ok config-files",
		"before: 1",
		"devices: 0",
		"pins: 0",
		"purged: gone",
	} {
		require.Regexp(t, "(?m)^"+regexp.QuoteMeta(line), text)
	}
	_, left, _ := strings.Cut(text, "left:\n")
	require.Empty(t, left, "files that purging left")
}
