// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// series are the kernels that the lab boots: Debian's cloud kernels of these numbers,
// which scripts/kernels fetches. 6.1 has clsact but no TCX, 6.12 has both.
var series = []string{"6.1", "6.12"}

// base is what every suite needs, and is a module in Debian's cloud kernels.
var base = []string{"veth", "bridge", "sch_ingress", "cls_bpf", "dummy"}

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
