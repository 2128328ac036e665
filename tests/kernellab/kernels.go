// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// kernel is one of Debian's cloud kernels, which scripts/kernels fetches.
type kernel struct {
	Series  string
	Modules []string // that every suite gets, and that only this kernel has
}

var kernels = []kernel{
	{Series: "6.1"},  // clsact, and no TCX
	{Series: "6.12"}, // TCX; netkit is built in
}

// base is what every suite gets. All of it is modules in Debian's cloud kernels.
var base = []string{"veth", "bridge", "sch_ingress", "cls_bpf", "dummy"}

// devices and protocols that rows of the conformance table need, and that other kernels
// may lack. Nothing loads a module on demand in a machine: a row that needs another one
// adds it here, or to its kernel's Modules.
var devices = []string{
	"8021q", "wireguard", "tun", "sctp", "sch_netem",
	"inet_diag", "tcp_diag", "udp_diag", // who holds a port
}

// kernelDir is the directory of an unpacked kernel.
func kernelDir(cache, series string) (string, error) {
	dir := filepath.Join(cache, series)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("kernel %s: not in %s; make vm-deps fetches it", series, cache)
	} else if err != nil {
		return "", err
	}
	return dir, nil
}

// cacheDir is where scripts/kernels puts kernels.
func cacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "bpfnet", "kernels"), err
}
